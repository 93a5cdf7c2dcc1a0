"""The training loop shared by warm starts, PRIME, reward models and user code.

A job brings a state (a pytree of arrays), a step function and batches. `fit` owns everything around them: resuming,
checkpoints, signals, metrics, progress, non-finite updates, evaluation, the best state, early stopping and callbacks.
The metrics of a step are read after the next one has been dispatched, so that the device never waits for the host.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax

from prm_jax.errors import UserError
from prm_jax.runs import shared_files
from prm_jax.runs.batches import Batches, as_batches
from prm_jax.runs.callbacks import Callback, Event
from prm_jax.runs.checkpoint import Checkpointer
from prm_jax.runs.console import Console
from prm_jax.runs.interrupts import Interrupts
from prm_jax.runs.profiling import span, trace_into
from prm_jax.runs.run_dir import RunDir
from prm_jax.runs.soundness import complaint, keep_batch
from prm_jax.runs.stopping import DivergedRun, InterruptedRun
from prm_jax.runs.watchdog import Watchdog

Metrics = Mapping[str, Any]
BEST = "best"
"""Folder of the best state inside the run directory."""

StepFn = Callable[[Any, Any], tuple[Any, Metrics]]
"""``(state, batch) -> (state, metrics)``; may donate its state. Metrics are scalars; a name that ends in ``/skipped``
counts updates that were skipped because they were not finite."""


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """Length of a training loop, intervals and limits.

    Attributes:
      steps: total number of steps.
      save_every: steps between checkpoints; the last step is always saved.
      eval_every: steps between evaluations; 0: only before the first step and after the last.
      keep_checkpoints: number of checkpoints kept.
      max_bad_steps: the run stops after this many consecutive steps with a non-finite update.
      best: name of the evaluation metric whose best state is kept in ``best/``; empty: none.
      best_is: whether larger or smaller values of that metric are better.
      profile: number of the step of which a trace is written into ``profile/`` of the run directory; 0: none. The first
        step compiles, so a later one says more.
      patience: stop after this many consecutive evaluations without a new best; 0: never.
    """

    steps: int
    save_every: int = 10
    eval_every: int = 10
    keep_checkpoints: int = 2
    max_bad_steps: int = 3
    best: str = ""
    best_is: Literal["max", "min"] = "max"
    patience: int = 0
    profile: int = 0


@dataclasses.dataclass(frozen=True)
class Fitted:
    """How a loop ended.

    Attributes:
      state: after the last step.
      steps: number of steps completed.
      before: evaluation before the first step; {} without an evaluation.
      after: the newest evaluation.
      best_step, best_value: step and metric of the best evaluation; -1 and NaN when none is kept.
      stopped_early: whether patience or a callback ended the loop.
    """

    state: Any
    steps: int
    before: dict[str, float]
    after: dict[str, float]
    best_step: int = -1
    best_value: float = math.nan
    stopped_early: bool = False


def fit(
    state: Any,
    step: StepFn,
    batches: Batches | Callable[[int], Any] | Iterable[Any],
    *,
    run: RunDir,
    options: FitOptions,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    callbacks: Sequence[Callback] = (),
    frontend: "Frontend | None" = None,
    identity: str = "",
    target: Any = None,
) -> Fitted:
    """Runs a training loop to its last step; a resumed `run` continues from its newest good checkpoint.

    With the same options, the final state of a resumed loop is bit-identical to that of an uninterrupted one.

    Args:
      state: pytree of arrays, or a function without arguments that returns it (called only when there is no
        checkpoint, so that a resumed run holds a single state in memory).
      step: see `StepFn`.
      batches: a function of the step; or an iterable, whose first items are skipped on resuming; or `Batches`, such as
        a `data.BatchStream`, which calls a function of the step ahead of time. Closed at the end if it can be.
      run: the run directory, open; ``run.phase(name)`` for a phase of a longer run.
      options: length, intervals, limits.
      evaluate: ``state -> metrics`` before the first step, every `eval_every` steps and after the last.
      callbacks: called with an `Event` at the start, after every step and evaluation, and at the end.
      frontend: console, signals, title and watchdog; None: silent, and signals are not handled.
      identity: fingerprint of what the run starts from (weights, data); resuming with a different one is refused.
      target: pytree of ``jax.ShapeDtypeStruct`` with the state's structure and, on a mesh, its shardings; needed when
        `state` is a function that cannot be traced, because it samples or trains; None: obtained by tracing.

    Returns:
      The final state and the results of the evaluations.

    Raises:
      InterruptedRun: a signal arrived; everything is saved.
      DivergedRun: too many consecutive non-finite updates, or a state that is not finite; the last good checkpoint
        is kept.
      UserError: the checkpoint does not match the state, or was made from different weights or data.
    """
    loop = _Loop(step, as_batches(batches), run, options, evaluate, tuple(callbacks), frontend or Frontend(), identity)
    try:
        with Checkpointer(run.checkpoints, max_to_keep=options.keep_checkpoints) as checkpoints:
            return loop.run_from(state, checkpoints, target)
    finally:
        if hasattr(batches, "close"):  # a `data.BatchStream` has a thread
            batches.close()


@dataclasses.dataclass
class Frontend:
    """Console, signals and watchdog of a loop.

    Attributes:
      console: progress and messages; None: silent.
      interrupts: installed signal handlers; None: signals are not handled.
      title: name of the phase on the console.
      hint: advice on non-finite updates, appended to the error.
      watchdog: seconds after which drawing a batch, a step, an evaluation or saving prints the stacks of all threads;
        0: never. The first of each may take ten times as long, since it compiles.
      watchdog_exit: seconds after which it ends the process with exit code 76; 0: never.
    """

    console: Console | None = None
    interrupts: Interrupts | None = None
    title: str = "training"
    hint: str = "Lower the learning rate, or raise --max-bad-steps"
    watchdog: float = 0.0
    watchdog_exit: float = 0.0

    def say(self, text: str) -> None:
        """Prints one line."""
        if self.console is not None:
            self.console.message(text)


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A dispatched step whose metrics have not been read yet."""

    step: int
    batch: Any
    metrics: Metrics
    begun: float
    drawn: float
    ready: float | None = None


class _Loop:
    """One call of `fit`."""

    def __init__(
        self,
        step: StepFn,
        batches: Batches,
        run: RunDir,
        options: FitOptions,
        evaluate: Callable[[Any], dict[str, float]] | None,
        callbacks: tuple[Callback, ...],
        frontend: Frontend,
        identity: str,
    ) -> None:
        self.step, self.batches, self.run, self.options = step, batches, run, options
        self.evaluate, self.callbacks, self.frontend, self.identity = evaluate, callbacks, frontend, identity
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.bad_steps = 0
        self.best_step, self.best_value, self.stale = -1, math.nan, 0
        self.stop_reason = ""
        self.finished = 0.0
        self.needs_state = bool(getattr(batches, "needs_state", False))
        self.watchdog = Watchdog(self.frontend.watchdog, exit_seconds=self.frontend.watchdog_exit)

    def run_from(self, state: Any, checkpoints: Checkpointer, target: Any) -> Fitted:
        state, done = self._start(state, checkpoints, target)
        pending: _Pending | None = None
        while done < self.options.steps and not self.stop_reason:
            if pending is not None and self.needs_state:
                pending = self._wait(state, pending)
            if done + 1 == self.options.profile and self.run.writer:
                state, pending, dispatched = self._profiled(state, pending, done)
            else:
                state, dispatched = self._dispatch(state, done)
            self._finish(pending)
            done, pending = done + 1, dispatched
            last = done == self.options.steps or bool(self.stop_reason)
            every = self.options.eval_every
            evaluating = self.evaluate is not None and (last or bool(every and done % every == 0))
            stop = self._should_stop(done)
            if not (evaluating or last or stop or done % self.options.save_every == 0):
                continue
            pending = self._wait(state, pending)
            found = self._evaluate(state, done) if evaluating else {}
            self._finish(pending, found)
            pending = None
            if self.stop_reason and self.evaluate is not None and not evaluating:  # a callback has just said so
                evaluating = last = True
                self._report(done, self._evaluate(state, done))
            if evaluating:
                self._track_best(state, done)
                self._notify("evaluation", done, self.after, state)
            self._save(checkpoints, state, done)
            if stop and not last:
                self._wait_for_checkpoint(checkpoints, done)
                assert self.frontend.interrupts is not None
                raise InterruptedRun(f"stopped by {self.frontend.interrupts.signal_name} after step {done}")
        self._wait_for_checkpoint(checkpoints, done)
        self._notify("end", done, self.after, state)
        early = bool(self.stop_reason) and done < self.options.steps
        if self.stop_reason:
            self.frontend.say(f"stopped after step {done}: {self.stop_reason}")
        return Fitted(state, done, self.before, self.after, self.best_step, self.best_value, early)

    @contextlib.contextmanager
    def watch(self, phase: str, kind: str) -> Iterator[None]:
        """A phase under the watchdog, with its name in a trace."""
        with span(phase), self.watchdog.phase(phase, kind):
            yield

    # ------------------------------------------------------------------------------- start, resume

    def _start(self, state: Any, checkpoints: Checkpointer, target: Any) -> tuple[Any, int]:
        make = state if callable(state) else lambda: state
        restored = None
        if self.run.resumed:
            target = jax.eval_shape(make) if target is None else target
            with self.watch(f"restoring the newest checkpoint ({self.frontend.title})", "restore"):
                restored = checkpoints.restore(target, accept=complaint)
            self.run.rewind(-1 if restored is None else restored.step)
        console = self.frontend.console
        if restored is None:
            state = make()
            self._phase(console, 0)
            if self.evaluate is not None:
                found = self._evaluate(state, 0)
                self.before = self.after
                self._report(0, found)
                self._track_best(state, 0)
            self._save(checkpoints, state, 0)
            self._notify("start", 0, self.before, state)
            return state, 0
        self._take_up(restored.metadata)
        self._phase(console, restored.step)
        self.frontend.say(f"resumed at step {restored.step}")
        self._notify("start", restored.step, self.after, restored.state)
        return restored.state, restored.step

    def _phase(self, console: Console | None, done: int) -> None:
        if console is not None:
            console.phase(self.frontend.title, self.options.steps, start=done)

    def _take_up(self, metadata: dict[str, Any]) -> None:
        if metadata["identity"] != self.identity:
            raise UserError(
                "the weights or the data that this run starts from have changed since its checkpoint was written: "
                "restore the original ones, or start a new run"
            )
        self.batches.restore(metadata["batches"])
        self.before, self.after = metadata["before"], metadata["after"]
        self.bad_steps, self.stale = metadata["bad_steps"], metadata["stale"]
        self.stop_reason = metadata["stop_reason"]
        self.best_step = metadata["best_step"]
        self.best_value = math.nan if metadata["best_value"] is None else metadata["best_value"]
        if metadata["best"] != self.options.best:  # values of two metrics cannot be compared
            self.best_step, self.best_value, self.stale = -1, math.nan, 0
        self._rewind_best()

    # ------------------------------------------------------------------------------------ one step

    def _dispatch(self, state: Any, done: int) -> tuple[Any, _Pending]:
        """Draws a batch and dispatches its step, without waiting for the device."""
        begun = time.monotonic()
        with self.watch(f"drawing the batch of step {done + 1} ({self.frontend.title})", "draw"):
            batch = self.batches.draw(state, done)
        drawn = time.monotonic()
        metrics: Metrics = {}
        if batch is not None:
            with self.watch(f"dispatching step {done + 1} ({self.frontend.title})", "dispatch"):
                state, metrics = self.step(state, batch)
        return state, _Pending(done + 1, batch, metrics, begun, drawn)

    def _profiled(self, state: Any, pending: _Pending | None, done: int) -> tuple[Any, _Pending | None, _Pending]:
        """A step alone in a trace, from drawing its batch to its end on the device."""
        pending = None if pending is None else self._wait(state, pending)
        with trace_into(self.run.path / "profile"):
            state, dispatched = self._dispatch(state, done)
            dispatched = self._wait(state, dispatched)
        self.frontend.say(f"the trace of step {done + 1} is in {self.run.path / 'profile'}; open it at ui.perfetto.dev")
        return state, pending, dispatched

    def _wait(self, state: Any, pending: _Pending) -> _Pending:
        """Waits for the device."""
        with self.watch(f"step {pending.step} ({self.frontend.title})", "step"):
            jax.block_until_ready(state)
        return dataclasses.replace(pending, ready=time.monotonic())

    def _finish(self, pending: _Pending | None, found: Mapping[str, float] | None = None) -> None:
        """Reads and checks the metrics of a dispatched step, and reports them with those of an evaluation."""
        if pending is None:
            return
        with self.watch(f"step {pending.step} ({self.frontend.title})", "step"):
            read = jax.device_get(dict(pending.metrics))
        now = time.monotonic() if pending.ready is None else pending.ready
        metrics: dict[str, Any] = {name: float(value) for name, value in read.items()}
        metrics |= dict(getattr(pending.batch, "metrics", None) or {})
        metrics |= self._times(pending, now)
        self._check_finite(pending, metrics)
        metrics |= dict(found or {})
        self.run.claim()
        self._notify("step", pending.step, metrics, None, pending.batch)
        self._report(pending.step, metrics)
        if self.bad_steps >= self.options.max_bad_steps:
            raise DivergedRun(
                f"{self.bad_steps} steps in a row had a non-finite update and were skipped; their batches are kept in "
                f"{self.run.path / 'bad_steps'}. {self.frontend.hint}"
            )

    def _times(self, pending: _Pending, now: float) -> dict[str, float]:
        """Seconds of a step, without evaluation: from one completion to the next where steps overlap.

        Where drawing needs the state, steps do not overlap, and the parts add up to the whole.
        """
        if self.needs_state:
            return {
                "time/draw_seconds": pending.drawn - pending.begun,
                "time/update_seconds": now - pending.drawn,
                "time/step_seconds": now - pending.begun,
            }
        begun = max(pending.begun, self.finished)
        self.finished = now
        return {"time/draw_seconds": pending.drawn - pending.begun, "time/step_seconds": now - begun}

    def _check_finite(self, pending: _Pending, metrics: Mapping[str, float]) -> None:
        updates = {name: value for name, value in metrics.items() if name.endswith("/skipped")}
        if not updates:  # nothing to learn from, which says nothing about the updates before and after
            return
        skipped = sorted(name for name, value in updates.items() if value)
        if not skipped:
            self.bad_steps = 0
            return
        self.bad_steps += 1
        kept = keep_batch(self.run.path / "bad_steps", pending.step, pending.batch)
        names = ", ".join(name.removesuffix("/skipped") for name in skipped)
        self.frontend.say(
            f"step {pending.step}: the update of {names} is not finite or absurdly large; it was not applied"
            + (f", and the batch is kept in {kept}" if kept else "")
        )

    def _report(self, step: int, metrics: Mapping[str, Any]) -> None:
        logged = self.run.log(step, metrics)
        if self.frontend.console is not None:
            self.frontend.console.update(step, logged)

    # -------------------------------------------------------------------------------- evaluation

    def _evaluate(self, state: Any, done: int) -> dict[str, float]:
        """Evaluates; returns the metrics with the time that they took."""
        assert self.evaluate is not None
        begun = time.monotonic()
        with self.watch(f"the evaluation after step {done} ({self.frontend.title})", "evaluate"):
            self.after = self.evaluate(state)
        return {**self.after, "time/evaluation_seconds": time.monotonic() - begun}

    def _track_best(self, state: Any, step: int) -> None:
        name = self.options.best
        if not name:
            return
        if name not in self.after:
            known = ", ".join(sorted(self.after))
            raise UserError(f"the evaluation has no metric {name!r} to choose the best state by; it has {known}")
        value = self.after[name]
        sign = 1.0 if self.options.best_is == "max" else -1.0
        better = math.isfinite(value) and (math.isnan(self.best_value) or sign * value > sign * self.best_value)
        if better:
            self._check_sound(state, step)
            self.best_step, self.best_value, self.stale = step, value, 0
            # Two are kept, since a run may be resumed from a checkpoint before the newer one.
            watching = self.watch(f"saving the best state, of step {step} ({self.frontend.title})", "save")
            with watching, Checkpointer(self.run.path / BEST, max_to_keep=2) as best:
                best.save(step, state, {name: value}, wait=True)
            return
        self.stale += 1
        if self.options.patience and self.stale >= self.options.patience:
            self.stop_reason = (
                f"{name} has not improved on {self.best_value:.4g} (step {self.best_step}) in {self.stale} evaluations"
            )

    def _rewind_best(self) -> None:
        """Sets best states aside that are newer than the restored checkpoint."""
        if not shared_files.is_dir(self.run.path / BEST):
            self.best_step, self.best_value = -1, math.nan
            return
        with Checkpointer(self.run.path / BEST, max_to_keep=2) as best:
            best.discard_after(self.best_step)
            if self.best_step not in best.steps():
                self.best_step, self.best_value = -1, math.nan

    # ----------------------------------------------------------------------- checkpoints, callbacks

    def _save(self, checkpoints: Checkpointer, state: Any, done: int) -> None:
        self._check_sound(state, done)
        metadata = {
            "identity": self.identity,
            "batches": self.batches.position(),
            "before": self.before,
            "after": self.after,
            "bad_steps": self.bad_steps,
            "stale": self.stale,
            "stop_reason": self.stop_reason,
            "best": self.options.best,
            "best_step": self.best_step,
            "best_value": None if math.isnan(self.best_value) else self.best_value,
        }
        with self.watch(f"saving the checkpoint of step {done} ({self.frontend.title})", "save"):
            self.run.sync()
            checkpoints.save(done, state, metadata)

    def _wait_for_checkpoint(self, checkpoints: Checkpointer, done: int) -> None:
        with self.watch(f"writing the checkpoint of step {done} ({self.frontend.title})", "write"):
            checkpoints.wait()

    def _should_stop(self, done: int) -> bool:
        """Whether a signal has arrived, here or in another process."""
        if self.frontend.interrupts is None:
            return False
        with self.watch(f"waiting for the other processes after step {done} ({self.frontend.title})", "stop"):
            return self.frontend.interrupts.should_stop()

    def _check_sound(self, state: Any, done: int) -> None:
        problem = complaint(state)
        if problem:
            raise DivergedRun(
                f"after step {done} {problem}; this state was not saved, and the last good checkpoint is kept. "
                f"{self.frontend.hint}"
            )

    def _notify(self, kind: Any, step: int, metrics: dict[str, Any], state: Any, batch: Any = None) -> None:
        event = Event(kind, step, metrics, state, batch, self.run)
        if not self.callbacks:
            return
        with self.watch(f"callbacks after step {step} ({self.frontend.title})", f"callbacks {kind}"):
            for callback in self.callbacks:
                callback(event)
        if event.stop_reason:
            self.stop_reason = event.stop_reason


def load_best(run: RunDir, target: Any) -> Any:
    """Loads the state of a loop's best evaluation.

    Args:
      run: the run directory (or the phase) of the loop.
      target: pytree of arrays or ``jax.ShapeDtypeStruct`` with the state's structure.

    Returns:
      The state, or None when none was kept.
    """
    if not shared_files.is_dir(run.path / BEST):
        return None
    with Checkpointer(run.path / BEST, read_only=True) as best:
        restored = best.restore(target)
    return None if restored is None else restored.state
