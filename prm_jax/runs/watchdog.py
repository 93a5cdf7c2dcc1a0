"""A watchdog for phases that take too long: it prints where every thread is."""

import contextlib
import faulthandler
import sys
import threading
from collections.abc import Iterator
from typing import TextIO


class Watchdog:
    """Prints the name of a phase and the stacks of all threads when the phase takes too long.

    The process is not stopped. The stacks are printed by C code, and so even while a thread is stuck inside a library
    that holds Python's lock; only the name may then be missing.
    """

    def __init__(self, seconds: float, *, file: TextIO | None = None) -> None:
        """Sets the limit.

        Args:
          seconds: time after which a phase is reported, and again after every such time; 0: never.
          file: a stream with a file descriptor; default: standard error.
        """
        self.seconds = seconds
        self._file = file

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watches the block, whose `name` is for the message; blocks must not be nested."""
        file = self._file or sys.__stderr__
        if not self.seconds or file is None:
            yield
            return
        announcement = threading.Timer(self.seconds, self._announce, (name, file))
        announcement.daemon = True
        announcement.start()
        faulthandler.dump_traceback_later(self.seconds + 0.1, repeat=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            announcement.cancel()

    def _announce(self, name: str, file: TextIO) -> None:
        with contextlib.suppress(OSError, ValueError):
            file.write(f"watchdog: {name} has taken more than {self.seconds:g} s; stacks of all threads:\n")
            file.flush()
