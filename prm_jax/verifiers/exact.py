"""Answers that must be the reference's words."""

import dataclasses
import unicodedata
from collections.abc import Sequence

from prm_jax.verifiers.extraction import ANSWER_MARKERS, Where, find_answer
from prm_jax.verifiers.verdict import Verdict, broken, failed, passed


@dataclasses.dataclass(frozen=True)
class ExactVerifier:
    """Compares words: white space around and between them is levelled, and case if so wished.

    Attributes:
      extract: where the answer stands, as for ``find_answer``.
      markers: for ``extract="marker"``.
      ignore_case: compare casefolded.
    """

    extract: Where = "whole"
    markers: tuple[str, ...] = ANSWER_MARKERS
    ignore_case: bool = False

    def verify(self, response: str, gold: str) -> Verdict:
        """A full score if the response's answer is the reference; ``"error"`` for an empty reference."""
        wanted = self._normal(gold)
        if not wanted:
            return broken("the reference answer is empty")
        answer = find_answer(response, self.extract, markers=self.markers)
        if answer is None:
            return failed("no answer")
        return passed() if self._normal(answer) == wanted else failed()

    def verify_many(self, responses: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """One verdict a pair."""
        return [self.verify(response, gold) for response, gold in zip(responses, golds, strict=True)]

    def _normal(self, text: str) -> str:
        words = " ".join(unicodedata.normalize("NFC", text).split())
        return words.casefold() if self.ignore_case else words
