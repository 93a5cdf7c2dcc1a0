"""Worked solutions to school problems with one wrong step each: labels that are exact up to the first error.

GSM8K's solutions annotate every calculation (`<<48/2=24>>24`). A solution whose calculations can all be read is written
again in one of several hands, once as it is and once with a mistake in one calculation: a slip in the result, a wrong
quantity, or a wrong operation. The steps behind it go on from the wrong number. They carry no label.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from prm_jax.data.step_data import StepRecord

_CALCULATION = re.compile(
    r"(?P<left>[\d$.,+\-*/x×÷()\s]*)=\s*\$?\s*"
    r"<<(?P<expression>[^<>=]+)=[^<>]+>>\s*\$?(?P<shown>\d[\d,]*(?:\.\d+)?)"
)
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|[-+*/()]")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
MISTAKES = ("slip", "quantity", "operation")


@dataclasses.dataclass(frozen=True)
class Calculation:
    """An expression with its result.

    Attributes:
      tokens: numbers, operators and brackets in order.
      value: what it equals, or is said to equal.
      money: the result is written with a dollar sign.
    """

    tokens: tuple[str, ...]
    value: Fraction
    money: bool


Line = tuple[str | Calculation, ...]
"""A step: texts and calculations."""


@dataclasses.dataclass(frozen=True)
class Worked:
    """A problem with a solution whose calculations are all understood."""

    question: str
    answer: Fraction
    lines: tuple[Line, ...]


def read(question: str, answer: str) -> Worked | None:
    """A solution in GSM8K's notation; None where a calculation is missing from a line, unclear, or wrong."""
    *body, last = answer.strip().split("\n")
    final = _NUMBER.fullmatch(last.removeprefix("####").strip())
    if not last.startswith("####") or final is None:
        return None
    lines = []
    for text in body:
        line = _read_line(text)
        if line is None:
            return None
        lines.append(line)
    goal = _exact(final.group())
    calculations = [part for line in lines for part in line if isinstance(part, Calculation)]
    if not calculations or calculations[-1].value != goal:
        return None
    return Worked(" ".join(question.split()), goal, tuple(lines))


def evaluate(tokens: Sequence[str]) -> Fraction | None:
    """The value of an expression, None where it has none."""
    rest = list(tokens)

    def factor() -> Fraction:
        token = rest.pop(0)
        if token == "(":
            value = total()
            if rest.pop(0) != ")":
                raise ValueError("bracket")
            return value
        return Fraction(token)

    def product() -> Fraction:
        value = factor()
        while rest and rest[0] in "*/":
            value = value * factor() if rest.pop(0) == "*" else value / factor()
        return value

    def total() -> Fraction:
        value = product()
        while rest and rest[0] in "+-":
            value = value + product() if rest.pop(0) == "+" else value - product()
        return value

    try:
        value = total()
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return None if rest else value


def spoil(worked: Worked, rng: np.random.Generator, *, attempts: int = 20) -> tuple[tuple[Line, ...], int, str] | None:
    """The lines with one mistake that is carried on; the line that it is in; its kind. None where none was found."""
    places = [
        (i, j) for i, line in enumerate(worked.lines) for j, part in enumerate(line) if isinstance(part, Calculation)
    ]
    given = [_exact(word) for word in _NUMBER.findall(worked.question)]
    for _ in range(attempts):
        index, part = places[rng.integers(len(places))]
        kind = MISTAKES[rng.integers(len(MISTAKES))]
        right = worked.lines[index][part]
        assert isinstance(right, Calculation)
        known = given + [p.value for line in worked.lines[:index] for p in line if isinstance(p, Calculation)]
        wrong = _mistake(right, kind, known, rng)
        lines = None if wrong is None else _carry_on(worked.lines, index, part, wrong)
        if lines is not None and _last(lines).value != worked.answer:
            return lines, index, kind
    return None


def write(
    worked: Worked, lines: Sequence[Line], wrong: int | None, rng: np.random.Generator, *, name: str, group: str
) -> StepRecord:
    """One solution in a hand of its own; `wrong` is the line with the mistake, None without one."""
    hand = _Hand.draw(rng)
    steps = [hand.line(line, number + 1) for number, line in enumerate(lines)]
    before = [hand.opening] if hand.opening else []
    after = [hand.closing.format(show(_last(lines).value))] if hand.closing else []
    labels: list[float | None] = [1.0] * (len(before) + len(steps) + len(after))
    if wrong is not None:
        at = len(before) + wrong
        labels[at:] = [0.0, *([None] * (len(labels) - at - 1))]
    outcome = float(wrong is None)
    return StepRecord(worked.question, (*before, *steps, *after), tuple(labels), outcome, group, name)


def show(value: Fraction) -> str:
    """A number as people write it, to two decimals."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


# ---------------------------------------------------------------------------------------- reading


def _exact(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _read_line(text: str) -> Line | None:
    parts: list[str | Calculation] = []
    at = 0
    for match in _CALCULATION.finditer(text):
        left = match["left"]
        start = re.search(r"[\d(.]", left)
        tokens = tuple(_TOKEN.findall(match["expression"].replace(",", "")))
        if start is None or _digits(left) != _digits(match["expression"]):
            return None  # the text says the expression with words between, or in another way
        value = evaluate(tokens)
        try:
            said = _exact(match["shown"])
        except ValueError:
            return None
        if value != said or value is None or value <= 0 or len(tokens) < 3:
            return None
        head = left[: start.start()]
        parts.append((text[at : match.start()] + head).rstrip("$"))
        parts.append(Calculation(tokens, value, "$" in match.group()))
        at = match.end()
    tail = text[at:]
    if not parts or "<<" in tail or "=" in tail:
        return None
    return (*parts, tail)


def _digits(text: str) -> list[str]:
    return re.findall(r"\d+", text.replace(",", ""))


# --------------------------------------------------------------------------------------- mistakes


def _mistake(right: Calculation, kind: str, known: Sequence[Fraction], rng: np.random.Generator) -> Calculation | None:
    if kind == "slip":
        value: Fraction | None = right.value + Fraction(int(rng.choice([-100, -10, -2, -1, 1, 2, 10, 100])))
        tokens = right.tokens
    else:
        changed = list(right.tokens)
        if kind == "quantity":
            places = [i for i, token in enumerate(changed) if token not in "+-*/()"]
            place = places[rng.integers(len(places))]
            others = [x for x in known if x != Fraction(changed[place])]
            if not others:
                return None
            changed[place] = show(others[rng.integers(len(others))])
        else:
            places = [i for i, token in enumerate(changed) if token in "+-*/"]
            place = places[rng.integers(len(places))]
            changed[place] = {"+": "-", "-": "+", "*": "/", "/": "*"}[changed[place]]
        tokens, value = tuple(changed), evaluate(changed)
    if value is None or value == right.value or not _plausible(value, right.value):
        return None
    return Calculation(tokens, value, right.money)


def _plausible(value: Fraction, right: Fraction) -> bool:
    """Positive, and no fraction where there was none: a mistake must not show by its looks."""
    return value > 0 and (value.denominator == 1 or right.denominator > 1) and 100 % value.denominator == 0


def _carry_on(lines: Sequence[Line], index: int, part: int, wrong: Calculation) -> tuple[Line, ...] | None:
    """Everything behind the mistake, worked out from its number."""
    right = lines[index][part]
    assert isinstance(right, Calculation)
    moved = {right.value: wrong.value}
    found: list[Line] = list(lines[:index])
    for number in range(index, len(lines)):
        line: list[str | Calculation] = []
        for place, piece in enumerate(lines[number]):
            behind = (number, place) > (index, part)
            if (number, place) == (index, part):
                line.append(wrong)
            elif isinstance(piece, str):
                line.append(_replace(piece, moved))
            elif not behind:
                line.append(piece)
            else:
                tokens = tuple(t if t in "+-*/()" else _moved(t, moved) for t in piece.tokens)
                value = evaluate(tokens)
                if value is None or not _plausible(value, piece.value):
                    return None
                moved[piece.value] = value
                line.append(Calculation(tokens, value, piece.money))
        found.append(tuple(line))
    return tuple(found)


def _moved(token: str, moved: dict[Fraction, Fraction]) -> str:
    value = Fraction(token)
    return show(moved[value]) if value in moved else token


def _replace(text: str, moved: dict[Fraction, Fraction]) -> str:
    def one(match: re.Match[str]) -> str:
        value = _exact(match.group())
        return show(moved[value]) if value in moved else match.group()

    return _NUMBER.sub(one, text)


def _last(lines: Sequence[Line]) -> Calculation:
    return [part for line in lines for part in line if isinstance(part, Calculation)][-1]


# ----------------------------------------------------------------------------------------- writing

_OPENINGS = (
    "", "", "", "Let's solve this step by step.", "Let's break down the problem.", "We work through the problem.",
)  # fmt: skip
_CLOSINGS = (
    "", "The answer is {}.", "Therefore, the answer is \\boxed{{{}}}.", "So the final answer is {}.",
    "Thus, the answer is $\\boxed{{{}}}$.",
)  # fmt: skip
_NUMBERINGS: tuple[Callable[[int], str], ...] = (
    lambda n: "", lambda n: "", lambda n: f"{n}. ", lambda n: f"Step {n}: ", lambda n: f"**Step {n}:** ",
)  # fmt: skip
_SIGNS: tuple[dict[str, str], ...] = (
    {}, {"*": "x"}, {"*": "×", "/": "÷"}, {"*": "\\times", "/": "\\div"},
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Hand:
    """How one solution is written."""

    opening: str
    closing: str
    numbering: Callable[[int], str]
    signs: dict[str, str]
    brackets: tuple[str, str]

    @staticmethod
    def draw(rng: np.random.Generator) -> "_Hand":
        def one(choices: Sequence[Any]) -> Any:
            return choices[rng.integers(len(choices))]

        signs = one(_SIGNS)
        brackets = one((("\\( ", " \\)"), ("\\[ ", " \\]"), ("$", "$"))) if "\\times" in signs.values() else ("", "")
        return _Hand(one(_OPENINGS), one(_CLOSINGS), one(_NUMBERINGS), signs, brackets)

    def line(self, line: Line, number: int) -> str:
        text = "".join(part if isinstance(part, str) else self.calculation(part) for part in line)
        return self.numbering(number) + " ".join(text.split())

    def calculation(self, found: Calculation) -> str:
        left = " ".join(self.signs.get(token, token) for token in found.tokens).replace("( ", "(").replace(" )", ")")
        dollar = "$" if found.money and not self.brackets[0] else ""
        return f"{self.brackets[0]}{left} = {dollar}{show(found.value)}{self.brackets[1]}"
