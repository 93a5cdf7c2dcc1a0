"""A process that handles untrusted files: killed when it takes too long, limited in memory, started when needed.

The process is a script started with ``subprocess``, not a fork: it shares no memory, device or environment with this
one.  Both sides exchange JSON lines.  ``limit`` and ``serve`` run in the child and import the standard library only.
"""

import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
# Processor time is what a deadline limits, so that a busy machine fails nothing; wall time is limited to a multiple.
_WALL, _GRACE = 10.0, 30.0
_START = 120.0


class ChildFailure(Exception):
    """The child was killed or crashed while it handled a request; the message says which."""


class ChildProcess:
    """A child process that answers requests one at a time; may be used from any thread.

    Args:
      script: the file to run; it calls ``serve``.
      memory_bytes: limit of its address space.
    """

    def __init__(self, script: pathlib.Path, *, memory_bytes: int):
        self._script = script
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._rest = b""
        self._finalizer: weakref.finalize | None = None

    def ask(self, request: dict[str, Any], *, seconds: float, max_reply: int) -> dict[str, Any]:
        """The answer to a request.

        Args:
          request: JSON values.
          seconds: of processor time that the answer may take.
          max_reply: bytes that it may have.

        Raises:
          ChildFailure: it took longer, ran out of memory, crashed or answered too much; the next request starts a
            new process.
        """
        line = json.dumps({"seconds": seconds, "request": request}).encode() + b"\n"
        with self._lock:
            self._start_if_needed()
            try:
                self._send(line)
                return json.loads(self._receive(_WALL * seconds + _GRACE, max_reply))
            except (BrokenPipeError, EOFError):
                code = self._end()
                late = code == -signal.SIGPROF
                reason = f"ran for more than {seconds:g} seconds" if late else "crashed or ran out of memory"
                raise ChildFailure(reason) from None
            except ChildFailure:
                self._end()
                raise

    def close(self) -> None:
        """Ends the process; another request starts a new one."""
        with self._lock:
            self._end()

    def _start_if_needed(self) -> None:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return
        self._end()
        kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(self._script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | {"TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,
            bufsize=0,
        )
        self._owner, self._rest = os.getpid(), b""
        self._finalizer = weakref.finalize(self, _kill, self._process, self._owner)
        path = [entry for entry in sys.path if entry and os.path.exists(entry)]
        try:
            self._send(json.dumps({"path": path, "memory_bytes": self._memory_bytes}).encode() + b"\n")
            self._receive(_START, 1000)
        except (BrokenPipeError, EOFError, ChildFailure) as error:
            self._end()
            raise RuntimeError(f"the process {self._script.name} did not start: {error}") from error

    def _end(self) -> int:
        """Ends the process; its exit code, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return 0
        if self._finalizer is not None:
            self._finalizer.detach()
        code = process.poll()
        if code is None and self._owner == os.getpid():
            try:  # it may just be exiting by its own timer
                code = process.wait(0.5)
            except subprocess.TimeoutExpired:
                _kill(process, self._owner)
                code = process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        return code or 0

    def _send(self, line: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        fd = self._process.stdin.fileno()
        while line:
            line = line[os.write(fd, line) :]

    def _receive(self, wall: float, max_reply: int) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        fd, deadline = self._process.stdout.fileno(), time.monotonic() + wall
        parts = [self._rest]
        size = len(self._rest)
        while b"\n" not in parts[-1]:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ChildFailure(f"took longer than {wall:g} seconds on the clock")
            part = os.read(fd, 1 << 16)
            if not part:
                raise EOFError
            size += len(part)
            if size > max_reply:
                raise ChildFailure(f"answered more than {max_reply} bytes")
            parts.append(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line


def serve(make: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """The life of a child: answers requests from standard input until it ends.

    Args:
      make: imports what is needed and returns the function that answers; called before the limits apply.
    """
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that a library prints may end up among the replies
    options = json.loads(sys.stdin.buffer.readline())
    sys.path.extend(path for path in options["path"] if path not in sys.path)
    answer = make()
    _limit(options["memory_bytes"])
    _write(replies, {"ready": True})
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
        reply = answer(asked["request"])
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        _write(replies, reply)


def _limit(memory_bytes: int) -> None:
    import resource

    for kind, limit in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit of address space
            resource.setrlimit(kind, (limit, limit))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _write(fd: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def _kill(process: subprocess.Popen[bytes], owner: int) -> None:
    """SIGKILL to the process and its group, unless this is a fork of the process that started it."""
    if os.getpid() == owner and process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
