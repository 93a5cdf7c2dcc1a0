"""The result of checking one answer: a score, and whether the check itself can be trusted."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

Status = Literal["pass", "fail", "timeout", "error"]

NO_ANSWER = "no answer"
"""The detail of a verdict on a response in which no answer was found."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier found.

    Attributes:
      score: in [0, 1]; 0 unless the status is ``"pass"`` (or a verifier with partial credit gave some).
      status: ``"pass"`` or ``"fail"``: the answer was compared with the reference.  ``"timeout"``: checking
        the answer took longer, or more memory, than it may; that is the answer's own doing, so a caller may
        count it as wrong. ``"error"``: the reference or the verifier is at fault; the sample says nothing
        about the policy and must be masked out of learning, never counted as a reward of 0.
      detail: one line for logs; empty when there is nothing to say.
    """

    score: float
    status: Status
    detail: str = ""

    @property
    def usable(self) -> bool:
        """Whether the score may be learned from: everything but ``"error"``."""
        return self.status != "error"

    @property
    def no_answer(self) -> bool:
        """Whether no answer was found in the response, so that nothing was compared.

        Most responses of a batch being so means that the prompt, the verifier's ``extract`` or the length limit does
        not fit the model.
        """
        return self.status == "fail" and self.detail.startswith(NO_ANSWER)


class Verifier(Protocol):
    """Compares responses with reference answers."""

    def verify(self, response: str, gold: str) -> Verdict:
        """The verdict on one response."""
        ...

    def verify_many(self, responses: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """One verdict a pair, in order."""
        ...


def passed(detail: str = "") -> Verdict:
    """A full score."""
    return Verdict(1.0, "pass", detail)


def failed(detail: str = "") -> Verdict:
    """A wrong or missing answer."""
    return Verdict(0.0, "fail", detail)


def broken(detail: str) -> Verdict:
    """A check that could not be made; not the answer's fault."""
    return Verdict(0.0, "error", detail)
