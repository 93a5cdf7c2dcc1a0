"""Chain sums written out step by step, with a careless teacher and exact truth about every step.

A problem is ``7+5+9=`` and its solution ``7+5=12;12+9=21#21``: the running total after each operand, then the answer.
The careless teacher drops the carry with some probability whenever the units overflow and continues from the wrong
total. A model trained on its demonstrations has a wrong mode and some right samples, which sparse rewards can amplify
and a process reward model can find fault with, and every step can be checked without a model.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from prm_jax.data.problems import Problem, is_eval
from prm_jax.data.procedural import DrawnProblems, DrawnTask, draw_distinct
from prm_jax.data.steps import StepSplitter
from prm_jax.errors import UserError
from prm_jax.verifiers.verdict import NO_ANSWER, Verdict, failed, passed

ALPHABET = "0123456789+=;#"
"""Every character of a prompt or response; with padding, begin and end a vocabulary of 17."""

_SUM = re.compile(r"(0|[1-9][0-9]{0,5})\+(0|[1-9][0-9]{0,5})=(0|[1-9][0-9]{0,5})", re.ASCII)
_ANSWER = re.compile(r"#(0|[1-9][0-9]{0,5})", re.ASCII)


class CarryTask(DrawnTask):
    """The built-in task: sums of one-digit operands.

    Evaluation problems are those whose prompt's hash falls into the evaluation share (``problems.is_eval``), which no
    seed changes; so the two sets are disjoint even between runs, and short problems, of which there are few, are
    divided like the others. Training problems are drawn with replacement, evaluation problems without.

    Args:
      min_operands, max_operands: the number of operands, uniform in this range; 3-5 by default, 8-9 (about 60 tokens
        per response) or 12 (11 additions) for a long horizon; 2 to 32.
      num_train: number of training problems in an epoch; made when they are read.
      num_eval: number of evaluation problems.
      seed: of the problems drawn.
      drop_carry: in [0, 1], the probability that the teacher drops a carry.

    Raises:
      UserError: for an option out of range, or more evaluation problems than there are.
    """

    def __init__(
        self,
        min_operands: int = 3,
        max_operands: int = 5,
        *,
        num_train: int = 1 << 17,
        num_eval: int = 512,
        seed: int = 0,
        drop_carry: float = 0.6,
    ) -> None:
        if not 2 <= min_operands <= max_operands <= 32:
            raise UserError(
                f"the carry task needs 2 <= min_operands <= max_operands <= 32, found {min_operands} and {max_operands}"
            )
        if not 0.0 <= drop_carry <= 1.0:
            raise UserError(f"drop_carry is a probability in [0, 1], found {drop_carry}")
        if num_train < 1 or num_eval < 1:
            raise UserError(f"num_train and num_eval must be at least 1, found {num_train} and {num_eval}")
        self.name = "carry"
        self.alphabet = ALPHABET
        self.splitter = StepSplitter("tag", tags=(";",), answer_markers=("#",))
        self.stop: tuple[str, ...] = ()
        self.drop_carry = drop_carry
        self.min_operands, self.max_operands, self.seed = min_operands, max_operands, seed
        draw = functools.partial(_draw, min_operands, max_operands)
        key = ("carry", min_operands, max_operands, seed)
        self._train = DrawnProblems(num_train, draw, lambda row: not is_eval(_prompt(row)), _problem, (*key, "train"))
        # Where one length runs out of evaluation problems, the others fill up.
        rows = draw_distinct(draw, lambda row: is_eval(_prompt(row)), tuple, num_eval, (*key, "eval"))
        if len(rows) < num_eval:
            raise UserError(
                f"the carry task has too few evaluation problems with {min_operands} to {max_operands} operands: "
                f"{num_eval} wanted, about {len(rows)} exist; lower num_eval or raise max_operands"
            )
        self._eval = [_problem(row) for row in rows]

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt, in characters, which are tokens here."""
        return 2 * self.max_operands

    @property
    def max_response_tokens(self) -> int:
        """The longest correct response, in characters, with one more for the end of text."""
        return len(self.solve(_problem((9,) * self.max_operands))) + 1

    def tokenizer(self) -> Any:
        """A character tokenizer over ``ALPHABET``."""
        from prm_jax.models.tokenizer import CharTokenizer

        return CharTokenizer(ALPHABET)

    def solve(self, problem: Problem) -> str:
        """The right response."""
        return _write(operands(problem), lambda: False)

    def demonstration(self, problem: Problem, rng: np.random.Generator) -> str:
        """What the careless teacher writes; one draw from ``rng`` for every carry.

        Whenever the units of the running total and of the operand add up to ten or more, the carry is dropped with
        probability ``drop_carry``: the total written is 10 too small, and the teacher continues from it.
        """
        return _write(operands(problem), lambda: rng.random() < self.drop_carry)

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """(prompt, response) pairs for supervised training, on training problems drawn at random."""
        indices = rng.integers(len(self._train), size=count)
        rows = [self._train.row(int(index)) for index in indices]
        slips = iter((rng.random((count, self.max_operands)) < self.drop_carry).ravel().tolist())
        return [(_prompt(row), _write(row, lambda: next(slips))) for row in rows]

    def verify(self, problem: Problem, response: str) -> float:
        """1.0 if the response gives one answer, after its only ``#``, and that is the sum; otherwise 0.0."""
        return self._verdict(problem, response).score

    def verify_many(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response; never ``"error"`` or ``"timeout"``."""
        return [self._verdict(p, r) for p, r in zip(problems, responses, strict=True)]

    def step_labels(
        self, problem: Problem, response: str, *, truth: Literal["absolute", "local"] = "absolute"
    ) -> list[bool]:
        """Whether each step of ``splitter(response)`` is right.

        Addition k must be ``a+b=c`` with b the operand of that place; the answer must come after the last addition.
        Under ``"absolute"`` a must be the true running total and c the true next one, so hardly anything is right after
        an error; the answer must be the true sum. Under ``"local"`` a must be the total that the response itself last
        wrote, and a+b=c; the answer must repeat that total. So ``"local"`` marks where errors are made and
        ``"absolute"`` what they affect; both agree on the first error (``first_error``), because every total before it
        is true. Text that is not a step of this form is wrong, and so is any step after the answer; under ``"local"``
        also the step after such text, which has no total to continue from.

        Args:
          problem: a problem of this task.
          response: any text.
          truth: ``"absolute"`` or ``"local"``.

        Returns:
          One bool per step; [] for the empty response.
        """
        row = operands(problem)
        totals = np.cumsum(row).tolist()
        written: int | None = totals[0]
        labels: list[bool] = []
        for index, (start, end) in enumerate(self.splitter(response)):
            before = totals[index] if truth == "absolute" and index < len(row) else written
            right, written = _judge(response[start:end], row, index, before)
            labels.append(right)
        return labels

    def first_error(self, problem: Problem, response: str) -> int:
        """The index of the first wrong step; -1 if every step written is right.

        A response that stops early without a wrong step has -1 although its outcome is 0.
        """
        labels = self.step_labels(problem, response)
        return labels.index(False) if False in labels else -1

    def _verdict(self, problem: Problem, response: str) -> Verdict:
        _, *answers = response.split("#")
        if len(answers) != 1:
            return failed(f"{len(answers)} answers" if answers else NO_ANSWER)
        return passed() if answers[0].strip() == problem.answer else failed()


def operands(problem: Problem) -> tuple[int, ...]:
    """The operands of a problem, read from its prompt."""
    prompt = problem.prompt
    if not isinstance(prompt, str) or not re.fullmatch(r"[0-9](\+[0-9])+=", prompt, re.ASCII):
        raise UserError(f"{prompt!r} is not a problem of the carry task; expected one like '7+5+9='")
    return tuple(int(digit) for digit in prompt[:-1].split("+"))


def _draw(low: int, high: int, words: Iterator[int]) -> tuple[int, ...]:
    length = low + next(words) % (high - low + 1)
    return tuple(next(words) % 10 for _ in range(length))


def _prompt(row: Sequence[int]) -> str:
    return "+".join(map(str, row)) + "="


def _problem(row: Sequence[int]) -> Problem:
    prompt = _prompt(row)
    return Problem(prompt, str(sum(row)), f"carry/{prompt[:-1]}", {"operands": list(row)})


def _write(row: Sequence[int], slips: Callable[[], bool]) -> str:
    """Writes out the sum; ``slips()`` says at each carry whether to drop it."""
    total = row[0]
    steps = []
    for operand in row[1:]:
        result = total + operand
        if total % 10 + operand >= 10 and slips():
            result -= 10
        steps.append(f"{total}+{operand}={result}")
        total = result
    return ";".join(steps) + f"#{total}"


def _judge(text: str, row: Sequence[int], index: int, before: int | None) -> tuple[bool, int | None]:
    """(whether a step is right, the total it wrote); ``before`` is the total it must start from."""
    if index < len(row) - 1:
        match = _SUM.fullmatch(text.rstrip(";"))
        if match is None:
            return False, None
        a, b, c = (int(group) for group in match.groups())
        return a == before and b == row[index + 1] and a + b == c, c
    match = _ANSWER.fullmatch(text.rstrip(";"))
    if match is None or index >= len(row):
        return False, None
    return int(match.group(1)) == before, int(match.group(1))
