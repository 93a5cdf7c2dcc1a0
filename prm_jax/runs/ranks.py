"""The processes of one attempt: started together, their output prefixed, ended together."""

import contextlib
import dataclasses
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

_TETHERED = pathlib.Path(__file__).with_name("tethered.py")
_LONG_LINE = 1 << 16

Emit = Callable[[int, str], None]
"""``(number of the stream, 1 or 2; text that ends in a newline)``."""


@dataclasses.dataclass
class _Stream:
    """One of a process's two outputs, with the line that is not complete yet."""

    process: int
    number: int
    rest: bytes = b""


class Ranks:
    """The processes of one attempt. Not thread-safe: the thread that starts them must live as long as they do."""

    def __init__(self, command: Sequence[str], environments: Mapping[int, Mapping[str, str]], emit: Emit) -> None:
        """Starts one process per environment, each in a session of its own and tied to the life of this process.

        Args:
          command: what every process executes.
          environments: number of the process -> its whole environment.
          emit: receives the output line by line, prefixed with the number of the process.
        """
        self.codes: dict[int, int] = {}
        self._emit = emit
        self._selector = selectors.DefaultSelector()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        tethered = [sys.executable, "-I", "-S", str(_TETHERED), str(os.getpid()), *command]
        try:
            for number, environment in environments.items():
                process = subprocess.Popen(
                    tethered, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, start_new_session=True,
                )  # fmt: skip
                self._processes[number] = process
                for index, pipe in ((1, process.stdout), (2, process.stderr)):
                    assert pipe is not None
                    os.set_blocking(pipe.fileno(), False)
                    self._selector.register(pipe, selectors.EVENT_READ, _Stream(number, index))
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> list[int]:
        """Numbers of the processes that have not ended."""
        return [number for number in self._processes if number not in self.codes]

    def step(self, seconds: float) -> dict[int, int]:
        """Passes output on for at most `seconds`; returns the processes that ended, with their exit codes."""
        if self._selector.get_map():
            for key, _ in self._selector.select(seconds):
                self._read(key.fileobj, key.data)
        else:
            time.sleep(seconds)
        ended = {}
        for number in self.alive:
            if _has_ended(self._processes[number]):
                ended[number] = self._collect(number)
        return ended

    def send(self, signal_number: int) -> None:
        """Sends a signal to every process that has not ended."""
        for number in self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._processes[number].pid, signal_number)

    def kill(self) -> None:
        """Kills what has not ended, with the processes of its session, and waits for it."""
        for number in self.alive:
            _kill_group(self._processes[number].pid)
        for number in self.alive:
            self._processes[number].wait()
            self._collect(number)
        self._selector.close()

    def _collect(self, number: int) -> int:
        """Takes the exit code of an ended process, after what it started and its last output."""
        process = self._processes[number]
        if process.returncode is None:
            _kill_group(process.pid)  # before the number of the process may be given to another
        self.codes[number] = process.wait()
        for key in list(self._selector.get_map().values()):
            if key.data.process == number:
                self._read(key.fileobj, key.data)
                self._finish(key.fileobj, key.data)
        return self.codes[number]

    def _read(self, pipe: IO[bytes] | Any, stream: _Stream) -> None:
        while True:
            try:
                data = os.read(pipe.fileno(), 1 << 16)
            except BlockingIOError:
                return
            if not data:
                self._finish(pipe, stream)
                return
            *lines, stream.rest = (stream.rest + data).split(b"\n")
            if len(stream.rest) > _LONG_LINE:
                lines, stream.rest = [*lines, stream.rest], b""
            for line in lines:
                self._pass_on(stream, line)

    def _finish(self, pipe: IO[bytes] | Any, stream: _Stream) -> None:
        if pipe.closed:
            return
        if stream.rest:
            self._pass_on(stream, stream.rest)
        self._selector.unregister(pipe)
        pipe.close()

    def _pass_on(self, stream: _Stream, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace").rstrip("\r")
        self._emit(stream.number, f"[{stream.process}] {text}\n")


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended, without taking its exit code: until then, its number belongs to it."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
