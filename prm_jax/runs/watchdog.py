"""A watchdog for phases that take too long: it prints where every thread is, and can end the process."""

import contextlib
import faulthandler
import functools
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from prm_jax import exit_codes

FIRST = 10.0
"""The first phase of each kind may take this many times as long, since it compiles."""

_LOWERED, _COMPILED = "/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration"


class Watchdog:
    """Prints the name of a phase and the stacks of all threads when the phase takes too long, and ends the process.

    The stacks are printed by C code, and so even while a thread is stuck inside a library that holds Python's lock;
    only the name may then be missing. Ending the process needs the lock, which JAX releases while it waits for
    devices and other processes.
    """

    def __init__(self, seconds: float, *, exit_seconds: float = 0.0, file: TextIO | None = None) -> None:
        """Sets the limits; both are `FIRST` times as long for the first phase of each kind.

        Args:
          seconds: time after which a phase is reported, and again after every such time; 0: never.
          exit_seconds: time, compilation not counted, after which the process ends with exit code 76; 0: never.
          file: a stream with a file descriptor; default: standard error.
        """
        self.seconds, self.exit_seconds = seconds, exit_seconds
        self._file = file
        self._seen: set[str] = set()

    @contextlib.contextmanager
    def phase(self, name: str, kind: str = "") -> Iterator[None]:
        """Watches the block; blocks must not be nested.

        Args:
          name: what the process is doing, for the message.
          kind: phases of one kind do the same work, so that all but the first are compiled; empty: `name`.
        """
        file = self._file or sys.__stderr__
        factor = 1.0 if (kind or name) in self._seen else FIRST
        if not (self.seconds or self.exit_seconds) or file is None:
            yield
            return
        ended = threading.Event()
        if self.exit_seconds:
            clock = _compilation()
            self._start(self._guard, name, self.exit_seconds * factor, clock, clock.begin(), ended, file)
        if self.seconds:
            self._start(self._announce, name, self.seconds * factor, ended, file)
            faulthandler.dump_traceback_later(self.seconds * factor + 0.1, repeat=True, file=file)
        try:
            yield
            self._seen.add(kind or name)
        finally:
            ended.set()
            if self.seconds:
                faulthandler.cancel_dump_traceback_later()

    def _start(self, target: object, *args: object) -> None:
        threading.Thread(target=target, args=args, name="watchdog", daemon=True).start()  # type: ignore[arg-type]

    def _announce(self, name: str, seconds: float, ended: threading.Event, file: TextIO) -> None:
        if not ended.wait(seconds):
            _write(file, f"watchdog: {name} has taken more than {seconds:g} s; stacks of all threads:\n")

    def _guard(
        self, name: str, seconds: float, clock: "_Compilation", compiled_before: float, ended: threading.Event,
        file: TextIO,
    ) -> None:  # fmt: skip
        """Ends the process when the phase has taken `seconds` without compilation."""
        begun, left = time.monotonic(), seconds
        while not ended.wait(left):
            compiling = min(clock.seconds() - compiled_before, FIRST * seconds)
            left = seconds - (time.monotonic() - begun - compiling)
            if left <= 0:
                text = f"{name} has taken more than {seconds:g} s (compilation not counted)"
                _end_process(text, file)
                return


class _Compilation:
    """Seconds that this process has spent in XLA's compiler, measured by JAX's own events."""

    def __init__(self) -> None:
        self._total = 0.0
        self._begun: float | None = None

    def begin(self) -> float:
        """Forgets a compilation that never came; returns the seconds so far."""
        self._begun = None
        return self._total

    def seconds(self) -> float:
        """Seconds so far, with those of a compilation that is going on."""
        begun = self._begun
        return self._total + (0.0 if begun is None else time.monotonic() - begun)

    def hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """A listener of ``jax.monitoring``: a program has been lowered, and then compiled."""
        del kwargs
        if event == _LOWERED:
            self._total += duration_secs
            self._begun = time.monotonic()
        elif event == _COMPILED:
            self._total += duration_secs
            self._begun = None


@functools.cache
def _compilation() -> _Compilation:
    import jax

    clock = _Compilation()
    jax.monitoring.register_event_duration_secs_listener(clock.hear)
    return clock


def _end_process(why: str, file: TextIO) -> None:
    """Says why, with the stacks of all threads, lets the other processes of the run know, and exits."""
    _write(file, f"watchdog: {why}; ending this process with exit code {exit_codes.STUCK}. Stacks of all threads:\n")
    with contextlib.suppress(OSError, ValueError):
        faulthandler.dump_traceback(file, all_threads=True)
    telling = threading.Thread(target=_tell_others, args=(why,), daemon=True)  # process 0 may be the one that is stuck
    telling.start()
    telling.join(timeout=2.0)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(exit_codes.STUCK)


def _tell_others(why: str) -> None:
    from prm_jax.runs import distributed

    distributed.publish_failure(f"watchdog: {why}", exit_codes.STUCK)


def _write(file: TextIO, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        file.write(text)
        file.flush()
