"""Fields of a ``config.json``, read with checks: what is wrong or unknown is refused by name."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from prm_jax.errors import UserError


def integer(config: Mapping[str, Any], name: str, *, default: int | None = None, least: int = 1) -> int:
    """An integer of at least ``least``; ``default`` where the field is missing."""
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        refuse(name, value, f"expected an integer >= {least}")
    return value


def number(config: Mapping[str, Any], name: str, *, default: float | None = None, positive: bool = False) -> float:
    """A finite number; ``default`` where the field is missing."""
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(name, value, "expected a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        refuse(name, value, "expected a finite number")
    if positive and found <= 0:
        refuse(name, value, "expected a positive number")
    return found


def cap(config: Mapping[str, Any], name: str) -> float | None:
    """A positive number, or None for a soft cap that is missing, null or 0."""
    return number(config, name, positive=True) if config.get(name) not in (None, 0, 0.0) else None


def boolean(config: Mapping[str, Any], name: str) -> bool:
    """True or false; false where the field is missing."""
    value = config.get(name, False)
    if not isinstance(value, bool):
        refuse(name, value, "expected true or false")
    return value


def unknown(name: str, known: Sequence[str]) -> str:
    """Why an unknown field is refused, with the nearest known one."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown field; did you mean {near[0]}?" if near else f"unknown field; known: {', '.join(known)}"


def refuse(field: str, found: Any, why: str) -> NoReturn:
    """Raises the error of a field that is not supported."""
    shown = repr(found)
    shown = shown if len(shown) <= 200 else shown[:200] + "..."
    raise UserError(f"config.json: {field[:100]}={shown} is not supported: {why}")
