"""Ranges of options, declared beside the field: ``steps: Annotated[int, at_least(0)] = 60``.

``check_ranges`` compares every field of nested dataclasses with its range and reports all problems by the options'
command-line names. NaN and infinity are refused everywhere but in a field whose range allows infinity.
"""

import dataclasses
import math
import typing
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a numeric option accepts; None, and anything that is not a number, is not checked.

    Attributes:
      low, high: the bounds.
      low_open, high_open: whether a bound itself is excluded.
      infinity: whether infinite values within the bounds are accepted.
    """

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    infinity: bool = False

    def __contains__(self, value: float) -> bool:
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not self.infinity)):
            return False
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        """What is expected, as the end of a sentence: "at least 1", "within [0, 1]"."""
        low, high = f"{self.low:.10g}", f"{self.high:.10g}"
        if math.isinf(self.high) and math.isinf(self.low):
            return "a number" if self.infinity else "a finite number"
        if math.isinf(self.high):
            return f"{'greater than' if self.low_open else 'at least'} {low}" + self._finite()
        if math.isinf(self.low):
            return f"{'less than' if self.high_open else 'at most'} {high}" + self._finite()
        return f"within {'(' if self.low_open else '['}{low}, {high}{')' if self.high_open else ']'}"

    def _finite(self) -> str:
        return "" if self.infinity else " and finite"


def at_least(low: float, *, infinity: bool = False) -> Range:
    """Values >= low."""
    return Range(low=low, infinity=infinity)


def above(low: float, *, infinity: bool = False) -> Range:
    """Values > low."""
    return Range(low=low, low_open=True, infinity=infinity)


def at_most(high: float) -> Range:
    """Values <= high."""
    return Range(high=high)


def within(low: float, high: float, *, low_open: bool = False, high_open: bool = False) -> Range:
    """Values between two bounds, which are included unless stated otherwise."""
    return Range(low, high, low_open, high_open)


def check_ranges(options: Any, prefix: str = "") -> list[str]:
    """Compares the fields of a dataclass, and of dataclasses within it, with their ranges.

    Args:
      options: an instance of a dataclass.
      prefix: what precedes the fields' names on the command line, for example ``"prm."``.

    Returns:
      One message per problem: "--prm.beta is 0.0; it must be greater than 0". Elements of tuples, lists and mappings
      are checked one by one.
    """
    problems: list[str] = []
    hints = typing.get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        value, extras = getattr(options, field.name), getattr(hints[field.name], "__metadata__", ())
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            unnamed = any(getattr(extra, "name", None) == "" for extra in extras)
            problems += check_ranges(value, prefix if unnamed else f"{name}.")
            continue
        range_ = next((extra for extra in extras if isinstance(extra, Range)), Range())
        problems += [_problem(name, number, range_) for number in _numbers(value) if number not in range_]
    return problems


def _problem(name: str, value: float, range_: Range) -> str:
    infinite = isinstance(value, float) and not math.isfinite(value)
    expected = str(range_) if infinite else str(range_).removesuffix(" and finite")
    return f"--{name} is {value}; it must be {expected}"


def _numbers(value: Any) -> list[float]:
    if isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [number for item in value for number in _numbers(item)]
