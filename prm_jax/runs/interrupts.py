"""Handlers for SIGTERM and SIGINT: the first signal lets the loop finish its step and save, the second exits."""

import contextlib
import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from prm_jax.runs import processes


class Interrupts:
    """Turns SIGTERM and Ctrl-C into a flag that a training loop reads between steps.

    ``with Interrupts() as interrupts:`` installs the handlers and restores the previous ones on exit. The first signal
    sets ``requested``; a second one at least ``grace`` seconds later exits immediately with status 128 + signal, even
    while the main thread is inside a long compilation (a small thread listens on the signal wake-up descriptor).
    Signals closer together count as one, because ``make`` and batch schedulers repeat them. Outside the main thread,
    where Python allows no handlers, this does nothing, and ``requested`` changes only through ``request``.
    """

    def __init__(
        self, signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM), *, grace: float = 1.0
    ) -> None:
        self._signals = signals
        self._grace = grace
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_fd = -1
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._listener: threading.Thread | None = None
        self._flag = threading.Event()
        self.signal_name = ""

    @property
    def requested(self) -> bool:
        """Whether this process has received a signal, or ``request`` was called."""
        return self._flag.is_set()

    def request(self, name: str = "request") -> None:
        """Sets the flag as a signal would."""
        self.signal_name = self.signal_name or name
        self._flag.set()

    def should_stop(self) -> bool:
        """``requested``, agreed between all processes: True in all of them once it is True in one.

        With several processes this is a collective call (see `prm_jax.runs.processes`), so that all of them save the
        same step; call it once per step in every process.
        """
        if processes.any_true(self.requested, name="signals"):
            self.request("a signal to another process")
        return self.requested

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is not threading.main_thread():
            return self
        read_end, write_end = socket.socketpair()
        write_end.setblocking(False)
        self._ends = (read_end, write_end)
        self._previous_fd = signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handle)
        self._listener = threading.Thread(target=self._listen, name="interrupts", daemon=True)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ends is None:
            return
        for number, handler in self._previous.items():
            # None: installed by C code and impossible to restore from Python; use the default instead.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
        signal.set_wakeup_fd(self._previous_fd)
        read_end, write_end = self._ends
        write_end.close()  # ends the listener's loop
        if self._listener is not None:
            self._listener.join(timeout=1.0)
        read_end.close()
        self._ends = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.request(signal.Signals(number).name)

    def _listen(self) -> None:
        assert self._ends is not None
        read_end = self._ends[0]
        first: float | None = None
        while True:
            try:
                data = read_end.recv(1)
            except OSError:
                return
            if not data:
                return
            number = data[0]
            if number not in self._signals:
                continue
            now = time.monotonic()
            name = signal.Signals(number).name
            if first is None:
                first = now
                self.request(name)
                _say(f"\n{name}: finishing the step and saving; send it again to exit immediately.\n")
            elif now - first >= self._grace:
                _say(f"\n{name} again: exiting immediately. The last saved checkpoint is intact.\n")
                os._exit(128 + number)


def _say(text: str) -> None:
    # Straight to the descriptor: the main thread may be inside a write to the buffered stream.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
