"""When a job that has ended is started again: pure decisions, without processes or files."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from prm_jax import exit_codes
from prm_jax.option_ranges import above, at_least

Progress = Mapping[str, int]
"""What is safely on disk: folder of checkpoints -> newest step, or file of results -> size."""


@dataclasses.dataclass(frozen=True)
class RestartLimits:
    """How often and how fast a job is restarted."""

    max_restarts: Annotated[int, at_least(0)] = 100
    """Restarts in all."""
    max_stalled: Annotated[int, at_least(1)] = 2
    """Consecutive restarts without a new checkpoint after which the job is given up."""
    delay: Annotated[float, at_least(0)] = 1.0
    """Seconds before a restart; doubled by every further restart without a new checkpoint."""
    longest_delay: Annotated[float, above(0)] = 60.0
    """The longest delay that doubling leads to."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How one attempt ended.

    Attributes:
      first: process -> exit code of those that ended first with a code other than 0, before the others were ended;
        empty when all finished.
      codes: process -> exit code of every process; negative: the signal that killed it.
      stop_signal: number of the signal that the job was asked to stop with; 0: none.
      progress: what is on disk now.
    """

    first: Mapping[int, int]
    codes: Mapping[int, int]
    stop_signal: int
    progress: Progress


@dataclasses.dataclass(frozen=True)
class Decision:
    """What follows an attempt.

    Attributes:
      restart: whether the job is started again.
      code: exit code of the launcher when it is not.
      delay: seconds to wait before the restart.
      reason: for the reader.
    """

    restart: bool
    code: int
    delay: float
    reason: str


class Restarts:
    """The history of a job's attempts, and the decision after each of them."""

    def __init__(self, limits: RestartLimits, progress: Progress) -> None:
        """Starts the history; `progress` is what is on disk before the first attempt."""
        self._limits = limits
        self._best = dict(progress)
        self.restarts = 0
        self.stalled = 0

    def decide(self, ended: Ended) -> Decision:
        """Decides what follows an attempt, and counts the restart."""
        final = _final(ended)
        if final is not None:
            return final
        cause = cause_of(ended.first)
        new = {name: step for name, step in ended.progress.items() if step > self._best.get(name, -1)}
        self._best |= new
        if new:
            self.stalled = 0
        elif self.restarts:  # the first attempt is not a restart
            self.stalled += 1
        what = exit_codes.describe(cause)
        if self.restarts >= self._limits.max_restarts:
            return _gave_up(f"{what}; all {self._limits.max_restarts} restarts (--max-restarts) are used up")
        if self.stalled >= self._limits.max_stalled:
            return _gave_up(
                f"{what}; {self.stalled} restarts in a row (--max-stalled) ended without a new checkpoint. Repair the "
                "cause, or save more often (--save-every)"
            )
        delay = min(self._limits.longest_delay, self._limits.delay * 2.0**self.stalled)
        self.restarts += 1
        return Decision(True, 0, delay, f"{what}; restart {self.restarts} in {delay:g} s")


def cause_of(first: Mapping[int, int]) -> int:
    """The exit code that says why an attempt failed, among those that were seen at the same moment.

    A process that was killed from outside makes the others fail with all kinds of errors, so that its signal comes
    first; then codes after which a restart is useless; an abort comes last, since it is how JAX ends the survivors.
    """

    def rank(code: int) -> int:
        if code < 0:
            return 3 if -code == exit_codes.signal.SIGABRT else 0
        return 1 if code in exit_codes.FINAL else 3 if code == 128 + exit_codes.signal.SIGABRT else 2

    return min(first.values(), key=rank)


def grace_after(code: int) -> float:
    """Seconds that the other processes get to end by themselves when one has ended with `code`."""
    if code in (exit_codes.INTERRUPTED, exit_codes.DONE):  # they are saving the same step
        return 60.0
    return 1.0 if code < 0 or code == exit_codes.STUCK or code > 128 else 5.0


def _final(ended: Ended) -> Decision | None:
    """The decision where no restart comes into question."""
    codes = set(ended.codes.values())
    if codes <= {exit_codes.DONE}:
        return _stop(exit_codes.DONE, "finished")
    if ended.stop_signal:
        if codes <= {exit_codes.DONE, exit_codes.INTERRUPTED}:
            return _stop(exit_codes.INTERRUPTED, "stopped and saved; the same command continues")
        if cause_of(ended.codes) not in exit_codes.FINAL:
            return _stop(128 + ended.stop_signal, "stopped before everything was saved; the same command continues")
    cause = cause_of(ended.first or ended.codes)
    if cause == exit_codes.INTERRUPTED:
        return _stop(cause, "a process was stopped by a signal, and all have saved; the same command continues")
    if cause in exit_codes.FINAL:
        return _stop(cause, f"{exit_codes.describe(cause)}; a restart would end in the same way")
    return None


def _stop(code: int, reason: str) -> Decision:
    return Decision(False, code, 0.0, reason)


def _gave_up(reason: str) -> Decision:
    return _stop(exit_codes.GAVE_UP, reason)
