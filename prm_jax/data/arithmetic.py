"""Sums, differences and products as few-shot or chat prompts, for pretrained models too small for word problems."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from prm_jax.data.problems import EVAL_FRACTION, Problem, Prompt, is_eval
from prm_jax.data.procedural import DrawnProblems, DrawnTask, draw_distinct
from prm_jax.data.steps import StepSplitter
from prm_jax.errors import UserError
from prm_jax.verifiers.extraction import Where
from prm_jax.verifiers.number import NumberVerifier
from prm_jax.verifiers.verdict import Verdict

_SIGNS = {"add": "+", "sub": "-", "mul": "\u00d7"}
_STEP = re.compile(r"\s*(-?[0-9]{1,18}) ([-+\u00d7]) ([0-9]{1,18}) = (-?[0-9]{1,18})\s*", re.ASCII)
_INSTRUCTION = "Reply with the number only."
_STEPS_INSTRUCTION = "Write out each step, then the answer after ####."


class ArithmeticTask(DrawnTask):
    """Chains of one operation on numbers of a given length.

    With ``style="equation"`` a prompt consists of worked examples and a question, one per line::

        24 + 51 = 75
        63 + 18 =

    ``"question"`` writes ``Q: What is 63 + 18?`` and ``A:``; ``"chat"`` asks in one chat message, without examples.
    With ``steps`` the examples write out every intermediate result (``2 + 3 + 4: 2 + 3 = 5; 5 + 4 = 9 #### 9``), the
    responses' steps can be judged exactly, and ``demonstrations`` are written likewise.

    Problems are divided into training and evaluation by the hash of their operands, in which the order of summands and
    factors does not count, so that no evaluation problem is a reordered training problem; the examples in the
    prompt are of neither.

    Args:
      operation: ``"add"``, ``"sub"`` or ``"mul"``; a difference of two numbers is never negative.
      digits: of every operand, exactly; 1 to 6.
      terms: operands; 2 to 8.
      shots: worked examples before the question; none in a chat.
      style: of the prompt.
      steps: write out intermediate results.
      num_train: training problems in an epoch; they are made when they are read, with replacement.
      num_eval: maximum number of evaluation problems; all different, so fewer where few exist (1-digit operands).
      seed: of the problems and the examples.

    Raises:
      UserError: for an option out of range.
    """

    def __init__(
        self,
        operation: Literal["add", "sub", "mul"] = "add",
        *,
        digits: int = 2,
        terms: int = 2,
        shots: int = 4,
        style: Literal["equation", "question", "chat"] = "equation",
        steps: bool = False,
        num_train: int = 1 << 14,
        num_eval: int = 256,
        seed: int = 0,
    ) -> None:
        _check_options(operation, digits, terms, shots, style, num_train, num_eval)
        self.name = "arithmetic"
        self.operation, self.digits, self.terms, self.style, self.steps = operation, digits, terms, style, steps
        self.splitter = StepSplitter("tag", tags=(";",), answer_markers=("####",))
        self.stop: tuple[str, ...] = () if style == "chat" else ("\n",)
        key = ("arithmetic", operation, digits, terms, style, bool(steps), shots, seed)
        self._shots = [] if style == "chat" else self._examples(shots, key)
        self._header = "".join(self._question(row) + " " + self._solution(row) + "\n" for row in self._shots)
        used = {self._identity(row) for row in self._shots}

        def accepted(held_out: bool, row: tuple[int, ...]) -> bool:
            return self._is_eval(row) == held_out and self._identity(row) not in used

        self._train = DrawnProblems(
            num_train, self._draw, lambda row: accepted(False, row), self._problem, (*key, "train")
        )
        rows = draw_distinct(self._draw, lambda row: accepted(True, row), tuple, num_eval, (*key, "eval"))
        self._eval = [self._problem(row) for row in rows]
        where: Where = "marker" if steps else ("last_number" if style == "chat" else "whole")
        self._verifier = NumberVerifier(extract=where, markers=("####",), mode="strict")

    def tokenizer(self) -> None:
        """None: the model brings its tokenizer."""
        return None

    def verify(self, problem: Problem, response: str) -> float:
        """1.0 if the answer is right, otherwise 0.0.

        The answer is the first line, which must be a number and nothing else; with ``steps``, what follows ``####`` on
        it; in a chat without steps, the last number of the response.
        """
        return self.verify_many([problem], [response])[0].score

    def verify_many(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response."""
        answers = [self._visible(response) for response in responses]
        return self._verifier.verify_many(answers, [problem.answer for problem in problems])

    def step_labels(self, problem: Problem, response: str) -> list[bool] | None:
        """Whether each step of ``splitter(response)`` is right; None without ``steps``.

        A step must continue from the true result so far with the next operand, and the answer must come last; so every
        step after an error is wrong unless it starts from the true result again.
        """
        if not self.steps:
            return None
        row = problem.metadata["operands"]
        results = self._results(row)
        labels = []
        for index, (start, end) in enumerate(self.splitter(response)):
            text = response[start:end].strip().removesuffix(";")
            if index < len(row) - 1:
                wanted = (str(results[index]), _SIGNS[self.operation], str(row[index + 1]), str(results[index + 1]))
                match = _STEP.fullmatch(text)
                labels.append(match is not None and match.groups() == wanted)
            else:
                labels.append(index == len(row) - 1 and text.split() == ["####", str(results[-1])])
        return labels

    def first_error(self, problem: Problem, response: str) -> int | None:
        """The index of the first wrong step, -1 if every step written is right; None without ``steps``."""
        labels = self.step_labels(problem, response)
        return None if labels is None else (labels.index(False) if False in labels else -1)

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[tuple[Prompt, str]]:
        """(prompt, right response) pairs for supervised training, on training problems drawn at random."""
        rows = [self._train.row(int(index)) for index in rng.integers(len(self._train), size=count)]
        lead, end = (" ", "\n") if self.style != "chat" else ("", "")
        return [(self._problem(row).prompt, lead + self._solution(row) + end) for row in rows]

    def _examples(self, count: int, key: tuple[Any, ...]) -> list[tuple[int, ...]]:
        # Drawn from the training side, so that evaluation problems do not depend on how many examples there are.
        rows = draw_distinct(
            self._draw, lambda row: not self._is_eval(row), self._identity, count, (*key[:4], key[-1], "shots")
        )
        if len(rows) < count:
            raise UserError(f"shots is {count}, but only about {len(rows)} different worked examples exist; lower it")
        return rows

    def _draw(self, stream: Iterator[int]) -> tuple[int, ...]:
        low = 10 ** (self.digits - 1)
        row = [low + next(stream) % (9 * low) for _ in range(self.terms)]
        return tuple(sorted(row, reverse=True) if self.operation == "sub" and self.terms == 2 else row)

    def _identity(self, row: Sequence[int]) -> tuple[int, ...]:
        return tuple(row) if self.operation == "sub" else tuple(sorted(row))

    def _is_eval(self, row: Sequence[int]) -> bool:
        return is_eval(f"{self.operation} {self._identity(row)}", EVAL_FRACTION)

    def _expression(self, row: Sequence[int]) -> str:
        return f" {_SIGNS[self.operation]} ".join(map(str, row))

    def _question(self, row: Sequence[int]) -> str:
        if self.style == "equation":
            return self._expression(row) + (":" if self.steps else " =")
        return f"Q: What is {self._expression(row)}?\nA:"

    def _solution(self, row: Sequence[int]) -> str:
        results = self._results(row)
        if not self.steps:
            return str(results[-1])
        sign = _SIGNS[self.operation]
        steps = [f"{results[k]} {sign} {row[k + 1]} = {results[k + 1]}" for k in range(len(row) - 1)]
        return "; ".join(steps) + f" #### {results[-1]}"

    def _results(self, row: Sequence[int]) -> list[int]:
        results = [row[0]]
        for operand in row[1:]:
            change = {"add": results[-1] + operand, "sub": results[-1] - operand, "mul": results[-1] * operand}
            results.append(change[self.operation])
        return results

    def _problem(self, row: Sequence[int]) -> Problem:
        expression = self._expression(row)
        prompt: Prompt = self._header + self._question(row)
        if self.style == "chat":
            instruction = _STEPS_INSTRUCTION if self.steps else _INSTRUCTION
            prompt = ({"role": "user", "content": f"What is {expression}? {instruction}"},)
        answer = str(self._results(row)[-1])
        return Problem(prompt, answer, f"arithmetic/{expression.replace(' ', '')}", {"operands": list(row)})

    def _visible(self, response: str) -> str:
        """The part of a response that counts: its first line, or all of it in a chat."""
        return response if self.style == "chat" else response.strip().split("\n", 1)[0]


def _check_options(
    operation: str, digits: int, terms: int, shots: int, style: str, num_train: int, num_eval: int
) -> None:
    if operation not in _SIGNS:
        raise UserError(f"the operations of the arithmetic task are {', '.join(_SIGNS)}, found {operation!r}")
    if style not in ("equation", "question", "chat"):
        raise UserError(f"the styles of the arithmetic task are equation, question and chat, found {style!r}")
    ranges = {
        "digits": (digits, 1, 6),
        "terms": (terms, 2, 8),
        "shots": (shots, 0, 64),
        "num_train": (num_train, 1, 1 << 40),
        "num_eval": (num_eval, 1, 1 << 20),
    }
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise UserError(f"the arithmetic task needs {low} <= {name} <= {high}, found {value}")
