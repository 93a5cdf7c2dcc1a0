"""Partial solutions of a language model, requests for steps and scores, and their results, checked and counted.

Text is token ids here. The caller provides two functions, one that proposes steps and one that scores prefixes, each
called once for all questions; the model may run in this process or on a server.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from prm_jax.errors import UserError

Tokens = tuple[int, ...]


class Step(NamedTuple):
    """One proposed step.

    Attributes:
      tokens: its ids, the step's boundary or the end of text included; not empty.
      logp: sum of their log-probabilities.
      finished: nothing follows it.
    """

    tokens: Tokens
    logp: float
    finished: bool


class Partial(NamedTuple):
    """The beginning of a solution, or a whole one.

    Attributes:
      question: its number.
      steps: the ids of each step.
      logp: sum of all log-probabilities.
      finished: nothing follows it.
    """

    question: int
    steps: tuple[Tokens, ...] = ()
    logp: float = 0.0
    finished: bool = False

    @property
    def tokens(self) -> Tokens:
        """All ids, in order."""
        return tuple(token for step in self.steps for token in step)

    def then(self, step: Step) -> "Partial":
        """With one more step."""
        return Partial(self.question, (*self.steps, step.tokens), self.logp + step.logp, step.finished)


class Ask(NamedTuple):
    """A request for steps.

    Attributes:
      partial: the prefix to continue.
      stream: differs between all requests of one question, and is the same in every run, whatever the other questions
        are: together with the question's number it can seed the random numbers.
    """

    partial: Partial
    stream: int


ProposeFn = Callable[[Sequence[Ask], int, bool], Sequence[Sequence[Step]]]
"""(requests, number of proposals for each, whether to complete the solution) -> proposals for each request."""

ScorePartials = Callable[[Sequence[Partial]], Sequence[float]]
"""Prefixes of solutions -> the value of each, higher is better."""


class Candidate(NamedTuple):
    """A solution that a search ends with.

    Attributes:
      partial: the solution.
      score: its value.
    """

    partial: Partial
    score: float


class DrawnNode(NamedTuple):
    """One node of a drawn tree.

    Attributes:
      parent: index of its parent in the list, -1 for the root; smaller than its own.
      partial: the prefix.
      visits: how often a value was backed up through it, or prefixes scored at and below it.
      value: its value; None where nothing was scored.
    """

    parent: int
    partial: Partial
    visits: float
    value: float | None


DrawnTree = tuple[DrawnNode, ...]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
      candidates: of each question, best first.
      tokens: [P] i64, tokens generated.
      proposals: [P] i64, steps (or whole solutions) generated.
      scored: [P] i64, prefixes scored.
      trees: of each question, for searches that keep a tree; else empty.
    """

    candidates: tuple[tuple[Candidate, ...], ...]
    tokens: np.ndarray
    proposals: np.ndarray
    scored: np.ndarray
    trees: tuple[DrawnTree, ...] = ()


def check_counts(**counts: int) -> None:
    """Raises ValueError, by name, for numbers below 1."""
    low = [f"{name}={count}" for name, count in counts.items() if count < 1]
    if low:
        raise ValueError(f"{' and '.join(low)}: expected at least 1")


class Calls:
    """Both functions of the caller, with their results checked and counted.

    Args:
      propose: produces steps.
      score: scores prefixes.
      num_questions: P.
    """

    def __init__(self, propose: ProposeFn, score: ScorePartials, num_questions: int) -> None:
        self._propose, self._score = propose, score
        self.tokens, self.proposals, self.scored = np.zeros((3, num_questions), np.int64)

    def propose(
        self, asks: Sequence[Ask], count: int, *, whole: bool = False, distinct: bool = True
    ) -> list[list[Partial]]:
        """The requests' prefixes with each of the proposed steps, without empty ones and, if `distinct`, duplicates.

        Raises:
          ValueError: another number of answers than requests, or more steps than asked for.
        """
        answers = self._propose(asks, count, whole)
        if len(answers) != len(asks) or any(len(steps) > count for steps in answers):
            raise ValueError(f"the proposer must answer each of {len(asks)} requests with at most {count} steps")
        found = []
        for (partial, _), steps in zip(asks, answers, strict=True):
            self.tokens[partial.question] += sum(len(step.tokens) for step in steps)
            self.proposals[partial.question] += len(steps)
            real = [step for step in steps if step.tokens]
            kept = list({step.tokens: step for step in reversed(real)}.values())[::-1] if distinct else real
            found.append([partial.then(step) for step in kept])
        return found

    def score(self, partials: Sequence[Partial], by: ScorePartials | None = None) -> list[float]:
        """A value of each prefix, by another scorer if one is given.

        Raises:
          UserError: a value is not finite.
          ValueError: the scorer does not return one value per prefix.
        """
        if not partials:
            return []
        values = np.asarray((by or self._score)(partials), np.float64)
        if values.shape != (len(partials),):
            raise ValueError(
                f"the scorer returned shape {values.shape} for {len(partials)} prefixes; expected ({len(partials)},), "
                "one value per prefix"
            )
        for partial, value in zip(partials, values.tolist(), strict=True):
            self.scored[partial.question] += 1
            if not math.isfinite(value):
                raise UserError(
                    f"the scorer returned {value} for question {partial.question}, a prefix of {len(partial.steps)} "
                    "steps: scores must be finite"
                )
        return values.tolist()

    def result(self, candidates: Sequence[Candidate]) -> Found:
        """The candidates of each question, best first; equally good ones in the order given."""
        own: list[list[Candidate]] = [[] for _ in self.tokens]
        for candidate in candidates:
            own[candidate.partial.question].append(candidate)
        ranked = tuple(tuple(sorted(each, key=lambda c: -c.score)) for each in own)
        return Found(ranked, self.tokens, self.proposals, self.scored)
