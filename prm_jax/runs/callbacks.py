"""The event that a training loop passes to its callbacks, through which a callback can also end the loop."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from prm_jax.runs.run_dir import RunDir


@dataclasses.dataclass
class Event:
    """One moment of a training loop.

    Attributes:
      kind: "start" before the first step; "step" after each step; "evaluation" after each evaluation; "end" after the
        last step.
      step: number of completed steps.
      metrics: of the step or the evaluation, name -> number; at "step" a callback may add entries, which are logged.
      state: the training state; None at "step", because by then its buffers belong to the next step.
      batch: the step's batch at "step", otherwise None.
      run: the run directory, to write files into.
      stop_reason: set by `stop`.
    """

    kind: Literal["start", "step", "evaluation", "end"]
    step: int
    metrics: dict[str, Any]
    state: Any
    batch: Any
    run: "RunDir"
    stop_reason: str = ""

    def stop(self, reason: str) -> None:
        """Ends the loop after this step, or the one that is already running; it is evaluated and saved as the last."""
        self.stop_reason = reason


Callback = Callable[[Event], None]
"""Called in the order in which callbacks are given; an exception ends the run."""
