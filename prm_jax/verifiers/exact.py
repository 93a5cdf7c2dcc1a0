"""Answers that must be the reference's words."""

import dataclasses
import unicodedata
from collections.abc import Sequence

from prm_jax.verifiers.extraction import ANSWER_MARKERS, When, Where, check_place, find_candidates
from prm_jax.verifiers.verdict import NO_ANSWER, Verdict, broken, failed, judge_all, passed


@dataclasses.dataclass(frozen=True)
class ExactVerifier:
    """Compares text: runs of white space count as one space, and case is ignored on request.

    Attributes:
      extract: where the answer is, as for ``find_candidates``.
      markers: for ``extract="marker"`` and ``"ladder"``.
      ignore_case: compare casefolded.
      several: what several candidates are: ``"refuse"`` passes them only when all are right, ``"last"`` judges the
        last one.
    """

    extract: Where = "whole"
    markers: tuple[str, ...] = ANSWER_MARKERS
    ignore_case: bool = False
    several: When = "refuse"

    def __post_init__(self) -> None:
        check_place(self.extract, self.several)

    def verify(self, response: str, gold: str) -> Verdict:
        """A full score if the response's answer is the reference; ``"error"`` for an empty reference."""
        wanted = self._normal(gold)
        if not wanted:
            return broken("the reference answer is empty")
        candidates = find_candidates(response, self.extract, markers=self.markers, several=self.several)
        if not candidates:
            return failed(NO_ANSWER)
        return judge_all([passed() if self._normal(answer) == wanted else failed() for answer in candidates])

    def verify_many(self, responses: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """One verdict per pair."""
        return [self.verify(response, gold) for response, gold in zip(responses, golds, strict=True)]

    def check_references(self, golds: Sequence[str]) -> list[str]:
        """What is wrong with each reference: "" or that it is empty."""
        return ["" if self._normal(gold) else "it is empty" for gold in golds]

    def _normal(self, text: str) -> str:
        words = " ".join(unicodedata.normalize("NFC", text).split())
        return words.casefold() if self.ignore_case else words
