"""Checks of the rows of data files, field by field, with messages that name file, line and field."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from prm_jax.data.problems import Prompt
from prm_jax.errors import UserError
from prm_jax.input_files import open_input
from prm_jax.option_values import suggest

T = TypeVar("T")
MAX_LINE_BYTES = 10 << 20

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class BadLine:
    """A row that cannot be used.

    Attributes:
      where: ``file:line`` or ``file:line:field``.
      what: what was found and what was expected.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def read_all(
    rows: Iterable[tuple[str, Callable[[], Mapping[str, Any]]]],
    read: Callable[[Mapping[str, Any], str], Iterable[T]],
    *,
    skipped: list[BadLine] | None = None,
) -> list[T]:
    """Reads what rows hold.

    Args:
      rows: (place, row) pairs, as ``rows.read_rows`` gives them.
      read: makes objects of a row and its place; raises ``UserError`` whose message starts with a place.
      skipped: bad rows are appended to this list instead of raising.

    Raises:
      UserError: the first bad row, without `skipped`.
    """
    found: list[T] = []
    for where, row in rows:
        try:
            found.extend(list(read(row(), where)))
        except UserError as error:
            if skipped is None:
                raise
            place, _, what = str(error).partition(": ")
            skipped.append(BadLine(place, what))
    return found


def lines(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """(``file:line``, the line) for every line that is not blank.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with open_input(path) as file:
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
      UserError: too long, not UTF-8, not JSON, a number beyond the range of doubles, a field that is given twice, or
        not an object.
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
        record = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
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
      UserError: the record is not an object, or lacks the field (the nearest name is suggested).
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


def read_answer(value: Any, where: str) -> str:
    """A reference answer as text; numbers are written out.

    Raises:
      UserError: anything else, and blank text.
    """
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
        raise UserError(f"{where}: the text has half of a surrogate pair, which is not a character")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is out of range")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the field {twice!r} is given twice")
    return record


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
