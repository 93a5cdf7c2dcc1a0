"""Progress of a command over many problems: a bar on a terminal, plain lines elsewhere, on standard error."""

import io
import sys
import time
from types import TracebackType
from typing import Any, TextIO, cast

from prm_jax.terminal import Forgiving


class Progress:
    """Shows the number of completed problems, what the policy has sampled, and the remaining time.

    Problems advance in chunks that may take minutes, so samples are reported in between. Use it as a context manager.

    Args:
      total: problems of the whole run.
      done: problems that an earlier run has completed.
      every: seconds between plain lines while a chunk is running.
      file: the output; standard error by default.
      live: show a bar; by default where the output is a terminal that can show one.
    """

    def __init__(
        self, total: int, done: int = 0, *, every: float = 30.0, file: TextIO | None = None, live: bool | None = None
    ) -> None:
        import rich.console

        from prm_jax.runs import processes

        if file is None and not processes.is_first():
            file = io.StringIO()
        output = cast(TextIO, Forgiving(file or sys.stderr))
        self._console = rich.console.Console(file=output, highlight=False, soft_wrap=True)
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = terminal if live is None else live
        self._total, self._done, self._first, self._every = total, done, done, every
        self._samples = self._tokens = 0
        self._result = ""
        self._begun = self._told = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        """Shows the bar."""
        if self._live:
            from rich import progress

            self._bar = progress.Progress(
                progress.BarColumn(),
                progress.TextColumn("{task.completed}/{task.total} problems{task.fields[note]}", markup=False),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=self._total, completed=self._done, note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the bar, which stays visible."""
        if self._bar is not None:
            self._bar.stop()

    def wrote(self, samples: int, tokens: int) -> None:
        """Reports new steps or solutions, and the number of their tokens."""
        self._samples += samples
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(self._task, note=self._note())
        elif time.monotonic() - self._told >= self._every:
            self._line()

    def update(self, done: int, result: str) -> None:
        """Reports the number of completed problems, with a short text about their results."""
        self._done, self._result = done, result
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=self._note())
        else:
            self._line()

    def _line(self) -> None:
        self._told = time.monotonic()
        self._console.print(f"{self._done}/{self._total} problems{self._note()}", markup=False)

    def _note(self) -> str:
        from prm_jax.runs.console import duration

        passed = time.monotonic() - self._begun
        parts = [self._result] if self._result else []
        if self._samples:
            parts.append(f"{self._samples:,} samples")
        if self._tokens:
            parts.append(f"{self._tokens:,} tokens")
        parts.append(duration(passed))
        new = self._done - self._first
        if new and self._done < self._total:
            # Problems are completed a chunk at a time, so the time of a running chunk counts for none of them.
            parts.append(f"about {duration(passed / new * (self._total - self._done))} left")
        return ", " + ", ".join(parts)
