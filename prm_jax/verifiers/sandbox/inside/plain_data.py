"""Values as JSON of plain types: all that passes between a program and the code that tests it.

What arrives is built here from base types, so an overloaded ``__eq__`` or ``__hash__`` stays where it was defined.
"""

import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

MAX_ITEMS = 200_000
"""Values in one message, nested ones counted."""
MAX_ITERATED = 10_000
"""Items that are taken from an iterator."""


class NotPlain(Exception):
    """A value that has no plain form."""


def encode(value: Any, reference: Callable[[Any], int] | None = None) -> Any:
    """A JSON value for `value`.

    Args:
      value: None, bool, int, float, complex, str, bytes, and lists, tuples, sets, dicts and iterators of them;
        instances of subclasses count as their base.
      reference: keeps an object of any other type and returns its number; None: refuse such objects.

    Raises:
      NotPlain: another type, or too large.
    """
    return _encode(value, reference, itertools.count())


def decode(value: Any, reference: Callable[[int], Any] | None = None) -> Any:
    """The value that ``encode`` was given, of base types only.

    Raises:
      NotPlain: not something that ``encode`` makes.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        raise NotPlain("a message is malformed")
    kind, body = value
    try:
        if kind == "f":
            return float(body)
        if kind == "c":
            return complex(float(body[0]), float(body[1]))
        if kind == "b":
            return bytes.fromhex(body)
        if kind == "d":
            return {decode(key, reference): decode(item, reference) for key, item in body}
        if kind == "r" and reference is not None:
            return reference(int(body))
        items = [decode(item, reference) for item in body]
        return {"l": list, "t": tuple, "s": set, "z": frozenset, "i": iter}[kind](items)  # type: ignore[operator]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise NotPlain("a message is malformed") from error


def _encode(value: Any, reference: Callable[[Any], int] | None, counter: Iterator[int]) -> Any:
    if next(counter) > MAX_ITEMS:
        raise NotPlain(f"a value with more than {MAX_ITEMS} parts")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return ["f", float.__repr__(value)]
    if isinstance(value, complex):
        return ["c", [repr(value.real), repr(value.imag)]]
    if isinstance(value, bytes | bytearray):
        return ["b", bytes(value).hex()]
    if isinstance(value, dict):
        pairs = [[_encode(k, reference, counter), _encode(v, reference, counter)] for k, v in dict.items(value)]
        return ["d", pairs]
    for base, letter in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z")):
        if isinstance(value, base):
            items: Iterator[Any] = base.__iter__(value)  # type: ignore[arg-type]
            return [letter, [_encode(item, reference, counter) for item in items]]
    if isinstance(value, range):
        return ["l", [_encode(item, reference, counter) for item in value]]
    if isinstance(value, types.GeneratorType | map | filter | zip | enumerate | reversed) or _is_view(value):
        items = itertools.islice(iter(value), MAX_ITERATED)
        letter = "l" if _is_view(value) else "i"
        return [letter, [_encode(item, reference, counter) for item in items]]
    if reference is None:
        raise NotPlain(f"a value of type {kind.__name__}")
    return ["r", reference(value)]


def _is_view(value: Any) -> bool:
    return isinstance(value, type({}.keys()) | type({}.values()) | type({}.items()))
