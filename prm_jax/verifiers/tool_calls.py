"""Calls of tools in the text of a model, and the tools by name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from prm_jax.errors import UserError

ToolName: TypeAlias = Literal["none", "python", "calculator"]


@dataclass(frozen=True)
class Markers:
    """The strings around calls and answers.

    Attributes:
      open, close: around a call; `close` is the string that ends the model's turn.
      output_open, output_close: around the answer; may be empty.

    Raises:
      UserError: an empty `open` or `close`.
    """

    open: str
    close: str
    output_open: str = ""
    output_close: str = ""

    def __post_init__(self) -> None:
        if not self.open or not self.close:
            raise UserError("the markers of a tool's calls must not be empty")

    def call(self, text: str) -> str | None:
        """The call that ends a text: what is between the last `open` and the `close` at its end; None without."""
        if not text.rstrip().endswith(self.close):
            return None
        before = text.rstrip().removesuffix(self.close)
        _, marker, called = before.rpartition(self.open)
        return re.sub(r"\A[ \t]*\n", "", called) if marker else None

    def answer(self, text: str) -> str:
        """An answer as the model is told it."""
        return f"{self.output_open}{text}{self.output_close}"


def make_tool(name: ToolName, markers: Sequence[str] = (), *, option: str = "tool") -> Any | None:
    """A tool by name, with ``step`` and ``markers``; None for ``"none"``.

    Args:
      name: ``"python"``, see `PythonTool`; ``"calculator"``, see `Calculator`; or ``"none"``.
      markers: four strings, see `Markers`; none: the tool's own.
      option: what the markers are called in messages.

    Raises:
      UserError: another number of markers, or an empty one around calls.
    """
    from prm_jax.verifiers.calculator import Calculator
    from prm_jax.verifiers.python_tool import PythonTool

    if markers and len(markers) not in (2, 4):
        raise UserError(
            f"{option} takes two strings around a call, or four with those around the answer; found {len(markers)}"
        )
    known = {"python": PythonTool, "calculator": Calculator}
    if name not in known:
        return None
    return known[name](markers=Markers(*markers)) if markers else known[name]()
