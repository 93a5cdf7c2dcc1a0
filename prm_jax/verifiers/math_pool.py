"""A pool of processes that compare mathematical answers under a hard deadline.

The processes are started with ``subprocess`` and not forked from this one, so they share nothing with it:
no jax, no accelerator, only a few harmless environment variables, no module of the caller. The pool may be used
from any thread.
"""

import concurrent.futures
import importlib.util
import json
import os
import pathlib
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any, cast

from prm_jax.errors import MissingExtraError
from prm_jax.verifiers.verdict import Status, Verdict, broken

_WORKER = pathlib.Path(__file__).with_name("math_worker.py")
_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
_NO_ACCELERATOR = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
# Wall time after which the worker itself counts as stuck: more than it grants a check.
_WALL = 10
_GRACE = 30.0


class MathPool:
    """Compares answers in separate processes.

    A worker consists of a process that has imported mpmath and a forked child that does one check after the other. A
    child that exceeds its deadline is killed, reaped and replaced in milliseconds; one that has done ``recycle_after``
    checks is replaced too, which returns the memory of its caches. Nothing is started before the first check.

    Args:
      workers: how many checks run at once; by default the number of processors, at most 4.
      timeout: seconds of processor time that a check may take; of wall time it may take ten times as many, which
        happens only on a busy machine.
      recycle_after: checks per child.
      memory_bytes: address space of one child.
      start_timeout: seconds that a worker may take to start.

    Raises:
      MissingExtraError: when mpmath is not installed.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        timeout: float = 2.0,
        recycle_after: int = 5000,
        memory_bytes: int = 2 << 30,
        start_timeout: float = 120.0,
    ) -> None:
        if importlib.util.find_spec("mpmath") is None:
            raise MissingExtraError(
                "this needs the package 'mpmath', which is not installed: pip install 'prm-jax[math]'"
            )
        self.timeout = timeout
        count = workers or min(4, os.cpu_count() or 1)
        options = {"memory_bytes": memory_bytes, "recycle_after": recycle_after}
        self._workers = [_Worker(options, start_timeout) for _ in range(count)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = concurrent.futures.ThreadPoolExecutor(count, "prm_jax-math")
        self._finalizer = weakref.finalize(self, _close, self._workers, self._threads, os.getpid())

    def compare_many(
        self, pairs: Sequence[tuple[str, str]], timeout: float | None = None, *, strict: bool = False
    ) -> list[Verdict]:
        """One verdict for each (answer, gold) in LaTeX, in order; equal pairs are compared once.

        Args:
          pairs: answers and references, within the limits of ``prm_jax.verifiers.limits``.
          timeout: seconds per check, instead of the pool's.
          strict: as for ``prm_jax.verifiers.comparison.Comparison``.

        Returns:
          Verdicts: ``"timeout"`` when the answer exceeded the deadline or the memory, ``"error"`` when the reference
          did or cannot be evaluated, or when a worker failed twice.

        Raises:
          RuntimeError: when no worker can be started; the message says what it reported.
        """
        limit = self.timeout if timeout is None else timeout
        distinct = list(dict.fromkeys(pairs))
        verdicts = self._threads.map(lambda pair: self._compare(pair[0], pair[1], limit, strict), distinct)
        by_pair = dict(zip(distinct, verdicts, strict=True))
        return [by_pair[pair] for pair in pairs]

    def pids(self) -> list[int]:
        """The process ids of the running workers (not of their children)."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def close(self) -> None:
        """Ends all processes; the pool cannot be used afterwards."""
        self._finalizer()

    def _compare(self, answer: str, gold: str, timeout: float, strict: bool) -> Verdict:
        worker = self._idle.get()
        try:
            return worker.compare({"answer": answer, "gold": gold, "timeout": timeout, "strict": strict})
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, started on first use and again after a failure."""

    def __init__(self, options: dict[str, int], start_timeout: float) -> None:
        self._options = options
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._count = 0
        self._lock = threading.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def close(self) -> None:
        """Ends the process for good; a comparison in progress in another thread ends with an error."""
        self._closed = True
        if self._lock.acquire(blocking=False):
            self._end()
            self._lock.release()
        else:
            _signal_group(self._process)

    def compare(self, request: dict[str, Any]) -> Verdict:
        """A verdict; a worker that fails is restarted once."""
        with self._lock:
            for _ in range(2):
                if self._closed:
                    return broken("the pool that checks answers is closed")
                try:
                    if self._process is None:
                        self._start()
                    reply = self._ask(request, _WALL * request["timeout"] + _GRACE)
                    return _verdict(reply)
                except (BrokenPipeError, EOFError, TimeoutError):
                    self._end()
            return broken("the process that checks answers failed twice")

    def _end(self) -> None:
        """Ends the process and its child, and reaps it."""
        process, self._process, self._rest = self._process, None, b""
        if process is not None:
            _signal_group(process)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def _start(self) -> None:
        kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | _NO_ACCELERATOR,
            start_new_session=True,
            bufsize=0,
        )
        path = [entry for entry in sys.path if entry and os.path.exists(entry)]
        try:
            self._send({"path": path, **self._options})
            greeting = self._receive(time.monotonic() + self._start_timeout)
        except (BrokenPipeError, EOFError, TimeoutError) as error:
            self._end()
            raise RuntimeError(
                f"the process that checks answers did not start within {self._start_timeout:g} s"
            ) from error
        if not greeting.get("ready"):
            self._end()
            raise RuntimeError(f"the process that checks answers cannot work: {greeting.get('detail')}")

    def _ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        self._count += 1
        self._send({"id": self._count, **request})
        reply = self._receive(time.monotonic() + timeout)
        if reply.get("id") != self._count:
            raise EOFError("a reply to another request")
        return reply

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process and self._process.stdin
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    def _receive(self, deadline: float) -> dict[str, Any]:
        assert self._process and self._process.stdout
        fd = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            part = os.read(fd, 65536)
            if not part:
                raise EOFError
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


def _signal_group(process: subprocess.Popen[bytes] | None) -> None:
    """SIGKILL to a worker and its child, which share a process group of their own."""
    if process is not None and process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _verdict(reply: dict[str, Any]) -> Verdict:
    status = cast(Status, reply["status"])
    return Verdict(float(status == "pass"), status, reply["detail"])


def _close(workers: list[_Worker], threads: concurrent.futures.ThreadPoolExecutor, owner: int) -> None:
    if os.getpid() != owner:  # a fork of the owner must not end the owner's processes
        return
    threads.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.close()
