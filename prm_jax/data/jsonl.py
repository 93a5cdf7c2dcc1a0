"""Tasks from JSONL files: a prompt and an answer a line, and GSM8K as it is published."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from prm_jax.data.problems import Overlap, Problem, Prompt, find_overlap, fingerprint, problem_hash, split_problems
from prm_jax.data.records import BadLine, Fields, read_gsm8k, read_problems, read_record
from prm_jax.data.steps import How, StepSplitter
from prm_jax.errors import UserError
from prm_jax.verifiers.exact import ExactVerifier
from prm_jax.verifiers.extraction import ANSWER_MARKERS, Where
from prm_jax.verifiers.math import MathVerifier
from prm_jax.verifiers.number import NumberVerifier, parse_number
from prm_jax.verifiers.verdict import Verdict, Verifier

Judge = Literal["auto", "exact", "number", "math"]
Place = Literal["auto", "whole", "marker", "boxed", "last_number"]


@dataclasses.dataclass(frozen=True, eq=False)
class FileTask:
    """Problems that were read from files; made by ``jsonl_task`` and ``gsm8k_task``.

    Attributes:
      name: how the task is called.
      train: training problems, in the order of the file.
      eval: evaluation problems, in the order of the file; none of their prompts is a training prompt.
      verifier: judges responses.
      splitter: cuts responses into steps.
      stop: strings that end a response.
      overlap: prompts that occur more than once, as the files have them.
      skipped: bad lines that were left out.
    """

    name: str
    train: Sequence[Problem]
    eval: Sequence[Problem]
    verifier: Verifier
    splitter: StepSplitter
    stop: tuple[str, ...] = ()
    overlap: Overlap = Overlap((), ())
    skipped: tuple[BadLine, ...] = ()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of every prompt and answer."""
        return fingerprint(self.train, self.eval)

    @property
    def notes(self) -> list[str]:
        """What a user should know about the files, a line each: duplicates, leaks, lines left out, no evaluation."""
        notes = []
        if self.skipped:
            notes.append(f"{len(self.skipped)} bad lines were left out; the first: {self.skipped[0]}")
        if self.overlap.duplicates:
            count, first = len(self.overlap.duplicates), self.overlap.duplicates[0]
            notes.append(f"{count} prompts occur more than once, for example {' and '.join(first[:2])}")
        if self.overlap.leaks:
            count, first = len(self.overlap.leaks), self.overlap.leaks[0]
            notes.append(
                f"{count} evaluation prompts stand among the training prompts too and were left out there, "
                f"for example {' and '.join(first)}"
            )
        if not self.eval:
            notes.append("there are no evaluation problems")
        return notes

    def tokenizer(self) -> None:
        """None: the model brings its tokenizer."""
        return None

    def verify(self, problem: Problem, response: str) -> float:
        """The verifier's score, in [0, 1]."""
        return self.verify_many([problem], [response])[0].score

    def verify_many(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict a response."""
        return self.verifier.verify_many(responses, [problem.answer for problem in problems])

    def step_labels(self, problem: Problem, response: str) -> None:
        """None: which steps are right is not known."""
        return None

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[tuple[Prompt, str]]:
        """(prompt, worked solution) pairs for supervised training, on training problems drawn at random.

        Raises:
          UserError: when the file has no solutions.
        """
        solved = [problem for problem in self.train if problem.metadata.get("solution")]
        if not solved:
            raise UserError(f"the problems of {self.name!r} have no worked solutions to learn from")
        chosen = [solved[int(index)] for index in rng.integers(len(solved), size=count)]
        return [(problem.prompt, problem.metadata["solution"]) for problem in chosen]


def jsonl_task(
    train: str,
    eval: str = "",
    *,
    prompt_field: str = "prompt",
    answer_field: str = "answer",
    solution_field: str = "solution",
    template: str = "{prompt}",
    chat: bool = False,
    verifier: Judge = "auto",
    extract: Place = "auto",
    markers: tuple[str, ...] = ANSWER_MARKERS,
    split: How = "newline",
    separators: tuple[str, ...] = (),
    stop: tuple[str, ...] = (),
    eval_fraction: float = 0.1,
    skip_bad: bool = False,
) -> FileTask:
    """A task from one or two JSONL files.

    Args:
      train: the file with training problems; evaluation problems are taken from it, by hash, when ``eval`` is empty.
      eval: the file with evaluation problems.  A prompt that stands in both files is left out of training.
      prompt_field: holds text, a list of ``{"role", "content"}`` messages, or a list of token ids.
      answer_field: holds text or a number.
      solution_field: optional in the file; a worked solution, for demonstrations.
      template: text in which ``{prompt}`` stands for a text prompt, to add instructions.
      chat: give a text prompt as one chat message.
      verifier: ``"auto"``: numbers if every reference is one, else exact words.
      extract: where the answer stands in a response; ``"auto"``: after a marker for numbers, in a box for
        mathematics, and the whole response for exact words.
      markers: for ``extract="marker"``.
      split: how a response is cut into steps, as for ``StepSplitter``.
      separators: for ``split="separator"``.
      stop: strings that end a response.
      eval_fraction: the share of problems that become evaluation problems when there is only one file; 1 for
        a file that nothing is trained on, 0 for one that nothing is evaluated on.
      skip_bad: leave bad lines out and count them where they would be errors.

    Returns:
      The task.

    Raises:
      UserError: for a file that cannot be read, has a bad line or no problem at all; the message names file, line
        and field.
      MissingExtraError: when ``verifier="math"`` and math-verify is not installed.
    """
    if "{prompt}" not in template:
        raise UserError(f"the template {template!r} has no {{prompt}} in it, where the prompt is to stand")
    fields = Fields(prompt_field, answer_field, solution=solution_field)
    files = _read_files(train, eval, functools.partial(read_record, fields=fields), eval_fraction, skip_bad)
    every = [*files.train, *files.eval]
    if verifier == "auto":
        verifier = "number" if all(parse_number(problem.answer) is not None for problem in every) else "exact"
    if verifier == "number":
        _check_numbers(every, answer_field)
    return FileTask(
        name=pathlib.Path(train).stem,
        train=[_present(problem, template, chat) for problem in files.train],
        eval=[_present(problem, template, chat) for problem in files.eval],
        verifier=_make_verifier(verifier, extract, markers),
        splitter=StepSplitter(split, separators=separators, answer_markers=_signs(markers)),
        stop=stop,
        overlap=files.overlap,
        skipped=files.skipped,
    )


def gsm8k_task(
    train: str,
    eval: str = "",
    *,
    calculator: bool = False,
    template: str = "{prompt}",
    chat: bool = False,
    extract: Literal["marker", "boxed", "last_number"] = "marker",
    markers: tuple[str, ...] = ANSWER_MARKERS,
    eval_fraction: float = 0.1,
    skip_bad: bool = False,
) -> FileTask:
    """GSM8K from its files as they are published: ``question``, and ``answer``, a solution that ends in ``#### N``.

    Args:
      train: the path of ``train.jsonl``.
      eval: the path of ``test.jsonl``.
      calculator: keep the annotations ``<<48/2=24>>`` in the solutions.
      template, chat, extract, markers, eval_fraction, skip_bad: as for ``jsonl_task``.

    Returns:
      The task; steps are lines, and answers are compared as numbers.

    Raises:
      UserError: as for ``jsonl_task``.
    """
    if "{prompt}" not in template:
        raise UserError(f"the template {template!r} has no {{prompt}} in it, where the prompt is to stand")
    read = functools.partial(read_gsm8k, calculator=calculator)
    files = _read_files(train, eval, read, eval_fraction, skip_bad)
    return FileTask(
        name="gsm8k",
        train=[_present(problem, template, chat) for problem in files.train],
        eval=[_present(problem, template, chat) for problem in files.eval],
        verifier=_make_verifier("number", extract, markers),
        splitter=StepSplitter("newline", answer_markers=_signs(markers)),
        overlap=files.overlap,
        skipped=files.skipped,
    )


@dataclasses.dataclass(frozen=True)
class _Files:
    train: list[Problem]
    eval: list[Problem]
    overlap: Overlap
    skipped: tuple[BadLine, ...]


def _read_files(
    train: str,
    held_out: str,
    read: Callable[[Mapping[str, Any], str], Problem],
    eval_fraction: float,
    skip_bad: bool,
) -> _Files:
    """Reads both files and makes them disjoint, or divides one."""
    if not 0.0 <= eval_fraction <= 1.0:
        raise UserError(f"eval_fraction must be in [0, 1], found {eval_fraction}")
    problems, bad = read_problems(train, read, skip_bad=skip_bad)
    if not held_out:
        kept, others = split_problems(problems, eval_fraction)
        if not kept and eval_fraction < 1.0:
            raise UserError(
                f"all {len(others)} problems of {train} went to evaluation; lower eval_fraction, or make it 1 to train "
                "on none"
            )
        return _Files(kept, others, find_overlap(problems), tuple(bad))
    others, more = read_problems(held_out, read, skip_bad=skip_bad)
    keys = {problem_hash(problem) for problem in others}
    kept = [problem for problem in problems if problem_hash(problem) not in keys]
    if not kept:
        raise UserError(
            f"no training problems are left: every prompt of {train} stands in {held_out} too; to evaluate on one file "
            "and train on none, give it alone with eval_fraction 1"
        )
    return _Files(kept, others, find_overlap(problems, others), (*bad, *more))


def _check_numbers(problems: Sequence[Problem], field: str) -> None:
    for problem in problems:
        if parse_number(problem.answer) is None:
            found = f"expected a number, found {problem.answer[:80]!r}; say verifier='exact' or 'math'"
            raise UserError(f"{problem.metadata['where']}:{field}: {found}")


def _present(problem: Problem, template: str, chat: bool) -> Problem:
    """The problem with its prompt in the template, and as a message; prompts that are not text stay as they are."""
    if not isinstance(problem.prompt, str):
        return problem
    text = template.replace("{prompt}", problem.prompt)
    prompt: Prompt = ({"role": "user", "content": text},) if chat else text
    return dataclasses.replace(problem, prompt=prompt)


def _make_verifier(kind: Judge, extract: Place, markers: tuple[str, ...]) -> Verifier:
    if kind == "math":
        return MathVerifier(extract="boxed" if extract == "auto" else extract, markers=markers)
    if kind == "number":
        return NumberVerifier(extract="marker" if extract == "auto" else extract, markers=markers)
    where: Where = "whole" if extract == "auto" else extract
    return ExactVerifier(extract=where, markers=markers)


def _signs(markers: tuple[str, ...]) -> tuple[str, ...]:
    """The markers that open a step of their own: signs such as ``####``, not phrases, which stand within a step."""
    return tuple(marker for marker in markers if not any(character.isalpha() for character in marker))
