"""Tools by name."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from prm_jax.errors import UserError
from prm_jax.resolve import nearest
from prm_jax.verifiers.calculator import Calculator
from prm_jax.verifiers.python_tool import PythonTool
from prm_jax.verifiers.tool_calls import Markers

ToolName: TypeAlias = Literal["none", "python", "calculator"]


def make_tool(name: ToolName, markers: Sequence[str] = (), *, option: str = "tool") -> Any | None:
    """A tool by name, with ``step`` and ``markers``; None for ``"none"``.

    Args:
      name: ``"python"``, see `PythonTool`; ``"calculator"``, see `Calculator`; or ``"none"``.
      markers: two or four strings, see `Markers`; none: the tool's own.
      option: what the markers are called in messages.

    Raises:
      UserError: an unknown name; another number of markers, or an empty one or equal ones around calls.
    """
    if markers and len(markers) not in (2, 4):
        raise UserError(
            f"{option} takes two strings around a call, or four with those around the answer; found {len(markers)}"
        )
    if name == "none":
        return None
    known: dict[str, Any] = {"python": PythonTool, "calculator": Calculator}
    if name not in known:
        raise UserError(f"unknown tool {name!r}; {nearest(name, known)}a tool is none, {', '.join(known)}")
    return known[name](markers=Markers(*markers)) if markers else known[name]()


def check_tool(tool: Any | None, tokenizer: Any, *, option: str) -> None:
    """Checks that a model can call a tool and that the tool can answer here; arguments as of `check_markers`.

    Raises:
      UserError: a marker without tokens, or no sandbox for programs.
    """
    check_markers(tool, tokenizer, option=option)
    if isinstance(tool, PythonTool):
        tool.check()


def check_markers(tool: Any | None, tokenizer: Any, *, option: str) -> None:
    """Checks that a model can write a tool's markers.

    Args:
      tool: from `make_tool`.
      tokenizer: of the model, with ``encode``.
      option: what sets the markers, for the message.

    Raises:
      UserError: the tokenizer has no tokens for one of them.
    """
    for marker in () if tool is None else dataclasses.astuple(tool.markers):
        try:
            tokenizer.encode(marker)
        except UserError as error:
            raise UserError(f"this model cannot write the tool's marker {marker!r}; set {option}: {error}") from error
