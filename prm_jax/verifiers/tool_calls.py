"""Calls of tools in the text of a model."""

import re
from dataclasses import dataclass

from prm_jax.errors import UserError


@dataclass(frozen=True)
class Markers:
    """The strings around calls and answers.

    Attributes:
      open, close: around a call; `close` is the string that ends the model's turn.
      output_open, output_close: around the answer; may be empty.

    Raises:
      UserError: an empty `open` or `close`, or the same string for both.
    """

    open: str
    close: str
    output_open: str = ""
    output_close: str = ""

    def __post_init__(self) -> None:
        if not self.open or not self.close:
            raise UserError("the markers of a tool's calls must not be empty")
        if self.open == self.close:
            raise UserError(f"the markers before and after a tool's call must differ; both are {self.open!r}")

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
