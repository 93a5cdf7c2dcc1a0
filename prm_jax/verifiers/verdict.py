"""The result of checking one answer: a score, and whether the check itself can be trusted."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

from prm_jax.errors import UserError

Status = Literal["pass", "fail", "timeout", "error"]

NO_ANSWER = "no answer"
"""How the detail of a verdict begins when no answer was found in the response, or several different ones."""

Mode: TypeAlias = Literal["lenient", "strict"]
"""How much besides the bare answer a verifier accepts: units, words and roundings, or none of them."""


def check_choice(option: str, value: object, choices: Sequence[str]) -> None:
    """Refuses an option of a verifier that is none of its choices.

    Raises:
      UserError: names the option, the value found and the choices.
    """
    if value not in choices:
        raise UserError(f"the option {option!r} of a verifier: expected one of {', '.join(choices)}, found {value!r}")


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier found.

    Attributes:
      score: in [0, 1]; 0 unless the status is ``"pass"`` (or a verifier with partial credit gave some).
      status: ``"pass"`` or ``"fail"``: the answer was compared with the reference. ``"timeout"``: checking the answer
        exceeded its time or memory limit; the answer caused that, so a caller may count it as wrong. ``"error"``: the
        reference or the verifier is at fault; the sample says nothing about the policy and must be masked out of
        learning, never counted as a reward of 0.
      detail: one line for logs; may be empty.
    """

    score: float
    status: Status
    detail: str = ""

    @property
    def usable(self) -> bool:
        """Whether the score may be learned from: every status except ``"error"``."""
        return self.status != "error"

    @property
    def no_answer(self) -> bool:
        """Whether no answer, or no single one, was found in the response, so that nothing was compared.

        When this holds for most responses of a batch, the prompt, the verifier's ``extract`` or the length limit does
        not fit the model.
        """
        return self.status == "fail" and self.detail.startswith(NO_ANSWER)


class Verifier(Protocol):
    """Compares responses with reference answers."""

    def verify(self, response: str, gold: str) -> Verdict:
        """The verdict on one response."""
        ...

    def verify_many(self, responses: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """One verdict per pair, in order."""
        ...


def passed(detail: str = "") -> Verdict:
    """A full score."""
    return Verdict(1.0, "pass", detail)


def failed(detail: str = "") -> Verdict:
    """A wrong or missing answer."""
    return Verdict(0.0, "fail", detail)


def broken(detail: str) -> Verdict:
    """A check that could not be made, through no fault of the answer."""
    return Verdict(0.0, "error", detail)


def judge_all(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a response from those on all its candidates: it passes when each of them does."""
    for verdict in verdicts:
        if verdict.status == "error":
            return verdict
    worst = next((verdict for verdict in verdicts if verdict.status != "pass"), None)
    if worst is None:
        return verdicts[0]
    if len(verdicts) > 1:
        return dataclasses.replace(worst, detail=f"{NO_ANSWER}: several different ones")
    return worst
