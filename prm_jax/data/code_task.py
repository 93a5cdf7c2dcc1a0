"""The task of programming problems, from the files of published data sets."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from prm_jax.data.code_formats import KIND, READERS, find_format
from prm_jax.data.problems import Problem
from prm_jax.data.records import BadLine, read_all
from prm_jax.data.rows import read_rows
from prm_jax.data.splitters import make_splitter
from prm_jax.data.standard_task import StandardTask, divide, find_alphabet
from prm_jax.errors import UserError
from prm_jax.option_values import convert_options, parameter_kinds
from prm_jax.verifiers.code import CodeVerifier, Score
from prm_jax.verifiers.math import MathVerifier
from prm_jax.verifiers.verdict import Verdict

Format = Literal["auto", "humaneval", "mbpp", "apps", "taco", "code_contests", "livecodebench", "prime"]


@dataclasses.dataclass(frozen=True)
class CodeOptions:
    """Options of the task ``code``; ``load_task`` takes them by name.

    Attributes:
      train: file with training problems, whatever ``rows.read_rows`` reads. Evaluation problems are taken from it, by
        hash, when `eval` is empty.
      eval: file with evaluation problems. A prompt in both files is left out of training.
      format: of the files; ``"auto"``: recognised by the fields of the first row. ``"prime"`` holds mathematics and
        code in one file, and each row is judged by its own verifier.
      template: text in which ``{prompt}`` is replaced by a text prompt, to add instructions.
      chat: give a text prompt as one chat message.
      score: ``"all"``: 1 when every test passes, else 0; ``"fraction"``: the share of tests that pass.
      verifier_options: of ``CodeVerifier``; on the command line ``verifier.NAME VALUE``.
      splitter: how a response is cut into steps: whatever ``make_splitter`` accepts.
      splitter_options: of that splitter; on the command line ``splitter.NAME VALUE``.
      stop: strings that end a response.
      alphabet: characters of a tokenizer for models trained from scratch; ``"auto"``: those of the problems; empty:
        the model brings its own tokenizer.
      eval_fraction: the share of problems that become evaluation problems when there is only one file.
      max_tests: keep only the first tests of each problem; 0: all.
      check_solutions: run the tests of every problem that has a reference solution on that solution, and refuse
        problems whose own solution fails.
      skip_bad: leave bad rows, and with `check_solutions` such problems, out and count them instead of stopping.
    """

    train: str
    eval: str = ""
    format: Format = "auto"
    template: str = "{prompt}"
    chat: bool = False
    score: Score = "all"
    verifier_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    splitter: str | Callable[..., Any] = "statement"
    splitter_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stop: tuple[str, ...] = ()
    alphabet: str = ""
    eval_fraction: float = 0.1
    max_tests: int = 0
    check_solutions: bool = False
    skip_bad: bool = False


class CodeOrMathVerifier:
    """Judges each problem by its own kind, for files that hold programming and mathematics.

    Args:
      code: for problems whose metadata says ``"kind": "code"``.
      math: for all others.
    """

    def __init__(self, code: CodeVerifier, math: MathVerifier) -> None:
        self.code, self.math = code, math

    def verify_problems(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per (problem, response)."""
        verdicts: dict[int, Verdict] = {}
        for verifier, kind in ((self.code, True), (self.math, False)):
            chosen = [i for i, problem in enumerate(problems) if (problem.metadata.get(KIND) == "code") == kind]
            if chosen:
                found = verifier.verify_many([responses[i] for i in chosen], [problems[i].answer for i in chosen])
                verdicts.update(zip(chosen, found, strict=True))
        return [verdicts[index] for index in range(len(problems))]

    def close(self) -> None:
        """Ends the processes of both."""
        self.code.close()
        self.math.pool.close()


def code_task(options: CodeOptions) -> StandardTask:
    """Reads programming problems from one or two files.

    Raises:
      UserError: a file that cannot be read, a bad row (the message names file, line and field), tests that cannot be
        parsed, an empty list of tests, a reference solution that fails its own tests, no sandbox on this machine.
    """
    if "{prompt}" not in options.template:
        raise UserError(f"the template {options.template!r} does not contain {{prompt}}, which the prompt replaces")
    bad: list[BadLine] = []
    problems = _read(options.train, options, bad)
    held_out = _read(options.eval, options, bad) if options.eval else None
    verifier = CodeVerifier(**{"score": options.score, **_converted(options)})
    if options.check_solutions:
        problems = _check_solutions(verifier, problems, options, bad)
        held_out = None if held_out is None else _check_solutions(verifier, held_out, options, bad)
    train, evaluated, overlap = divide(problems, held_out, options.eval_fraction, options.train)
    mixed = any(problem.metadata.get(KIND) != "code" for problem in [*train, *evaluated])
    every = [*train, *evaluated]
    return StandardTask(
        name=pathlib.Path(options.train).name.split(".")[0],
        train=[_present(problem, options) for problem in train],
        eval=[_present(problem, options) for problem in evaluated],
        verifier=CodeOrMathVerifier(verifier, MathVerifier()) if mixed else verifier,
        splitter=make_splitter(options.splitter, options.splitter_options),
        stop=options.stop,
        alphabet=find_alphabet(every) if options.alphabet == "auto" else options.alphabet,
        overlap=overlap,
        skipped=tuple(bad),
        remarks=_remarks(verifier, every),
    )


def _converted(options: CodeOptions) -> dict[str, Any]:
    return convert_options(options.verifier_options, parameter_kinds(CodeVerifier), "the verifier 'code'")


def _read(path: str, options: CodeOptions, bad: list[BadLine]) -> list[Problem]:
    name: str = "" if options.format == "auto" else options.format

    def read(row: Mapping[str, Any], where: str) -> Iterator[Problem]:
        nonlocal name
        name = name or find_format(row, where)
        try:
            problem = READERS[name](row, where)
        except UserError as error:
            if str(error).startswith(where):
                raise
            raise UserError(f"{where}: {error}") from error
        yield _cut(problem, options.max_tests)

    problems = read_all(read_rows(path), read, skipped=bad if options.skip_bad else None)
    if not problems:
        raise UserError(f"{path} has no problems in it{f'; the first bad row is {bad[0]}' if bad else ''}")
    return problems


def _cut(problem: Problem, count: int) -> Problem:
    if not count or problem.metadata.get(KIND) != "code":
        return problem
    document = json.loads(problem.answer)
    for name in ("tests", "inputs", "outputs"):
        if name in document:
            document[name] = document[name][:count]
    return dataclasses.replace(problem, answer=json.dumps(document))


def _check_solutions(
    verifier: CodeVerifier, problems: list[Problem], options: CodeOptions, bad: list[BadLine]
) -> list[Problem]:
    """Those whose own solution passes, or that have none."""
    known = [i for i, p in enumerate(problems) if p.metadata.get(KIND) == "code" and "solution" in p.metadata]
    verdicts = verifier.verify_many(
        [str(problems[i].metadata["solution"]) for i in known], [problems[i].answer for i in known]
    )
    failing = {i: verdict for i, verdict in zip(known, verdicts, strict=True) if verdict.status != "pass"}
    if failing and not options.skip_bad:
        index, verdict = next(iter(failing.items()))
        raise UserError(
            f"the reference solutions of {len(failing)} of {len(known)} problems fail their own tests; the first, "
            f"{problems[index].id}: {verdict.detail}; correct them, or leave them out with skip_bad true"
        )
    bad += [BadLine(problems[i].id, f"its own solution fails: {verdict.detail}") for i, verdict in failing.items()]
    return [problem for index, problem in enumerate(problems) if index not in failing]


def _present(problem: Problem, options: CodeOptions) -> Problem:
    if not isinstance(problem.prompt, str):
        return problem
    prompt = options.template.replace("{prompt}", problem.prompt)
    return dataclasses.replace(problem, prompt=({"role": "user", "content": prompt},) if options.chat else prompt)


def _remarks(verifier: CodeVerifier, problems: Sequence[Problem]) -> tuple[str, ...]:
    code = sum(problem.metadata.get(KIND) == "code" for problem in problems)
    remarks = [f"programs run in a sandbox: {verifier.sandbox.describe()}"]
    if code < len(problems):
        remarks.append(f"{code} problems are judged by tests and {len(problems) - code} by mathematics")
    return tuple(remarks)
