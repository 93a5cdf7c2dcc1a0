"""Help texts of a command's options: the common ones or all, with ranges and defaults in readable form."""

import ast
import dataclasses
import functools
import inspect
import re
import shlex
import textwrap
import typing
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from prm_jax.option_ranges import Range


def print_help(
    cls: type, *, prog: str, default: Any, common: Sequence[str], registry: tyro.constructors.ConstructorRegistry
) -> None:
    """Prints the help of a dataclass of options.

    Args:
      cls: the dataclass, nested ones as groups.
      prog: the command, for the usage line.
      default: an instance with the values to show as defaults; None: the fields' own.
      common: names of the options to show, as they are written on the command line; empty: all.
      registry: how values are read.
    """
    page = _Page(frozenset(common))
    shown, start = page.shadow(cls, default, "")
    if page.hidden:
        note = f"These are the options that most runs set; --help-all lists {page.hidden} more."
        shown.__doc__ = f"{inspect.getdoc(cls)}\n\n{note}"
    given = {} if start is None else {"default": start}
    try:
        with registry:
            tyro.cli(shown, args=["--help"], prog=prog, **given)
    except SystemExit:
        return


def show_default(value: Any) -> str:
    """A default as a user would write or say it: ``5e-7``, ``none``, ``empty``, ``min_operands 3``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].replace('+', '')}{m[2]}", f"{value:.10g}")
    if isinstance(value, dict):
        value = [word for pair in value.items() for word in pair]
    if isinstance(value, list | tuple):
        return " ".join(shlex.quote(show_default(item)) for item in value) or "none"
    return str(value) or "empty"


class _Page:
    """Copies of the options' dataclasses for display: help texts made explicit, options to hide marked."""

    def __init__(self, common: frozenset[str]) -> None:
        self._common = common
        self.hidden = 0

    def shadow(self, cls: type, default: Any, prefix: str) -> tuple[Any, Any]:
        """(a copy of the dataclass, an instance of it with the values of `default` or None)."""
        hints = typing.get_type_hints(cls, include_extras=True)
        docs, values = _field_docs(cls), {}
        fields: list[Any] = []
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            extras = getattr(hint, "__metadata__", ())
            plain = typing.get_args(hint)[0] if extras else hint
            value = _default(field) if default is None else getattr(default, field.name)
            name = field.name.replace("_", "-")
            if dataclasses.is_dataclass(plain):
                unnamed = any(getattr(extra, "name", None) == "" for extra in extras)
                plain, value = self.shadow(typing.cast(type, plain), value, prefix if unnamed else f"{prefix}{name}.")
            else:
                extras = (*self._leaf(f"{prefix}{name}", docs.get(field.name), value, extras),)
            shown = Annotated[(plain, *extras)] if extras else plain
            values[field.name] = value
            if value is dataclasses.MISSING:
                fields.append((field.name, shown))
            else:
                fields.append((field.name, shown, dataclasses.field(default_factory=functools.partial(_same, value))))
        copy = dataclasses.make_dataclass(cls.__name__, fields, frozen=True, kw_only=True)
        copy.__doc__ = cls.__doc__
        missing = any(value is dataclasses.MISSING for value in values.values())
        return copy, None if missing else copy(**values)

    def _leaf(self, name: str, doc: str | None, value: Any, extras: tuple[Any, ...]) -> list[Any]:
        positional = tyro.conf.Positional[int] == (Annotated[(int, *extras)] if extras else int)
        range_ = next((extra for extra in extras if isinstance(extra, Range)), None)
        notes = [str(range_).removesuffix(" and finite")] if range_ else []
        if value is not dataclasses.MISSING:
            notes.append(f"default: {show_default(value)}")
        hint = f"({'; '.join(notes)})" if notes else ""
        kept = [extra for extra in extras if not _is_argument(extra)]
        own: Any = next((extra for extra in extras if _is_argument(extra)), tyro.conf.arg())
        help_text = own.help if own.help is not None else doc
        kept.append(dataclasses.replace(own, help=help_text, help_behavior_hint=hint or None))
        if self._common and name not in self._common and not positional:
            self.hidden += 1
            # As an annotation this hides the option from the page.
            kept += getattr(tyro.conf.Suppress[int], "__metadata__", ())
        return kept


def _is_argument(extra: Any) -> bool:
    return hasattr(extra, "help_behavior_hint")


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _same(value: Any) -> Any:
    return value


def _field_docs(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass, in one line each; fields of base classes included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):  # made in an interpreter session
            continue
        body = node.body if isinstance(node, ast.ClassDef) else []
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(text):
                docs[field.target.id] = " ".join(text.value.value.split())  # type: ignore[attr-defined]
    return docs


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
