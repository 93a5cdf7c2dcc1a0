"""Answers that are numbers, compared as exact fractions."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from fractions import Fraction

from prm_jax.errors import UserError
from prm_jax.verifiers.extraction import ANSWER_MARKERS, When, Where, check_place, find_candidates
from prm_jax.verifiers.number_text import Percent, parse_number, read_number
from prm_jax.verifiers.verdict import NO_ANSWER, Mode, Verdict, broken, check_choice, failed, judge_all, passed

_DIGIT = re.compile(r"[0-9]", re.ASCII)


@dataclasses.dataclass(frozen=True)
class NumberVerifier:
    """Compares numbers exactly.

    Attributes:
      extract: where the answer is, as for ``find_candidates``: a box, answer tags, ``####`` or "the answer is" by
        default.
      markers: what introduces an answer.
      mode: ``"lenient"`` reads numbers as ``read_number`` does, with units and words after them; ``"strict"`` as
        ``parse_number`` does: a number and nothing else. See ``docs/verifiers.md`` for the table.
      percent: what a percent sign means, in answers and references. In lenient mode 50% is also 0.5 where the reference
        is a number of at most 1 in size without a percent sign.
      tolerance: the largest relative difference that passes; 0 requires equality.
      several: what several candidates are: ``"refuse"`` passes them only when all are right, ``"last"`` judges the
        last one.
    """

    extract: Where = "ladder"
    markers: tuple[str, ...] = ANSWER_MARKERS
    mode: Mode = "lenient"
    percent: Percent = "strip"
    tolerance: float = 0.0
    several: When = "refuse"

    def __post_init__(self) -> None:
        check_place(self.extract, self.several)
        check_choice("mode", self.mode, ("lenient", "strict"))
        check_choice("percent", self.percent, ("strip", "ratio", "reject"))
        if not 0.0 <= self.tolerance < 1.0:
            raise UserError(f"the tolerance of a number verifier must be in [0, 1), found {self.tolerance}")

    def verify(self, response: str, gold: str) -> Verdict:
        """A full score if the response's answer equals the reference; ``"error"`` if that is not a number."""
        wanted = _reference(gold, self.percent)
        if wanted is None:
            return broken(f"the reference {gold[:80]!r} is not a number")
        candidates = find_candidates(response, self.extract, markers=self.markers, several=self.several)
        if not candidates:
            return failed(NO_ANSWER)
        verdicts = [(answer, self._compare(answer, gold, wanted)) for answer in candidates]
        # "The answer is as follows" introduces no number, where another phrase does.
        said = [v for answer, v in verdicts if v.detail != _UNREADABLE.detail or _DIGIT.search(answer)]
        return judge_all(said if said and self.mode == "lenient" else [v for _, v in verdicts])

    def verify_many(self, responses: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """One verdict per pair."""
        return [self.verify(response, gold) for response, gold in zip(responses, golds, strict=True)]

    def check_references(self, golds: Sequence[str]) -> list[str]:
        """What is wrong with each reference: "" or that it is not a number."""
        return [
            "" if _reference(gold, self.percent) is not None else f"it is not a number: {gold[:80]!r}" for gold in golds
        ]

    def _compare(self, answer: str, gold: str, wanted: Fraction) -> Verdict:
        if self.mode == "strict":
            value = parse_number(answer, percent=self.percent)
            return _UNREADABLE if value is None else self._verdict(value, wanted)
        reading = read_number(answer)
        if reading is None:
            return _UNREADABLE
        if reading.unit == (("percent", 1),):
            if self.percent == "reject":
                return _UNREADABLE
            value = reading.value / 100 if self.percent == "ratio" else reading.value
            ratio = abs(wanted) <= 1 and "%" not in gold and self._verdict(reading.value / 100, wanted).score
            return passed() if ratio else self._verdict(value, wanted)
        return self._verdict(reading.value, wanted)

    def _verdict(self, value: Fraction, wanted: Fraction) -> Verdict:
        return passed() if abs(value - wanted) <= Fraction(self.tolerance) * abs(wanted) else failed()


_UNREADABLE = failed("the answer is not a number")


@functools.lru_cache(maxsize=65536)
def _reference(gold: str, percent: Percent) -> Fraction | None:
    return parse_number(gold, percent=percent)
