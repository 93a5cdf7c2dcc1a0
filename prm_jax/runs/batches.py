"""Sources of batches for a training loop: functions of the step, iterables, and objects with a position."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from prm_jax.errors import UserError


@runtime_checkable
class Batches(Protocol):
    """A source of batches that depends on the state or has a position of its own."""

    def draw(self, state: Any, step: int) -> Any:
        """The batch of a step, or None when there is nothing to learn from; `step` is the number of completed steps.

        A batch with an attribute ``metrics`` (name -> number) has them logged with those of its step.
        """
        ...

    def position(self) -> dict[str, Any]:
        """State needed to continue from a checkpoint, as JSON values."""
        ...

    def restore(self, position: dict[str, Any]) -> None:
        """Continues from a saved position."""
        ...

    # An attribute `needs_state`, True where `draw` reads the state (sampling from the policy): the loop then waits for
    # the previous update before it draws, and reports the two times separately.


def as_batches(batches: Any) -> Batches:
    """Wraps a function of the step or an iterable; an object with the methods of `Batches` is returned as it is.

    Raises:
      UserError: anything else.
    """
    if hasattr(batches, "draw") and hasattr(batches, "restore"):
        return batches
    if callable(batches):
        return _Function(batches)
    if isinstance(batches, Iterable):
        return _Stream(iter(batches))
    raise UserError(
        f"batches is a {type(batches).__name__}; expected a function of the step, an iterable, or an object with "
        "draw(state, step), position() and restore(position)"
    )


@dataclasses.dataclass(frozen=True)
class _Function:
    """Batches computed by a pure function of the step."""

    make: Callable[[int], Any]

    def draw(self, state: Any, step: int) -> Any:
        del state
        return self.make(step)

    def position(self) -> dict[str, Any]:
        return {}

    def restore(self, position: dict[str, Any]) -> None:
        del position


@dataclasses.dataclass
class _Stream:
    """Batches from an iterable, in order; those of completed steps are skipped on resuming."""

    items: Iterator[Any]
    drawn: int = 0

    def draw(self, state: Any, step: int) -> Any:
        del state
        while self.drawn <= step:
            try:
                batch = next(self.items)
            except StopIteration:
                raise UserError(
                    f"the batches ended after {self.drawn} steps, but step {step + 1} needs another one: pass an "
                    "endless iterable or a function of the step, or run fewer steps"
                ) from None
            self.drawn += 1
        return batch

    def position(self) -> dict[str, Any]:
        return {}

    def restore(self, position: dict[str, Any]) -> None:
        del position
