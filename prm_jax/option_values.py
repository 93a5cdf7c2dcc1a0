"""Converts text to declared types: the one conversion behind the command line, YAML files and task options.

Values that are not text, from a Python call or a JSON file, are checked against the same types. Imports neither jax
nor numpy.
"""

import collections.abc
import difflib
import enum
import inspect
import json
import math
import pathlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from prm_jax.errors import UserError
from prm_jax.resolve import nearest, resolve

T = TypeVar("T")
_TRUE, _FALSE, NULL = ("true", "yes", "on"), ("false", "no", "off"), ("null", "none", "~", "")
_SEQUENCES: dict[Any, type] = {tuple: tuple, list: list, collections.abc.Sequence: tuple}
_SPECIAL = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}


def read_value(text: str, kind: Any, *, quoted: bool = False) -> Any:
    """Parses text as a declared type.

    Args:
      text: the characters of the value.
      kind: bool, int, float, str, pathlib.Path, a Literal, an Enum, a tuple or list (written ``a,b`` or as a JSON
        list), a callable (written ``package.module:function``), or a union of those with None. A type that cannot be
        written as text gives the text itself.
      quoted: whether it was quoted, so that "null" is a word.

    Raises:
      ValueError: the text is not of that type; the message says what was expected.
      UserError: the module or function that it names cannot be imported.
    """
    origin, members = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return read_value(text, members[0], quoted=quoted)
    if origin in (Union, types.UnionType):
        return _read_union(text, kind, quoted)
    if origin is Literal:
        for choice in members:
            if text == str(choice):
                return choice
        raise ValueError(f"expected {describe(kind)}{closest(text, [str(choice) for choice in members])}")
    if kind is type(None):
        if quoted or text.lower() not in NULL:
            raise ValueError("expected none")
        return None
    if kind is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise ValueError("expected true or false")
    if kind in (int, float):
        return _read_number(text, kind)
    if (origin or kind) in _SEQUENCES:
        return convert(_split_list(text), kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _read_enum(text, kind)
    if _is_callable(kind) and ":" in text:
        return resolve(text, {}, "function")
    if _is_callable(kind):
        raise ValueError(f"expected {describe(kind)}")
    return kind(text) if kind in (str, pathlib.Path) else text


def convert(value: Any, kind: Any) -> Any:
    """A value of a declared type; text is parsed, other values are checked.

    Numbers may be given where text is wanted and lists where tuples are. A type that is none of those of
    ``read_value`` is not checked.

    Raises:
      ValueError: it is of another type; the message says what was expected.
    """
    if isinstance(value, str):
        return read_value(value, kind)
    origin, members = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return convert(value, members[0])
    if origin in (Union, types.UnionType):
        return _first_that_fits(members, lambda member: convert(value, member), kind)
    wrong = ValueError(f"expected {describe(kind)}")
    if origin is Literal:
        if value not in members:
            raise wrong
        return value
    if kind in (int, float):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and not whole):
            raise wrong
        return kind(value)
    if kind in (str, pathlib.Path):
        if not isinstance(value, pathlib.Path | (int | float if kind is str else pathlib.Path)):
            raise wrong
        return kind(value)
    if kind in (bool, type(None)):
        if not isinstance(value, kind):
            raise wrong
        return value
    if (origin or kind) in _SEQUENCES:
        if not isinstance(value, list | tuple):
            raise wrong
        return _convert_all(value, _SEQUENCES[origin or kind], members)
    if _is_callable(kind) and not callable(value):
        raise wrong
    return value


def convert_options(options: Mapping[str, Any], kinds: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Options with known names and values of the declared types.

    Args:
      options: as given on a command line, in a file, or by a caller.
      kinds: the type of every known option.
      owner: what the options belong to, for messages: "the task 'carry'".

    Raises:
      UserError: an unknown name, with the nearest known one, or a value of another type.
    """
    converted = {}
    for name, value in options.items():
        if name not in kinds:
            raise UserError(f"{owner} has no option {name!r}; {suggest(name, kinds, 'options')}")
        try:
            converted[name] = convert(value, kinds[name])
        except UserError as error:
            raise UserError(f"the option {name!r} of {owner}: {error}") from error
        except ValueError as error:
            raise UserError(f"the option {name!r} of {owner}: {error}, found {_excerpt(value)}") from None
    return converted


def parameter_kinds(maker: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's or class's named parameters: annotations, or else the types of the defaults."""
    function = maker.__init__ if inspect.isclass(maker) else maker
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names that exist for type checkers only
        hints = {}
    kinds = {}
    for parameter in inspect.signature(maker).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            default = None if parameter.default is parameter.empty else parameter.default
            guess = type(default) if isinstance(default, bool | int | float | tuple | list) else Any
            kinds[parameter.name] = hints.get(parameter.name, guess)
    return kinds


def call_with_options(maker: Callable[..., T], options: Mapping[str, Any], owner: str) -> T:
    """Calls a maker with options converted to the types that its signature declares.

    Args:
      maker: a function or class; its parameters are the options that exist. With ``**options`` it takes any others,
        unconverted.
      options: as given on a command line, in a file, or by a caller.
      owner: what the options belong to, for messages: "the task 'carry'".

    Raises:
      UserError: an unknown or missing option (the nearest is suggested), or a value of another type.
    """
    parameters = inspect.signature(maker).parameters.values()
    kinds = parameter_kinds(maker)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        kinds = {**dict.fromkeys(options, Any), **kinds}
    checked = convert_options(options, kinds, owner)
    missing = [p.name for p in parameters if p.name in kinds and p.default is p.empty and p.name not in checked]
    if missing:
        raise UserError(f"{owner} needs the option {missing[0]!r}")
    return maker(**checked)


def describe(kind: Any) -> str:
    """A declared type in a user's words."""
    origin, members = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return describe(members[0])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(member) for member in members)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in members)
    if origin in _SEQUENCES:
        return f"a list, each {describe(members[0])}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in kind)
    if origin is dict:
        return "a mapping"
    if _is_callable(kind):
        return "package.module:function"
    named = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "none"}
    return named.get(kind, getattr(kind, "__name__", str(kind)))


def suggest(name: str, known: Iterable[str], what: str) -> str:
    """The end of a message about an unknown name: the nearest known one as a question, and all of them."""
    names = sorted(known)
    return f"{nearest(name, names)}the {what} are {', '.join(names) or 'none'}"


def closest(name: str, known: Sequence[str], *, prefix: str = "") -> str:
    """'; did you mean ...?' with the nearest of the known dotted names, or an empty text.

    A name is also near when the right one is in another group ("beta" -> "prm.beta"), begins with it, or is made of
    words with those initials ("prm.lr").
    """
    group, _, leaf = name.rpartition(".")
    near = [k for k in known if k.rpartition(".")[2] == leaf]
    near += [k for k in known if k.startswith(group) and _initials(k.rpartition(".")[2]) == leaf]
    near += [k for k in known if leaf and k.startswith(name)]
    near += difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    if not near and group and len(leaf) > 2:
        siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == group}
        near = [siblings[k] for k in difflib.get_close_matches(leaf, list(siblings), n=3, cutoff=0.4)]
    if not near:
        return ""
    *first, last = [prefix + k for k in dict.fromkeys(near)][:4]
    return f"; did you mean {', '.join(first)}{' or ' if first else ''}{last}?"


def _read_union(text: str, kind: Any, quoted: bool) -> Any:
    members = get_args(kind)
    if type(None) in members and not quoted and text.lower() in NULL:
        return None
    rest = [member for member in members if member is not type(None)]
    return _first_that_fits(rest, lambda member: read_value(text, member, quoted=quoted), kind)


def _first_that_fits(members: Iterable[Any], attempt: Callable[[Any], Any], kind: Any) -> Any:
    for member in members:
        try:
            return attempt(member)
        except UserError:
            raise
        except ValueError:
            continue
    raise ValueError(f"expected {describe(kind)}")


def _read_enum(text: str, kind: type[enum.Enum]) -> enum.Enum:
    for member in kind:
        if text in (str(member.value), member.name):
            return member
    raise ValueError(f"expected {describe(kind)}{closest(text, [str(member.value) for member in kind])}")


def _read_number(text: str, kind: type) -> int | float:
    plain = text.replace("_", "")
    try:
        if kind is float and plain.lower() in _SPECIAL:
            return _SPECIAL[plain.lower()]
        return kind(plain)
    except ValueError:
        raise ValueError(f"expected {describe(kind)}") from None


def _split_list(text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, list):
            return values
    return [part.strip(" ") for part in text.split(",")] if text else []


def _convert_all(values: Sequence[Any], kind: Any, members: tuple[Any, ...]) -> Any:
    # tuple[str] is taken for tuple[str, ...], which it usually means.
    fixed = kind is tuple and len(members) > 1 and members[1] is not Ellipsis
    if fixed and len(values) != len(members):
        raise ValueError(f"expected {len(members)} values")
    kinds = members if fixed else (members[0] if members else Any,) * len(values)
    return kind(convert(value, member) for value, member in zip(values, kinds, strict=True))


def _is_callable(kind: Any) -> bool:
    return (get_origin(kind) or kind) in (collections.abc.Callable, typing.Callable)


def _initials(name: str) -> str:
    words = name.replace("-", "_").split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
