"""Verifiers of the user's: functions as verifiers, and weighted combinations of several."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from prm_jax.errors import UserError
from prm_jax.verifiers.verdict import Verdict, Verifier, broken, failed, passed


@runtime_checkable
class ProblemVerifier(Protocol):
    """Judges responses by the whole problem and not by its reference answer alone."""

    def verify_problems(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per (problem, response), in order."""
        ...


def judge(verifier: Verifier | ProblemVerifier, problems: Sequence[Any], responses: Sequence[str]) -> list[Verdict]:
    """One verdict per response, from either kind of verifier.

    Args:
      verifier: gets the problems, or their ``answer`` where it compares with references.
      problems: each with a text ``answer``.
      responses: as many.
    """
    if isinstance(verifier, ProblemVerifier):
        return verifier.verify_problems(problems, responses)
    return verifier.verify_many(responses, [problem.answer for problem in problems])


@dataclasses.dataclass(frozen=True)
class FunctionVerifier:
    """A function ``reward(problem, response)`` as a verifier.

    Attributes:
      function: returns a number in [0, 1], a bool, or a ``Verdict``. An exception, and a result that is none of
        these, gives a verdict with status ``"error"``, so that the sample is left out of learning instead of counting
        as a wrong answer.
      name: for messages and descriptions.
    """

    function: Callable[[Any, str], float | bool | Verdict]
    name: str = "function"

    def verify_problems(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per (problem, response)."""
        return [self._verdict(problem, response) for problem, response in zip(problems, responses, strict=True)]

    def _verdict(self, problem: Any, response: str) -> Verdict:
        try:
            score = self.function(problem, response)
            if isinstance(score, Verdict):
                return score
            value = float(score)
        except Exception as error:
            return broken(f"{self.name} raised {type(error).__name__}: {error}")
        if not 0.0 <= value <= 1.0:  # NaN, too
            return broken(f"{self.name} returned {value}; expected a number in [0, 1]")
        if value == 1.0:
            return passed()
        return failed() if value == 0.0 else Verdict(value, "fail", "partial credit")


@dataclasses.dataclass(frozen=True)
class WeightedVerifier:
    """The weighted mean of several verifiers' scores.

    Attributes:
      parts: the verifiers and their weights, which are positive; the weights need not add up to 1.

    Raises:
      UserError: no parts, or a weight that is not a positive number.
    """

    parts: tuple[tuple[Verifier | ProblemVerifier, float], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise UserError("a weighted verifier needs at least one part")
        for _, weight in self.parts:
            if not (weight > 0 and math.isfinite(weight)):
                raise UserError(f"the weight of a verifier must be a positive number, found {weight}")

    def verify_problems(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per (problem, response); ``"error"`` or ``"timeout"`` where any part gives it."""
        columns = [judge(verifier, problems, responses) for verifier, _ in self.parts]
        return [self._combined(row) for row in zip(*columns, strict=True)]

    def _combined(self, verdicts: Sequence[Verdict]) -> Verdict:
        for status in ("error", "timeout"):
            for verdict in verdicts:
                if verdict.status == status:
                    return verdict
        weights = [weight for _, weight in self.parts]
        terms = zip(verdicts, weights, strict=True)
        score = math.fsum(verdict.score * weight for verdict, weight in terms) / math.fsum(weights)
        if all(verdict.status == "pass" for verdict in verdicts):
            return passed()
        details = dict.fromkeys(verdict.detail for verdict in verdicts if verdict.detail)
        return Verdict(min(score, 1.0), "fail", "; ".join(details))
