"""Checking the options of tasks, which come from files and command lines: their names, and then their values."""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from prm_jax.errors import UserError

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def suggest(name: str, known: Iterable[str], what: str) -> str:
    """The nearest known name, as a question, and all of them: the end of a message about an unknown name."""
    names = sorted(known)
    return f"{nearest(name, names)}the {what} are {', '.join(names) or 'none'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest known name, as a question with a space behind it; "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def check_options(options: Mapping[str, Any], types_: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Options with known names and values of the right type.

    Args:
      options: as they were given; text counts as the number or truth value that it writes.
      types_: the type of every known option.
      owner: what the options belong to, for messages.

    Returns:
      The options, with values converted.

    Raises:
      UserError: for an unknown name, with the nearest known one, or a value of another type.
    """
    checked = {}
    for name, value in options.items():
        if name not in types_:
            raise UserError(f"{owner} has no option {name!r}; {suggest(name, types_, 'options')}")
        try:
            checked[name] = convert(value, types_[name])
        except (TypeError, ValueError):
            wanted = types_[name].__name__ if type(types_[name]) is type else str(types_[name]).removeprefix("typing.")
            raise UserError(f"the option {name!r} of {owner} must be {wanted}, found {value!r}") from None
    return checked


def convert(value: Any, wanted: Any) -> Any:
    """A value as the wanted type; raises ValueError or TypeError where it is of another.

    Numbers and truth values may be written as text, and a list where a tuple is wanted as text with commas.  A type
    that is none of int, float, bool, str, Literal, tuple, list, Optional or a union of those is taken on trust.
    """
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(value, arguments)
    if origin is typing.Literal:
        matching = [choice for choice in arguments if value == choice or value == str(choice)]
        if not matching:
            raise ValueError(value)
        return matching[0]
    if wanted is bool:
        return _truth(value)
    if wanted in (int, float):
        if isinstance(value, bool) or (wanted is int and isinstance(value, float) and not value.is_integer()):
            raise ValueError(value)
        return wanted(value)
    if wanted is str:
        if not isinstance(value, str | int | float):
            raise TypeError(value)
        return str(value)
    if wanted is type(None):
        if value is not None and value not in ("", "none", "None"):
            raise ValueError(value)
        return None
    if (origin or wanted) in (tuple, list):
        return _sequence(value, origin or wanted, arguments)
    return value


def _first_that_fits(value: Any, choices: Iterable[Any]) -> Any:
    # Text stays text where text is allowed, None counts before numbers.
    ordered = sorted(choices, key=lambda choice: (choice is not type(None), choice is not type(value)))
    for choice in ordered:
        try:
            return convert(value, choice)
        except (TypeError, ValueError):
            continue
    raise ValueError(value)


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    raise ValueError(value)


def _sequence(value: Any, kind: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(value, str):
        value = [part.strip(" ") for part in value.split(",")] if value else []
    if not isinstance(value, list | tuple):
        raise TypeError(value)
    return kind(convert(part, arguments[0]) if arguments else part for part in value)
