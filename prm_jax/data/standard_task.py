"""Tasks made of problems, a verifier and a splitter: what files give, and what users make in Python."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax.data.judging import AnyVerifier, check_verifier, make_verifier
from prm_jax.data.problems import (
    Overlap,
    Problem,
    Prompt,
    find_overlap,
    fingerprint,
    problem_hash,
    split_problems,
)
from prm_jax.data.records import BadLine
from prm_jax.data.splitters import make_splitter
from prm_jax.data.steps import StepSplitter
from prm_jax.errors import UserError
from prm_jax.verifiers.custom import judge
from prm_jax.verifiers.verdict import Verdict

StepChecker = Callable[[Problem, str], Sequence[bool] | None]
"""``checker(problem, response)``: whether each step of the response is right; None where that is not known."""


@dataclasses.dataclass(frozen=True, eq=False)
class StandardTask:
    """Problems with a verifier and a splitter; made by ``make_task`` and from files.

    Attributes:
      name: what the task is called in logs.
      train: training problems, in order.
      eval: evaluation problems, in order; none of their prompts is a training prompt.
      verifier: judges responses.
      splitter: cuts responses into steps.
      stop: strings that end a response.
      step_checker: judges steps, for tasks that can.
      alphabet: the characters of a character tokenizer for models trained from scratch; empty: the model brings its
        own tokenizer.
      overlap: prompts that occur more than once.
      skipped: bad records that were left out.
      remarks: what reading the problems had to decide.
    """

    name: str
    train: Sequence[Problem]
    eval: Sequence[Problem]
    verifier: AnyVerifier
    splitter: StepSplitter
    stop: tuple[str, ...] = ()
    step_checker: StepChecker | None = None
    alphabet: str = ""
    overlap: Overlap = Overlap((), ())
    skipped: tuple[BadLine, ...] = ()
    remarks: tuple[str, ...] = ()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of every prompt and answer."""
        return fingerprint(self.train, self.eval)

    @property
    def notes(self) -> list[str]:
        """What a user should know about the problems: duplicates, leaks, records left out, no evaluation."""
        notes = list(self.remarks)
        if self.skipped:
            notes.append(f"{len(self.skipped)} bad records were left out; the first: {self.skipped[0]}")
        if self.overlap.duplicates:
            count, first = len(self.overlap.duplicates), self.overlap.duplicates[0]
            notes.append(f"{count} prompts occur more than once, for example {' and '.join(first[:2])}")
        if self.overlap.leaks:
            count, first = len(self.overlap.leaks), self.overlap.leaks[0]
            notes.append(
                f"{count} evaluation prompts are also training prompts and were left out of training, for example "
                f"{' and '.join(first)}"
            )
        if not self.eval:
            notes.append("there are no evaluation problems")
        return notes

    def tokenizer(self) -> Any | None:
        """A character tokenizer if the task has an alphabet; None when the model brings its own."""
        if not self.alphabet:
            return None
        from prm_jax.models.tokenizer import CharTokenizer

        return CharTokenizer(self.alphabet)

    def verify(self, problem: Problem, response: str) -> float:
        """The verifier's score, in [0, 1]."""
        return self.verify_many([problem], [response])[0].score

    def verify_many(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response."""
        return judge(self.verifier, problems, responses)

    def step_labels(self, problem: Problem, response: str) -> list[bool] | None:
        """What the step checker says; None without one, or where it does not know.

        Raises:
          UserError: the checker returned another number of labels than the response has steps.
        """
        if self.step_checker is None:
            return None
        labels = self.step_checker(problem, response)
        if labels is None:
            return None
        steps = len(self.splitter(response))
        if len(labels) != steps:
            raise UserError(
                f"the step checker of the task {self.name!r} returned {len(labels)} labels for {steps} steps of "
                f"{response[:80]!r}; return one per step of the splitter"
            )
        return [bool(label) for label in labels]

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[tuple[Any, ...]]:
        """(prompt, worked solution) pairs for supervised training, on training problems drawn at random.

        Where a problem's metadata has ``"forced"``, spans of the solution that the model is not to learn, they come
        third.

        Raises:
          UserError: no problem has a solution.
        """
        solved = [problem for problem in self.train if problem.metadata.get("solution")]
        if not solved:
            raise UserError(
                f"the problems of {self.name!r} have no worked solutions to learn from: give each a solution, or set "
                "--sft.steps 0"
            )
        chosen = [solved[int(index)] for index in rng.integers(len(solved), size=count)]
        return [
            (
                problem.prompt,
                problem.metadata["solution"],
                *([spans] if (spans := problem.metadata.get("forced")) else []),
            )
            for problem in chosen
        ]


def make_task(
    problems: Iterable[Problem | tuple[Prompt, str] | Mapping[str, Any]],
    verifier: str | AnyVerifier | Callable[[Problem, str], Any],
    *,
    eval: Iterable[Problem | tuple[Prompt, str] | Mapping[str, Any]] | None = None,
    eval_fraction: float = 0.1,
    name: str = "task",
    splitter: str | StepSplitter | Callable[[str], Any] = "newline",
    step_checker: StepChecker | None = None,
    alphabet: str = "",
    stop: tuple[str, ...] = (),
) -> StandardTask:
    """Makes a task from problems and a way to judge responses.

    Args:
      problems: ``Problem`` objects, ``(prompt, answer)`` pairs, or mappings with ``"prompt"``, ``"answer"`` and
        optionally ``"id"`` and ``"solution"`` (a worked solution for the warm start); further keys go into the
        problem's ``metadata``. A prompt is text, a list of chat messages, or token ids.
      verifier: a function ``reward(problem, response)`` that returns a number in [0, 1], or whatever
        ``make_verifier`` accepts.
      eval: evaluation problems; None: a share of `problems`, chosen by hash. Training prompts that are also
        evaluation prompts are left out of training.
      eval_fraction: that share.
      name: what the task is called in logs.
      splitter: whatever ``make_splitter`` accepts.
      step_checker: ``checker(problem, response)`` -> whether each step is right, where that can be told.
      alphabet: characters of a tokenizer for models trained from scratch; ``"auto"``: those of the problems.
      stop: strings that end a response.

    Raises:
      UserError: no problems, one that cannot be read, or a verifier or splitter that fails on the first problem.
    """
    every = [as_problem(item, f"{name}/{index}") for index, item in enumerate(problems)]
    held_out = None if eval is None else [as_problem(item, f"{name}/eval/{i}") for i, item in enumerate(eval)]
    train, held_out, overlap = divide(every, held_out, eval_fraction, f"the task {name!r}")
    made = make_verifier(verifier)
    check_verifier(made, (train or held_out)[0], f"the task {name!r}")
    return StandardTask(
        name=name,
        train=train,
        eval=held_out,
        verifier=made,
        splitter=make_splitter(splitter),
        stop=stop,
        step_checker=step_checker,
        alphabet=find_alphabet([*train, *held_out]) if alphabet == "auto" else alphabet,
        overlap=overlap,
    )


def as_problem(item: Any, name: str) -> Problem:
    """A problem from any of the forms that ``make_task`` accepts.

    Raises:
      UserError: it has another form.
    """
    if isinstance(item, Problem):
        return item
    if isinstance(item, tuple | list) and len(item) == 2:
        item = {"prompt": item[0], "answer": item[1]}
    if not isinstance(item, Mapping) or not {"prompt", "answer"} <= item.keys():
        found = f"a mapping with {', '.join(map(str, item))}" if isinstance(item, Mapping) else repr(item)[:80]
        raise UserError(f"{name}: expected a Problem, a pair (prompt, answer) or a mapping with both, found {found}")
    prompt, answer = item["prompt"], item["answer"]
    if not isinstance(prompt, str):
        prompt = tuple(prompt)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise UserError(f"{name}: expected an answer that is text or a number, found {answer!r}")
    metadata = {key: value for key, value in item.items() if key not in ("prompt", "answer", "id")}
    return Problem(prompt, str(answer), str(item.get("id", name)), metadata)


def divide(
    problems: Sequence[Problem], held_out: Sequence[Problem] | None, eval_fraction: float, owner: str
) -> tuple[list[Problem], list[Problem], Overlap]:
    """(training problems, evaluation problems, prompts that occur twice), disjoint by prompt.

    Args:
      problems: training problems, or all problems when `held_out` is None.
      held_out: evaluation problems; None: a share of `problems`.
      eval_fraction: that share, in [0, 1].
      owner: where the problems come from, for messages.

    Raises:
      UserError: no training problems are left, though some are wanted.
    """
    if not 0.0 <= eval_fraction <= 1.0:
        raise UserError(f"eval_fraction must be in [0, 1], found {eval_fraction}")
    if not problems and not held_out:
        raise UserError(f"{owner} has no problems")
    if held_out is None:
        kept, others = split_problems(problems, eval_fraction)
        if not kept and eval_fraction < 1.0:
            raise UserError(
                f"all {len(others)} problems of {owner} went to evaluation; lower eval_fraction, or set it to 1 to "
                "train on none"
            )
        return kept, others, find_overlap(problems)
    keys = {problem_hash(problem) for problem in held_out}
    kept = [problem for problem in problems if problem_hash(problem) not in keys]
    if problems and not kept:
        raise UserError(
            f"no training problems are left: every prompt of {owner} is also an evaluation prompt; to evaluate on "
            "one file and train on none, give it alone with eval_fraction 1"
        )
    return kept, list(held_out), find_overlap(problems, held_out)


def find_alphabet(problems: Iterable[Problem]) -> str:
    """The characters of prompts, answers and solutions, sorted; chat messages and token ids have none."""
    found: set[str] = set()
    for problem in problems:
        prompt = problem.prompt if isinstance(problem.prompt, str) else ""
        found.update(prompt, problem.answer, str(problem.metadata.get("solution", "")))
    return "".join(sorted(found))
