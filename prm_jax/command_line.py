"""Parses the options of a command: tyro over plain dataclasses, with suggestions for misspelt options."""

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from prm_jax import config_io, option_help
from prm_jax.errors import UserError
from prm_jax.option_values import closest, read_value

T = TypeVar("T")


def parse(cls: type[T], words: Sequence[str], *, prog: str, default: T | None = None, common: Sequence[str] = ()) -> T:
    """Reads a command's options.

    Args:
      cls: dataclass of the options; nested ones become groups (``--prm.beta``), docstrings become help.
      words: the command line after the command's name.
      prog: what precedes `words`, for the usage line.
      default: values of the options that are not given. Options of a named part (``config_io.OptionsOf``) are merged
        into them where the name stays the same.
      common: the options that ``--help`` shows, as in ``option_names``; empty: all of them.

    Returns:
      An instance of `cls`.

    Raises:
      SystemExit: 0 after ``--help`` or ``--help-all``; 2 for a value that does not fit, after an explanation.
      UserError: unknown options; the nearest ones are suggested.
    """
    if help_wanted(words):
        shown = common if "--help-all" not in words else ()
        option_help.print_help(cls, prog=prog, default=default, common=shown, registry=_registry())
        raise SystemExit(0)
    given: dict[str, Any] = {} if default is None else {"default": default}
    with _registry():
        args = _without_flag_values(cls, words)
        options, unknown = tyro.cli(cls, args=args, prog=prog, return_unknown_args=True, **given)
    if unknown:
        more = "--help-all" if common else "--help"
        raise UserError("\n".join(_unknown(unknown, option_names(cls))) + f"\nAll options: {prog} {more}")
    return _merge_mappings(cls, options, default)


def help_wanted(words: Sequence[str]) -> bool:
    """Whether the words ask for help instead of a run."""
    return any(word in ("-h", "--help", "--help-all") for word in words)


def option_names(cls: type) -> list[str]:
    """The names of a dataclass's options on the command line: ["prm.learning-rate", ...]."""
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
    """The values of a few ``--name value`` options, read before the rest; flags give an empty text."""
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
            lines.append(f"unknown option --{name}{closest(name, known, prefix='--')}")
    # With an unknown option the other words are most likely its values.
    return lines or [f"unexpected arguments: {' '.join(words)}"]


def _without_flag_values(cls: type, words: Sequence[str]) -> list[str]:
    """``--plots=false`` and ``--plots false`` as ``--no-plots``: flags take the truth values that files do."""
    kinds = {name.replace("_", "-"): kind for name, kind in config_io.leaf_types(cls).items()}
    names = {name for name in option_names(cls) if any(_is_flag(kinds, key, name) for key in kinds)}
    written: list[str] = []
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        flag = name.replace("_", "-")
        if word.startswith("--") and equals and flag in names and _truth(value) is not None:
            written.append(f"--{flag}" if _truth(value) else _negated(flag))
        elif written and written[-1].removeprefix("--") in names and _truth(word) is not None and not _positional(cls):
            written[-1] = written[-1] if _truth(word) else _negated(written[-1].removeprefix("--"))
        else:
            written.append(word)
    return written


def _is_flag(kinds: Mapping[str, Any], key: str, name: str) -> bool:
    # An unnamed group adds its field's name to the key only.
    return kinds[key] is bool and (key == name or key.endswith(f".{name}"))


def _negated(flag: str) -> str:
    group, dot, leaf = flag.rpartition(".")
    return f"--{group}{dot}no-{leaf}"


def _truth(word: str) -> bool | None:
    try:
        return read_value(word, bool)
    except ValueError:
        return None


def _positional(cls: type) -> bool:
    return len(option_names(cls)) < len(config_io.leaf_types(cls))


class _Given(dict[str, str]):
    """A mapping that came from the command line, not from the defaults."""


def _merge_mappings(cls: type[T], options: T, default: T | None) -> T:
    given = {name: dict(value) for name, value in config_io.flatten(options).items() if isinstance(value, _Given)}
    options = config_io.replace(options, given)
    if default is None:
        try:
            default = cls()
        except TypeError:  # options without defaults; mappings have none then, either
            default = config_io.replace(options, {name: {} for name in given})
    return config_io.merge_options(default, options, given)


def _registry() -> tyro.constructors.ConstructorRegistry:
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def mapping(info: Any) -> Any:
        # One option takes the whole mapping; tyro's own rule makes an option of every key of the default.
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
        return _scalar(info.type, "none", lambda value: value is None)

    @registry.primitive_rule
    def number(info: Any) -> Any:
        if info.type not in (int, float):
            return None
        fits = (int,) if info.type is int else (int, float)
        return _scalar(info.type, info.type.__name__.upper(), lambda value: isinstance(value, fits))

    return registry


def _scalar(kind: Any, metavar: str, fits: Callable[[Any], bool]) -> Any:
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: _read(words[0], kind),
        is_instance=fits,
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )


def _read(word: str, kind: Any) -> Any:
    try:
        return read_value(word, kind)
    except ValueError as error:
        raise ValueError(f"{error}, found {word[:80]!r}") from None


def _pairs(words: list[str]) -> dict[str, str]:
    if all("=" in word for word in words):
        return _Given(word.split("=", 1) for word in words)
    if len(words) % 2:
        raise ValueError(f"expected pairs of name and value (or name=value), found {len(words)} word(s)")
    return _Given(zip(words[::2], words[1::2], strict=True))
