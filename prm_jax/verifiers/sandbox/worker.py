"""One sandbox as seen from outside: starting it, starting programs in it, and talking with them."""

import contextlib
import os
import select
import subprocess
import time
import weakref
from typing import Any

from prm_jax.verifiers.sandbox.inside.frames import loads, pack
from prm_jax.verifiers.sandbox.levels import Interpreter, Level, start_of
from prm_jax.verifiers.sandbox.limits import Limits
from prm_jax.verifiers.sandbox.outcome import Run, State

_START_SECONDS = 60.0
_GRACE_SECONDS = 20.0


class SandboxFailure(Exception):
    """The sandbox itself failed; nothing is known about the program that it was running."""


class Worker:
    """A sandbox that runs one program at a time, each in a process that nothing has run in before.

    Started by the first program, and again after a failure or `recycle_after` programs.

    Args:
      level: of isolation.
      interpreter: what programs run on.
      slot: number of this worker.
      recycle_after: programs after which the sandbox itself is recreated.
    """

    def __init__(self, level: Level, interpreter: Interpreter, slot: int, recycle_after: int = 2000) -> None:
        self.level, self.interpreter, self.slot = level, interpreter, slot
        self.recycle_after = recycle_after
        self.facts: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()
        self._started = 0
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def start(self, mode: str, limits: Limits, **fields: Any) -> None:
        """Starts a program; ``finish`` must follow.

        Args:
          mode: ``"script"``, ``"functions"`` or ``"judge"``.
          limits: of the program.
          **fields: ``code``, ``stdin``, ``tests``, ``calls``.

        Raises:
          SandboxFailure: no sandbox could be started.
        """
        if self._process is None or self._process.poll() is not None or self._started >= self.recycle_after:
            self.close()
            self._open()
        self._started += 1
        calls = fields.pop("calls", 1)
        allowed = {
            "cpu_seconds": limits.cpu_seconds,
            "wall_seconds": limits.wall_seconds * calls,
            "memory_bytes": limits.memory_bytes,
            "output_bytes": limits.output_bytes,
            "message_bytes": limits.output_bytes,
            "open_files": limits.open_files,
            "threads": limits.threads,
            "calls": calls,
        }
        self.deadline = time.monotonic() + allowed["wall_seconds"] + _GRACE_SECONDS
        self._write({"start": {"mode": mode, "limits": allowed, **fields}})

    def send(self, message: Any) -> None:
        """Sends a message to the running program."""
        self._write({"send": message})

    def stop(self) -> None:
        """Kills the running program."""
        self._write({"stop": True})

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """The next report: ``{"message": ...}`` from the program, or ``{"end": ...}``; None after `seconds`.

        Raises:
          SandboxFailure: the sandbox ended, or says nothing past the program's deadline.
        """
        until = self.deadline if seconds is None else min(self.deadline, time.monotonic() + seconds)
        process = self._process
        assert process is not None and process.stdout is not None
        while True:
            if len(self._buffer) >= 4:
                length = int.from_bytes(self._buffer[:4], "big")
                if len(self._buffer) >= 4 + length:
                    body = bytes(self._buffer[4 : 4 + length])
                    del self._buffer[: 4 + length]
                    try:
                        return dict(loads(body))
                    except ValueError as error:
                        raise self._failure(f"malformed report: {error}") from error
            left = until - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                if time.monotonic() >= self.deadline:
                    raise self._failure("no report past the deadline")
                return None
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                raise self._failure("it ended")
            self._buffer += data

    def finish(self) -> Run:
        """Waits for the end of the running program."""
        while True:
            report = self.receive()
            if report is not None and "end" in report:
                return as_run(report["end"])

    def run_script(self, code: str, stdin: str, limits: Limits) -> Run:
        """Runs a program as a script."""
        self.start("script", limits, code=code, stdin=stdin)
        return self.finish()

    @property
    def pid(self) -> int | None:
        """Process id of the sandbox, or None before its start."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """Ends the sandbox and what runs in it."""
        if self._finalizer is not None:
            self._finalizer()
        self._process, self._finalizer = None, None
        self._buffer.clear()

    def _open(self) -> None:
        start = start_of(self.level, self.interpreter, self.slot)
        identity: dict[str, Any] = {}
        if start.user is not None:
            identity = {"user": start.user, "group": start.user, "extra_groups": []}
        try:
            self._process = subprocess.Popen(
                start.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                start_new_session=True, cwd="/", env={"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
                | ({"PATH": os.environ.get("PATH", "/usr/bin")} if self.level == "bubblewrap" else {}), **identity,
            )  # fmt: skip
        except OSError as error:
            raise SandboxFailure(f"the sandbox does not start: {error}") from error
        self._finalizer = weakref.finalize(self, _end, self._process)
        self._started = 0
        self.deadline = time.monotonic() + _START_SECONDS
        report = self.receive()
        if report is None or "ready" not in report:
            raise self._failure("it did not become ready")
        self.facts = report

    def _write(self, message: Any) -> None:
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            view = memoryview(pack(message))
            while view:
                view = view[os.write(process.stdin.fileno(), view) :]
        except OSError as error:
            raise self._failure(str(error)) from error

    def _failure(self, what: str) -> SandboxFailure:
        process, said = self._process, ""
        if process is not None and process.stderr is not None:
            _kill(process)
            with contextlib.suppress(OSError, ValueError):
                said = process.stderr.read(4000).decode(errors="replace").strip()
        self.close()
        return SandboxFailure(f"the sandbox failed: {what}" + (f"; it said: {said[-400:]}" if said else ""))


def as_run(end: dict[str, Any]) -> Run:
    """How a program ended, from the report of its sandbox."""
    by, status = end["by"], end["status"]
    state: State = "timeout" if by == "timeout" else "ok" if by == "exit" and status == 0 else "crash"
    details = {
        "timeout": f"no end after {end['wall_seconds']:.1f} s ({end['cpu_seconds']:.1f} s of processor time)",
        "output": "too much output",
        "stopped": "stopped",
        "signal": f"ended by signal {status}",
        "exit": "" if status == 0 else f"exit status {status}",
    }
    detail = details[by]
    last = end["stderr"].strip().splitlines()[-1:] if by == "exit" and status else []
    return Run(
        state, end["stdout"], end["stderr"], status, end["cpu_seconds"], end["wall_seconds"], end["memory_bytes"],
        ": ".join([detail, *last])[:300],
    )  # fmt: skip


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(OSError):
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Closing its input ends the sandbox; whatever is left after a moment is killed."""
    for stream in (process.stdin,):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        _kill(process)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
