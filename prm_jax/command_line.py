"""Options of a command from its words: tyro over plain dataclasses, with suggestions for misspelt options."""

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro

from prm_jax import config_io
from prm_jax.errors import UserError

T = TypeVar("T")


def parse(cls: type[T], words: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """Reads a command's options.

    Args:
      cls: dataclass of the options; nested ones become groups (``--prm.beta``), docstrings become help.
      words: the command line after the command's name.
      prog: what precedes `words`, for the usage line.
      default: values of the options that are not given.

    Returns:
      An instance of `cls`.

    Raises:
      SystemExit: 0 after ``--help``; 2 for a value that does not fit, after an explanation.
      UserError: unknown options; the nearest ones are suggested.
    """
    given: dict[str, Any] = {} if default is None else {"default": default}
    with _registry():
        options, unknown = tyro.cli(cls, args=list(words), prog=prog, return_unknown_args=True, **given)
    if unknown:
        raise UserError("\n".join(_unknown(unknown, option_names(cls))) + f"\nAll options: {prog} --help")
    return options


def option_names(cls: type) -> list[str]:
    """The options of a dataclass as they are written on the command line: ["prm.learning-rate", ...]."""
    hints = typing.get_type_hints(cls, include_extras=True)
    names: list[str] = []
    for field in dataclasses.fields(cls):
        hint, name = hints[field.name], field.name.replace("_", "-")
        extras = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
        plain = typing.get_args(hint)[0] if extras else hint
        if dataclasses.is_dataclass(plain):
            unnamed = any(getattr(extra, "name", None) == "" for extra in extras)
            inner = option_names(typing.cast(type, plain))
            names += inner if unnamed else [f"{name}.{leaf}" for leaf in inner]
        elif tyro.conf.Positional[int] not in (typing.Annotated[int, *extras] if extras else int,):
            names.append(name)
    return names


def peek(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The values of a few ``--name value`` options before the rest can be read; flags give an empty text."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        spellings = {f"--{name.replace('_', '-')}", f"--{name}"}
        parser.add_argument(*sorted(spellings), dest=name, nargs="?", const="", default=None)
    found, _ = parser.parse_known_args(list(words))
    return {name: value for name, value in vars(found).items() if value is not None}


def choose(name: str, known: Mapping[str, T], what: str) -> T:
    """The entry of that name.

    Raises:
      UserError: there is none; the nearest ones are suggested.
    """
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise UserError(f"unknown {what} {name!r}: {hint}")


def _unknown(words: list[str], known: list[str]) -> list[str]:
    lines = []
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("_", "-")
            lines.append(f"unknown option --{name}{config_io.closest(name, known, prefix='--')}")
    # Without an unknown option the words themselves are too many; with one they are most likely its values.
    return lines or [f"these words belong to no option: {' '.join(words)}"]


def _registry() -> tyro.constructors.ConstructorRegistry:
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def mapping(info: Any) -> Any:
        # Always one option that takes the whole mapping; by itself tyro would make every key of the default an
        # option of its own and refuse all others.
        if info.type != dict[str, str]:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="NAME VALUE ...",
            instance_from_str=_pairs,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [word for pair in value.items() for word in pair],
        )

    @registry.primitive_rule
    def nothing(info: Any) -> Any:
        if info.type is not type(None):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="none",
            instance_from_str=_nothing,
            is_instance=lambda value: value is None,
            str_from_instance=lambda value: ["none"],
        )

    return registry


def _pairs(words: list[str]) -> dict[str, str]:
    if all("=" in word for word in words):
        return dict(word.split("=", 1) for word in words)
    if len(words) % 2:
        raise ValueError(f"expected names and values in turns (or name=value), found {len(words)} words")
    return dict(zip(words[::2], words[1::2], strict=True))


def _nothing(words: list[str]) -> None:
    if words[0].lower() not in ("none", "null"):
        raise ValueError("expected none")
