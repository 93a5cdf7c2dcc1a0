"""Tasks from data files: a prompt and an answer per row, and GSM8K as it is published."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from prm_jax.data.judging import AnyVerifier, check_verifier, make_verifier
from prm_jax.data.problems import Problem, Prompt
from prm_jax.data.records import BadLine, field, read_all, read_answer, read_prompt, short, text
from prm_jax.data.rows import read_rows
from prm_jax.data.splitters import make_splitter
from prm_jax.data.standard_task import StandardTask, divide, find_alphabet
from prm_jax.errors import UserError
from prm_jax.verifiers.extraction import ANSWER_MARKERS
from prm_jax.verifiers.number_text import parse_number
from prm_jax.verifiers.references import check_references

Place = Literal["auto", "whole", "boxed", "tags", "marker", "ladder", "anywhere", "last_number"]

PROMPT_FIELDS = ("prompt", "question", "problem")
"""Fields in which the prompt is looked for, in this order."""

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_GSM8K = re.compile(r"(.*)####([^\n#]*)\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """Options of a task from files; ``load_task`` takes them by name.

    Attributes:
      train: the file with training problems, whatever ``rows.read_rows`` reads. Evaluation problems are taken from it,
        by hash, when `eval` is empty.
      eval: the file with evaluation problems. A prompt in both files is left out of training.
      prompt_field: holds text, a list of ``{"role", "content"}`` messages, or a list of token ids; empty: the first of
        ``PROMPT_FIELDS`` that the first row has.
      answer_field: holds text or a number. Where every answer is a solution that ends in ``#### N``, as GSM8K's, the
        number is the answer and the solution is kept for the warm start.
      solution_field: optional in the file; a worked solution, for demonstrations.
      template: text in which ``{prompt}`` is replaced by a text prompt, to add instructions.
      chat: give a text prompt as one chat message.
      verifier: ``"auto"``: numbers if every reference is one, else exact words; or whatever ``make_verifier`` accepts,
        a function ``"my_mod:reward"`` for example.
      verifier_options: of that verifier; on the command line ``verifier.NAME VALUE``.
      extract: where a built-in verifier finds the answer in a response; ``"auto"``: the verifier's own default.
      markers: for ``extract="marker"``.
      splitter: how a response is cut into steps: whatever ``make_splitter`` accepts.
      splitter_options: of that splitter; on the command line ``splitter.NAME VALUE``.
      stop: strings that end a response.
      alphabet: characters of a tokenizer for models trained from scratch; ``"auto"``: those of the problems; empty:
        the model brings its own tokenizer.
      eval_fraction: the share of problems that become evaluation problems when there is only one file; 1 for a file
        that nothing is trained on, 0 for one that nothing is evaluated on.
      skip_bad: leave bad rows out and count them instead of stopping at the first.
      calculator: keep GSM8K's annotations ``<<48/2=24>>`` in solutions.
    """

    train: str
    eval: str = ""
    prompt_field: str = ""
    answer_field: str = "answer"
    solution_field: str = "solution"
    template: str = "{prompt}"
    chat: bool = False
    verifier: str | Callable[..., Any] = "auto"
    verifier_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extract: Place = "auto"
    markers: tuple[str, ...] = ANSWER_MARKERS
    splitter: str | Callable[..., Any] = "newline"
    splitter_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stop: tuple[str, ...] = ()
    alphabet: str = ""
    eval_fraction: float = 0.1
    skip_bad: bool = False
    calculator: bool = False


@dataclasses.dataclass(frozen=True)
class Gsm8kOptions(FileOptions):
    """GSM8K from its files as they are published: ``question``, and ``answer``, a solution that ends in ``#### N``."""

    prompt_field: str = "question"
    verifier: str | Callable[..., Any] = "number"


def file_task(options: FileOptions) -> StandardTask:
    """Reads a task from one or two files.

    Raises:
      UserError: a file that cannot be read, has a bad row or no problem at all; the message names file, line and
        field. A verifier or splitter that is unknown, or fails on the first problem.
      MissingExtraError: ``verifier="math"`` without mpmath, or Parquet without pyarrow.
    """
    if "{prompt}" not in options.template:
        raise UserError(f"the template {options.template!r} does not contain {{prompt}}, which the prompt replaces")
    bad: list[BadLine] = []
    problems = _read(options.train, options, bad)
    held_out = _read(options.eval, options, bad) if options.eval else None
    problems, held_out, remarks = _numbers_of_solutions(problems, held_out, options)
    train, evaluated, overlap = divide(problems, held_out, options.eval_fraction, options.train)
    every = [*train, *evaluated]
    verifier = _verifier(options, every)
    check_verifier(verifier, every[0], options.train)
    remarks += _check_references(verifier, every, options.answer_field)
    alphabet = find_alphabet(every) if options.alphabet == "auto" else options.alphabet
    return StandardTask(
        name="gsm8k" if isinstance(options, Gsm8kOptions) else pathlib.Path(options.train).stem,
        train=[_present(problem, options) for problem in train],
        eval=[_present(problem, options) for problem in evaluated],
        verifier=verifier,
        splitter=make_splitter(options.splitter, options.splitter_options, answer_markers=_signs(options.markers)),
        stop=options.stop,
        alphabet=_with_template(alphabet, options.template),
        overlap=overlap,
        skipped=tuple(bad),
        remarks=remarks,
    )


def _read(path: str, options: FileOptions, bad: list[BadLine]) -> list[Problem]:
    prompt_field = options.prompt_field

    def read(row: Mapping[str, Any], where: str) -> Iterator[Problem]:
        nonlocal prompt_field
        prompt_field = prompt_field or next((name for name in PROMPT_FIELDS if name in row), PROMPT_FIELDS[0])
        yield _problem(row, where, prompt_field, options)

    before = len(bad)
    problems = read_all(read_rows(path), read, skipped=bad if options.skip_bad else None)
    if not problems:
        also = f": all of its {len(bad) - before} rows are bad; the first is {bad[before]}" if bad[before:] else ""
        raise UserError(f"{path} has no problems in it{also or ': the file is empty'}")
    return problems


def _problem(row: Mapping[str, Any], where: str, prompt_field: str, options: FileOptions) -> Problem:
    prompt = read_prompt(field(row, prompt_field, where), f"{where}:{prompt_field}")
    answer = read_answer(field(row, options.answer_field, where), f"{where}:{options.answer_field}")
    used = {prompt_field, options.answer_field, options.solution_field, "id"}
    metadata: dict[str, Any] = {name: value for name, value in row.items() if name not in used}
    metadata["where"] = where
    solution = row.get(options.solution_field) if options.solution_field != options.answer_field else None
    if solution is not None:
        metadata["solution"] = text(solution, f"{where}:{options.solution_field}")
    if isinstance(options, Gsm8kOptions):
        _check_gsm8k(answer, f"{where}:{options.answer_field}")
    name = row.get("id")
    return Problem(prompt, answer, str(name) if isinstance(name, str | int) else short(where), metadata)


def _check_gsm8k(answer: str, where: str) -> None:
    match = _GSM8K.fullmatch(answer)
    if match is None:
        raise UserError(f"{where}: expected a solution that ends in '#### N', found {answer[-60:]!r}")
    if parse_number(match[2]) is None:
        raise UserError(f"{where}: expected a number after '####', found {match[2].strip()[:60]!r}")


def _numbers_of_solutions(
    problems: list[Problem], held_out: list[Problem] | None, options: FileOptions
) -> tuple[list[Problem], list[Problem] | None, tuple[str, ...]]:
    """Takes the number after ``####`` as the answer where every answer is a solution that ends so."""
    every = [*problems, *(held_out or [])]
    matches = [_GSM8K.fullmatch(problem.answer) for problem in every]
    ends = [match is not None and parse_number(match[2]) is not None for match in matches]
    if not any(ends):
        return problems, held_out, ()
    if not all(ends):
        odd = every[ends.index(False)]
        raise UserError(
            f"{odd.metadata['where']}:{options.answer_field}: {sum(ends)} of {len(every)} answers are solutions that "
            f"end in '#### N', but this one does not: {odd.answer[-60:]!r}; make them alike, or leave such rows out"
        )
    made = [_from_solution(p, m, options) for p, m in zip(every, matches, strict=True) if m is not None]
    remark = "the answers are solutions that end in '#### N': the number is the answer, and the solution is kept"
    remarks = () if isinstance(options, Gsm8kOptions) else (remark,)
    return made[: len(problems)], None if held_out is None else made[len(problems) :], remarks


def _from_solution(problem: Problem, match: re.Match[str], options: FileOptions) -> Problem:
    body, answer = match[1], match[2].strip()
    if not options.calculator:
        body = _CALCULATOR.sub("", body)
    metadata = {"solution": f"{body}#### {answer}", **problem.metadata}
    return dataclasses.replace(problem, answer=answer, metadata=metadata)


def _verifier(options: FileOptions, problems: Sequence[Problem]) -> AnyVerifier:
    name = options.verifier
    if name == "auto":
        name = "number" if all(parse_number(problem.answer) is not None for problem in problems) else "exact"
    if name == "number":
        _check_numbers(problems, options.answer_field)
    given = dict(options.verifier_options)
    if name in ("exact", "number", "math") and options.extract != "auto":
        given.setdefault("extract", options.extract)
    if name in ("exact", "number", "math"):
        given.setdefault("markers", options.markers)
    return make_verifier(name, given, option="task.options verifier")


def _check_references(verifier: AnyVerifier, problems: Sequence[Problem], name: str) -> tuple[str, ...]:
    """Refuses references that are beyond the verifier's limits; a remark where some cannot be read."""
    faults = check_references(verifier, [problem.answer for problem in problems])
    bad = [(problem, fault) for problem, fault in zip(problems, faults, strict=True) if fault]
    for problem, fault in bad:
        if "cannot be read" not in fault:
            raise UserError(f"{problem.metadata['where']}:{name}: the verifier cannot use this reference: {fault}")
    if not bad:
        return ()
    problem, fault = bad[0]
    return (
        f"{len(bad)} of {len(problems)} references cannot be compared with: responses that are not the same text are "
        f"left out of learning; the first is at {problem.metadata['where']}: {fault}",
    )


def _check_numbers(problems: Sequence[Problem], name: str) -> None:
    for problem in problems:
        if parse_number(problem.answer) is None:
            raise UserError(
                f"{problem.metadata['where']}:{name}: expected a number, found {problem.answer[:80]!r}; set the task's "
                "option verifier to exact or math"
            )


def _present(problem: Problem, options: FileOptions) -> Problem:
    """The problem with its prompt in the template, and as a message; prompts that are not text stay as they are."""
    if not isinstance(problem.prompt, str):
        return problem
    written = options.template.replace("{prompt}", problem.prompt)
    prompt: Prompt = ({"role": "user", "content": written},) if options.chat else written
    return dataclasses.replace(problem, prompt=prompt)


def _with_template(alphabet: str, template: str) -> str:
    return "".join(sorted({*alphabet, *template.replace("{prompt}", "")})) if alphabet else ""


def _signs(markers: tuple[str, ...]) -> tuple[str, ...]:
    """The markers that start a step of their own: signs such as ``####``, not phrases within a step."""
    return tuple(marker for marker in markers if not any(character.isalpha() for character in marker))
