"""Progress of a run: a live table on a terminal, plain lines everywhere else."""

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO, cast

import rich.console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prm_jax.terminal import Forgiving

LINES = 30
"""About as many plain lines are printed per phase, so that the log of a long run stays readable."""

_SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Row:
    """Display of one metric.

    Attributes:
      key: the metric's "phase/name".
      label: its name on the console.
      percent: show it as a percentage.
      brief: also show it in plain lines.
    """

    key: str
    label: str
    percent: bool = False
    brief: bool = False


ROWS = (
    Row("eval/greedy_accuracy", "greedy accuracy", percent=True, brief=True),
    Row("eval/sampled_accuracy", "sampled accuracy", percent=True, brief=True),
    Row("eval/greedy_step_accuracy", "greedy step accuracy", percent=True),
    Row("eval/sampled_step_accuracy", "sampled step accuracy", percent=True),
    Row("rollout/solve_rate", "solve rate", percent=True, brief=True),
    Row("rollout/kept_groups", "prompts kept", percent=True, brief=True),
    Row("rollout/length", "response length"),
    Row("prm/pairwise_accuracy", "PRM pairwise accuracy", percent=True, brief=True),
    Row("prm/gate", "PRM trust gate"),
    Row("prm_eval/first_error_f1", "first-error F1", brief=True),
    Row("prm_eval/step_auc", "step AUC"),
    Row("prm/loss", "PRM loss"),
    Row("policy/loss", "policy loss"),
    Row("policy/entropy", "entropy", brief=True),
    Row("policy/kl", "KL to reference", brief=True),
    Row("policy/grad_norm", "gradient norm"),
    Row("sft/loss", "loss", brief=True),
    Row("time/step_seconds", "seconds per step"),
    Row("time/draw_seconds", "seconds per batch"),
    Row("time/update_seconds", "seconds per update"),
    Row("time/evaluation_seconds", "seconds per evaluation"),
)
"""Metrics in display order; those that are never reported are not shown."""


@dataclass(frozen=True)
class Phase:
    """One phase of a run, as announced by ``Console.plan``.

    Attributes:
      name: its title.
      total: number of steps.
      like: phases with the same `like` take about the same time per step; default: the name.
    """

    name: str
    total: int
    like: str = ""


class Console:
    """Shows the progress of phases (warm start, training, baseline) and their metrics.

    Use it as a context manager. ``phase`` begins a phase, and ``update`` reports one of its steps. When the output
    fails (a closed pipe, a lost terminal) the console falls silent and the run continues.
    """

    def __init__(
        self,
        title: str = "",
        *,
        rows: Sequence[Row] = ROWS,
        every: int = 10,
        file: TextIO | None = None,
        live: bool | None = None,
    ) -> None:
        """Writes nothing before the first phase or message.

        Args:
          title: heading of the live table, such as the run's directory.
          rows: the metrics to show.
          every: steps between plain lines; the first and last step of a phase are always shown.
          file: output stream; default: standard output.
          live: whether to draw a live table; default: if the output is a terminal that supports it.
        """
        output = cast(TextIO, Forgiving(file or sys.stdout))
        self._console = rich.console.Console(file=output, highlight=False, soft_wrap=False)
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._is_live = terminal if live is None else live
        self._title, self._rows, self._every = title, tuple(rows), max(1, every)
        self._interval = self._every
        self._name, self._total, self._step, self._first = "", 0, 0, 0
        self._values: dict[str, list[float]] = {}
        self._times: deque[tuple[float, int]] = deque(maxlen=20)
        self._started = time.monotonic()
        self._live: Live | None = None
        self._plan: list[Phase] = []
        self._rates: dict[str, float] = {}

    def plan(self, phases: Sequence[Phase]) -> None:
        """Announces the phases of the whole run, in order, so that the time left covers all of them."""
        self._plan = list(phases)

    def phase(self, name: str, total: int, *, start: int = 0) -> None:
        """Begins a phase of `total` steps; `start` of them are already complete in a resumed run."""
        self._finish_live()
        self._remember_rate()
        self._name, self._total, self._step, self._first = name, total, start, start
        self._interval = max(self._every, (total - start) // LINES)
        self._values = {}
        self._started = time.monotonic()
        self._times.clear()
        if self._is_live:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=2)
            self._live.start()
        else:
            steps = "1 step" if total - start == 1 else f"{total - start} steps"
            self._print(f"{name}: {steps}" + (f", from step {start}" if start else ""))

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Reports that `step` steps of the phase are complete, with the newest values of metrics.

        Args:
          step: 1 after the first step.
          metrics: plain numbers by name, as ``RunDir.log`` returns them.
        """
        self._step = step
        if step > self._first:
            self._times.append((time.monotonic(), step))
        for key, value in metrics.items():
            self._values.setdefault(key, []).append(float(value))
        if self._live is not None:
            self._live.refresh()
        elif step % self._interval == 0 or step >= self._total or step == self._first + 1:
            self._print(self.line())

    def message(self, text: str, *, style: str = "") -> None:
        """Prints a message; lines stay above a live table."""
        self._print(text, style=style)

    def line(self) -> str:
        """Progress of the phase as one plain line."""
        parts = [f"{self._name} {self._step}/{self._total}"]
        for row in self._rows:
            if row.brief and row.key in self._values:
                parts.append(f"{row.label} {_number(self._values[row.key][-1], row.percent)}")
        left = self._left_text()
        if left:
            parts.append(left)
        elif self._step >= self._total:
            parts.append(f"done in {duration(time.monotonic() - self._started)}")
        return "  ".join(parts)

    def seconds_left(self) -> float | None:
        """Estimated time left in the phase at the pace of the last steps; None before the second step.

        The first step is excluded, because it includes compilation.
        """
        rate = self._rate()
        return None if rate is None else rate * (self._total - self._step)

    def run_seconds_left(self) -> float | None:
        """Estimated time left in the whole planned run; None while the pace of a later phase is unknown."""
        left = self.seconds_left()
        later = self._later()
        if left is None or not later:
            return left
        for phase in later:
            rate = self._rates.get(phase.like or phase.name)
            if rate is None and (phase.like or phase.name) == self._like():
                rate = self._rate()
            if rate is None:
                return None
            left += rate * phase.total
        return left

    def _rate(self) -> float | None:
        if len(self._times) < 2:
            return None
        (t0, s0), (t1, s1) = self._times[0], self._times[-1]
        return (t1 - t0) / (s1 - s0) if s1 > s0 else None

    def _remember_rate(self) -> None:
        rate = self._rate()
        if rate is not None:
            self._rates[self._like()] = rate

    def _like(self) -> str:
        return next((phase.like or phase.name for phase in self._plan if phase.name == self._name), self._name)

    def _later(self) -> list[Phase]:
        names = [phase.name for phase in self._plan]
        return self._plan[names.index(self._name) + 1 :] if self._name in names else []

    def _left_text(self) -> str:
        if self._step >= self._total:
            return ""
        whole, phase = self.run_seconds_left(), self.seconds_left()
        if whole is not None:
            return f"{duration(whole)} left"
        if phase is None:
            return ""
        return f"{duration(phase)} left, then {', '.join(later.name for later in self._later())}"

    def __enter__(self) -> "Console":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_live()

    def _print(self, text: str, style: str = "") -> None:
        # Plain lines are never wrapped, because logs are searched rather than read.
        soft_wrap = self._live is None
        self._console.print(text, style=style, markup=False, soft_wrap=soft_wrap)

    def _finish_live(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()  # draws the final state

    def _render(self) -> Table:
        width = self._console.width
        frame = Table.grid(expand=False)
        frame.add_column(overflow="ellipsis", no_wrap=True, max_width=width)
        if self._title:
            frame.add_row(Text(self._title, style="dim"))
        frame.add_row(self._progress(width))
        shown = [row for row in self._rows if row.key in self._values]
        if shown:
            frame.add_row(self._metrics(shown[: max(3, self._console.height - 5)], width))
        return frame

    def _progress(self, width: int) -> Table:
        line = Table.grid(padding=(0, 1))
        for _ in range(4):
            line.add_column(no_wrap=True, overflow="ellipsis")
        remaining = self._left_text()
        elapsed = duration(time.monotonic() - self._started)
        bar = ProgressBar(total=max(1, self._total), completed=self._step, width=max(8, min(40, width - 60)))
        counts = f"{self._step}/{self._total}"
        line.add_row(Text(self._name, style="bold"), bar, counts, f"{elapsed}  {remaining}".strip())
        return line

    def _metrics(self, rows: Sequence[Row], width: int) -> Table:
        table = Table(box=None, padding=(0, 1), show_header=True, header_style="dim", pad_edge=False)
        table.add_column("metric", no_wrap=True, overflow="ellipsis", min_width=8)
        table.add_column("now", justify="right", no_wrap=True)
        if width >= 44:
            table.add_column("change", justify="right", no_wrap=True)
        sparks = width >= 64 and (self._console.encoding or "").lower().startswith("utf")
        if sparks:
            table.add_column("trend", no_wrap=True)
        for row in rows:
            values = self._values[row.key]
            cells = [row.label, _number(values[-1], row.percent)]
            if width >= 44:
                cells.append(_change(values, row.percent))
            if sparks:
                cells.append(sparkline(values, min(32, width - 52)))
            table.add_row(*cells)
        return table


def sparkline(values: Sequence[float], width: int) -> str:
    """A series drawn in `width` characters; non-finite values are gaps."""
    finite = [v for v in values if v - v == 0]
    if not finite or width < 1:
        return ""
    low, high = min(finite), max(finite)
    if len(values) > width:  # average each stretch, so that noise does not dominate
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((v - low) * scale)] if v - v == 0 else " " for v in values)


def duration(seconds: float) -> str:
    """A human-readable duration: 42 s, 3 min 05 s, 2 h 10 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def _number(value: float, percent: bool) -> str:
    if value - value != 0:
        return str(value)
    if percent:
        return f"{100 * value:.1f}%"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"


def _change(values: Sequence[float], percent: bool, *, span: int = 10) -> str:
    # Relative to the value `span` reports ago, or the first: differences between single steps are mostly noise.
    if len(values) < 2:
        return ""
    difference = values[-1] - values[max(0, len(values) - 1 - span)]
    if difference - difference != 0:
        return ""
    return f"{100 * difference:+.1f}" if percent else f"{difference:+.3g}"
