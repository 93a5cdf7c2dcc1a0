"""Answers that are numbers, compared as exact fractions."""

import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, TypeAlias

from prm_jax.verifiers.extraction import ANSWER_MARKERS, Where, find_answer
from prm_jax.verifiers.verdict import Verdict, broken, failed, passed

Percent: TypeAlias = Literal["strip", "ratio", "reject"]
"""What 50% is: 50 (the sign is a unit), 1/2, or no number."""

MAX_LENGTH = 300
"""Longer texts are no numbers; keeps exact arithmetic cheap whatever a model writes."""

MAX_EXPONENT = 300

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_PLAIN = re.compile(rf"({_DECIMAL})(?:[eE]([-+]?[0-9]{{1,4}}))?", re.ASCII)
_RATIO = re.compile(rf"({_DECIMAL})\s*/\s*({_DECIMAL})", re.ASCII)
_MIXED = re.compile(r"([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)", re.ASCII)
_LATEX = re.compile(
    r"([0-9]*)\s*\\[dt]?frac\s*(?:\{\s*([-+]?[0-9.,]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9.,]+)\s*\}|([0-9]))", re.ASCII
)
_WRAPPED = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"), ("**", "**"))
_SPACES = re.compile(r"\\[,!;: ]|\u2009|\u202f|\u00a0")
_MINUS = str.maketrans({"\u2212": "-", "\ufe63": "-", "\u2013": "-"})


def parse_number(text: str, *, percent: Percent = "strip") -> Fraction | None:
    r"""Reads one number and nothing else.

    Read are integers, decimals (``.5``, ``5.``), thousands with commas in the right places, exponents up to
    10**±300, fractions (``3/4``, ``1 3/4``, ``\frac{3}{4}``), a sign (the minus sign of Unicode too), a
    currency sign before it, a percent sign behind it, and math delimiters or one full stop around all that.
     Digits are ASCII.

    Args:
      text: any text.
      percent: what a percent sign means.

    Returns:
      The exact value; None for anything else, more than ``MAX_LENGTH`` characters included.
    """
    if len(text) > MAX_LENGTH:
        return None
    body = _unwrap(_SPACES.sub("", text.translate(_MINUS)).strip())
    sign, body = _sign(body)
    body = re.sub(r"^(?:\\\$|[$\u20ac\u00a3\u00a5])\s*", "", body)
    if sign == 1:  # both -$5 and $-5 are written
        sign, body = _sign(body)
    bare = re.sub(r"\s*\\?%$", "", body)
    scale = Fraction(1)
    if bare != body:
        if percent == "reject":
            return None
        scale = Fraction(1, 100) if percent == "ratio" else scale
    value = _unsigned(bare)
    return None if value is None else sign * scale * value


@dataclasses.dataclass(frozen=True)
class NumberVerifier:
    """Compares numbers exactly.

    Attributes:
      extract: where the answer stands, as for ``find_answer``.  Strict by default: what follows the answer
        marker must be a number and nothing else.  ``"last_number"`` takes the last number of the response
        whatever it counts.
      markers: for ``extract="marker"``.
      percent: what a percent sign means, in answers and references.
      tolerance: the largest relative difference that passes; 0 demands equality.
    """

    extract: Where = "marker"
    markers: tuple[str, ...] = ANSWER_MARKERS
    percent: Percent = "strip"
    tolerance: float = 0.0

    def verify(self, response: str, gold: str) -> Verdict:
        """A full score if the response's answer equals the reference; ``"error"`` if that is no number."""
        wanted = parse_number(gold, percent=self.percent)
        if wanted is None:
            return broken(f"the reference {gold[:80]!r} is no number")
        answer = find_answer(response, self.extract, markers=self.markers)
        if answer is None:
            return failed("no answer")
        value = parse_number(answer, percent=self.percent)
        if value is None:
            return failed("the answer is no number")
        return passed() if abs(value - wanted) <= Fraction(self.tolerance) * abs(wanted) else failed()

    def verify_many(self, responses: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """One verdict a pair."""
        return [self.verify(response, gold) for response, gold in zip(responses, golds, strict=True)]


def _unwrap(body: str) -> str:
    """Without math delimiters around it and a full stop behind it."""
    body = body.strip()
    if body.endswith(".") and not body.endswith(".."):
        body = body[:-1].rstrip()
    for left, right in _WRAPPED:
        if len(body) >= len(left) + len(right) and body.startswith(left) and body.endswith(right):
            return _unwrap(body[len(left) : -len(right)])
    return body


def _sign(body: str) -> tuple[int, str]:
    if body[:1] in ("-", "+"):
        return (-1 if body[0] == "-" else 1), body[1:].lstrip()
    return 1, body


def _unsigned(body: str) -> Fraction | None:
    if match := _PLAIN.fullmatch(body):
        exponent = int(match.group(2) or 0)
        return _decimal(match.group(1)) * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None
    if match := _RATIO.fullmatch(body):
        return _divide(_decimal(match.group(1)), _decimal(match.group(2)))
    if match := _MIXED.fullmatch(body):
        part = _divide(Fraction(match.group(2)), Fraction(match.group(3)))
        return None if part is None else Fraction(match.group(1)) + part
    if match := _LATEX.fullmatch(body):
        return _latex_fraction(match)
    return None


def _latex_fraction(match: re.Match[str]) -> Fraction | None:
    whole, *parts = match.groups()
    top, bottom = (parse_number(part) for part in (parts[0] or parts[1], parts[2] or parts[3]))
    if top is None or bottom is None or (whole and top < 0):
        return None
    part = _divide(top, bottom)
    return None if part is None else Fraction(whole or 0) + part


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").removesuffix(".") or 0)


def _divide(top: Fraction, bottom: Fraction) -> Fraction | None:
    return top / bottom if bottom else None
