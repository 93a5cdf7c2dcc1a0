"""What this package needs to know about a task; the classes of ``prm_jax.data`` are instances."""

from collections.abc import Sequence
from typing import Any, Protocol


class Problem(Protocol):
    """A prompt with an id."""

    @property
    def prompt(self) -> Any:
        """Text, chat messages, or token ids."""
        ...

    @property
    def id(self) -> str:
        """Unique within the task."""
        ...


class Verdict(Protocol):
    """What a verifier says about a response."""

    @property
    def score(self) -> float:
        """In [0, 1]; above 1/2 counts as correct."""
        ...

    @property
    def usable(self) -> bool:
        """False when the reference or the verifier is at fault, so that nothing follows about the response."""
        ...


class Splitter(Protocol):
    """Cuts a response into steps.

    Attributes:
      how: the kind of splitter, for messages.
      boundaries: the fixed strings that end a step; None when steps end otherwise.
    """

    @property
    def how(self) -> str: ...

    @property
    def boundaries(self) -> tuple[str, ...] | None: ...

    def __call__(self, text: str) -> Sequence[tuple[int, int]]:
        """The steps as spans (start, end) of characters."""
        ...


class Task(Protocol):
    """Problems of one kind, with a splitter and a verifier."""

    @property
    def splitter(self) -> Any:
        """A `Splitter`."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a solution."""
        ...

    def verify_many(self, problems: Sequence[Any], responses: Sequence[str]) -> Sequence[Any]:
        """A `Verdict` per response."""
        ...
