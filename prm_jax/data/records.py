"""Reading problems from the lines of a file, each checked, with errors that name file, line and field."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from prm_jax.data.problems import Problem, Prompt
from prm_jax.errors import UserError
from prm_jax.option_values import suggest
from prm_jax.verifiers.number import parse_number

MAX_LINE_BYTES = 10 << 20

_SURROGATE = re.compile("[\ud800-\udfff]")
_CALCULATOR = re.compile(r"<<[^<>]*>>")


@dataclasses.dataclass(frozen=True)
class BadLine:
    """A line that is no problem.

    Attributes:
      where: ``file:line`` or ``file:line:field``.
      what: what was found and what was expected.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclasses.dataclass(frozen=True)
class Fields:
    """Which fields of a line hold what.

    Attributes:
      prompt: text, a list of ``{"role", "content"}`` messages, or a list of token ids.
      answer: text or a number.
      id: optional in the file; else problems are called ``file:line``.
      solution: optional; a worked solution, for demonstrations.
    """

    prompt: str = "prompt"
    answer: str = "answer"
    id: str = "id"
    solution: str = "solution"


def read_problems(
    path: str | pathlib.Path, read: Callable[[Mapping[str, Any], str], Problem], *, skip_bad: bool = False
) -> tuple[list[Problem], list[BadLine]]:
    """Reads the problems of a file.

    Args:
      path: UTF-8 with one JSON object a line; a byte order mark, CRLF and blank lines do no harm.
      read: makes a problem of an object and ``file:line``; raises ``UserError`` whose message is a ``BadLine``.
      skip_bad: collect bad lines instead of raising.

    Returns:
      (problems, bad lines).

    Raises:
      UserError: for a file that cannot be read or has no problems, and for the first bad line.
    """
    path = pathlib.Path(path)
    problems: list[Problem] = []
    bad: list[BadLine] = []
    for where, line in lines(path):
        try:
            problems.append(read(parse(line, where), where))
        except UserError as error:
            if not skip_bad:
                raise
            place, _, what = str(error).partition(": ")
            bad.append(BadLine(place, what))
    if not problems:
        also = f": all of its {len(bad)} lines are bad; the first is {bad[0]}" if bad else ": the file is empty"
        raise UserError(f"{path} has no problems in it{also}")
    return problems, bad


def read_record(record: Mapping[str, Any], where: str, *, fields: Fields) -> Problem:
    """A problem from the fields named; for ``read_problems``."""
    prompt = read_prompt(field(record, fields.prompt, where), f"{where}:{fields.prompt}")
    answer = _answer(field(record, fields.answer, where), f"{where}:{fields.answer}")
    metadata: dict[str, Any] = {"where": where}
    solution = record.get(fields.solution)
    if solution is not None:
        metadata["solution"] = text(solution, f"{where}:{fields.solution}")
    name = record.get(fields.id)
    return Problem(prompt, answer, str(name) if isinstance(name, str | int) else short(where), metadata)


def read_gsm8k(record: Mapping[str, Any], where: str, *, calculator: bool) -> Problem:
    """A problem of GSM8K; for ``read_problems``.  ``calculator`` keeps the annotations ``<<48/2=24>>``."""
    question = text(field(record, "question", where), f"{where}:question")
    solution = text(field(record, "answer", where), f"{where}:answer")
    body, marker, answer = solution.rpartition("####")
    if not marker:
        raise UserError(f"{where}:answer: expected a solution that ends in '#### N', found {solution[-60:]!r}")
    if parse_number(answer) is None:
        raise UserError(f"{where}:answer: expected a number after '####', found {answer.strip()[:60]!r}")
    if not calculator:
        body = _CALCULATOR.sub("", body)
    written = f"{body}#### {answer.strip()}"
    return Problem(question, answer.strip(), short(where), {"where": where, "solution": written})


def lines(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """(``file:line``, the line) for every line that is not blank.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                rest = line
                while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE_BYTES + 1)
                if line.strip():
                    yield f"{path}:{number}", line
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def parse(line: bytes, where: str) -> Mapping[str, Any]:
    """The object that a line holds.

    Raises:
      UserError: too long, not UTF-8, not JSON, or no object.
    """
    if len(line) > MAX_LINE_BYTES:
        raise UserError(f"{where}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {line[error.start]:#04x} at position {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    try:
        record = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not JSON: {error.msg} at column {error.colno}: {_excerpt(text, error.pos)}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON that can be read: {str(error) or 'nested too deep'}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with fields, found {kind(record)}")
    return record


def field(record: Any, name: str, where: str) -> Any:
    """The value of a field that must be there.

    Raises:
      UserError: the record is no object, or lacks the field (the nearest name is offered).
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: expected an object with fields, found {kind(record)}")
    if name not in record:
        raise UserError(f"{where}:{name}: the field is missing; {suggest(name, record, 'fields of this line')}")
    return record[name]


def read_prompt(value: Any, where: str) -> Prompt:
    """A prompt: text, a list of messages, or a list of token ids.

    Raises:
      UserError: anything else.
    """
    if isinstance(value, str):
        return text(value, where)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return tuple(_message(item, f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(value, list) and value and all(type(item) is int and 0 <= item < 2**31 for item in value):
        return tuple(cast(list[int], value))
    raise UserError(
        f"{where}: expected text, a list of messages with role and content, or a list of token ids, "
        f"found {kind(value)}"
    )


def _message(item: Mapping[str, Any], where: str) -> dict[str, str]:
    for key in ("role", "content"):
        if key not in item:
            raise UserError(f"{where}: the message has no {key!r}, only {', '.join(item) or 'nothing'}")
    unknown = set(item) - {"role", "content"}
    if unknown:
        raise UserError(f"{where}: a message has a role and a content, found {sorted(unknown)[0]!r} too")
    return {"role": text(item["role"], f"{where}.role"), "content": text(item["content"], f"{where}.content")}


def _answer(value: Any, where: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    return text(value, where)


def text(value: Any, where: str) -> str:
    """A text that is not blank and that every tokenizer can take.

    Raises:
      UserError: anything else.
    """
    if not isinstance(value, str):
        raise UserError(f"{where}: expected text, found {kind(value)}")
    if not value.strip():
        raise UserError(f"{where}: the text is empty")
    if "\0" in value:
        raise UserError(f"{where}: the text has a NUL character at position {value.index(chr(0))}")
    if _SURROGATE.search(value):
        raise UserError(f"{where}: the text has half of a surrogate pair, which is no character")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def kind(value: Any) -> str:
    """What a JSON value is, with the beginning of it, for messages."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    name = kinds.get(type(value), "a number")
    return f"{name} ({json.dumps(value)[:60]})" if name not in ("null",) else name


def _excerpt(text: str, position: int) -> str:
    return repr(text[max(0, position - 20) : position + 20])


def short(where: str) -> str:
    """``file:line`` without folders."""
    return pathlib.PurePath(where).name
