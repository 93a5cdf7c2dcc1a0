"""Options of the watch for reward hacking. Importing this module imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated

from prm_jax.option_ranges import above, at_least, within


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Signs of reward hacking that a run looks for."""

    window: Annotated[int, at_least(1)] = 10
    """Steps over which metrics are averaged; the first such window is what later ones are compared with."""
    accuracy_drop: Annotated[float, within(0, 1)] = 0.1
    """Held-out accuracy this far below its best, while the reward is above what it was then."""
    length_factor: Annotated[float, above(1)] = 2.0
    """Responses this many times as long as at the start, without a higher solve rate."""
    repetition: Annotated[float, within(0, 1)] = 0.5
    """Share of repeated word sequences in a response, if that is twice what it was at the start."""
    errors: Annotated[float, within(0, 1)] = 0.1
    """Share of responses that could not be checked."""
    pairwise: Annotated[float, within(0, 1)] = 0.5
    """Pairwise accuracy of process rewards below this, averaged over the window."""
    calibration: Annotated[float, within(0, 1)] = 0.25
    """Share of right responses that process rewards promise, by what they meant in the first window, above the share
    that is right."""
    deviations: Annotated[float, above(0)] = 5.0
    """A wrong response whose reward is this many standard deviations above the mean is kept in suspicious.jsonl."""
    stop: bool = False
    """End the run when a sign appears; without it the run warns and continues."""
