"""A supervisor for the processes of one host: starts, watches, ends and restarts them together.

One process that ends takes the others with it, since they would wait for it in the next collective; then all of them
start again from the newest checkpoint. What follows an attempt is decided in `runs.restarts`.
"""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from prm_jax import exit_codes
from prm_jax.runs.distributed_options import COORDINATOR, LAUNCHED, PROCESS_ID, PROCESSES
from prm_jax.runs.jobs import Job
from prm_jax.runs.ranks import Ranks
from prm_jax.runs.restarts import Decision, Ended, RestartLimits, Restarts, cause_of, grace_after

LOG_NAME = "launch.log"
"""File inside the run directory with the supervisor's own lines."""

_POLL = 0.1
_SECOND_SIGNAL = 1.0
"""Seconds from which a further signal counts as a second one: schedulers and terminals repeat them."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The processes of this host among those of the whole job.

    Attributes:
      count: processes on this host.
      first: number of the first of them.
      total: processes of the job on all hosts.
      coordinator: "host:port" of process 0; empty: a free port of this host, chosen for every attempt, or what the
        cluster provides where the job has a single process here and `total` is 1.
      environments: variables for each of the processes of this host, such as the devices that it may use.
    """

    count: int = 1
    first: int = 0
    total: int = 1
    coordinator: str = ""
    environments: tuple[Mapping[str, str], ...] = ()

    def whole_environments(self) -> dict[int, dict[str, str]]:
        """Number of each process of this host -> its environment for one attempt."""
        shared = {**os.environ, "PYTHONUNBUFFERED": "1", LAUNCHED: "1"}
        if self.total > 1:
            shared[COORDINATOR] = self.coordinator or f"127.0.0.1:{_free_port()}"
            shared[PROCESSES] = str(self.total)
        found = {}
        for index in range(self.count):
            own = dict(self.environments[index]) if self.environments else {}
            if self.total > 1:
                own[PROCESS_ID] = str(self.first + index)
            found[self.first + index] = shared | own
        return found


def supervise(
    job: Job, layout: Layout, limits: RestartLimits, *, finish_seconds: float = 600.0, log: pathlib.Path | None = None
) -> int:
    """Runs a job to its end, restarting it where that can help.

    SIGTERM and SIGINT are passed on to all processes, which save and exit; a second one kills them. Call it in the main
    thread; it returns when no process is left.

    Args:
      job: what every process runs.
      layout: the processes of this host.
      limits: of restarts.
      finish_seconds: how long the other processes may continue after one has finished; they then count as stuck.
      log: file for the supervisor's own lines; None: ``launch.log`` in the run directory, once that exists.

    Returns:
      An exit code of `prm_jax.exit_codes`, or 128 + n after signal n.
    """
    supervisor = _Supervisor(job, layout, finish_seconds, log)
    restarts = Restarts(limits, job.progress())
    with _signals(supervisor):
        while True:
            decision = restarts.decide(supervisor.attempt(restarts.restarts))
            supervisor.say(decision.reason)
            if not decision.restart:
                return decision.code
            if supervisor.wait(decision):
                supervisor.say("stopped while waiting for a restart; the same command continues")
                return exit_codes.INTERRUPTED


class _Supervisor:
    """One call of `supervise`."""

    def __init__(self, job: Job, layout: Layout, finish_seconds: float, log: pathlib.Path | None) -> None:
        self._job, self._layout, self._finish_seconds, self._log = job, layout, finish_seconds, log
        self._unwritten: list[str] = []
        self.signals: list[tuple[int, float]] = []

    def attempt(self, number: int) -> Ended:
        """Runs all processes until none is left."""
        command = self._job.command()
        place = "" if self._job.run_dir is None else f"{self._job.run_dir}{os.sep}"
        steps = ", ".join(f"{name.removeprefix(place)} at {step}" for name, step in self._job.progress().items())
        first, last = self._layout.first, self._layout.first + self._layout.count - 1
        which = f"process {first}" if first == last else f"processes {first} to {last}"
        self.say(f"attempt {number + 1}: {which} of {self._layout.total}" + (f"; {steps}" if steps else ""))
        ranks = Ranks(command, self._layout.whole_environments(), _emit)
        try:
            ended = self._watch(ranks)
        finally:
            ranks.kill()
        return dataclasses.replace(ended, codes=dict(ranks.codes), progress=self._job.progress())

    def _watch(self, ranks: Ranks) -> Ended:
        """Waits until the processes have ended by themselves, or must be ended."""
        first: dict[int, int] = {}
        deadline, forwarded = float("inf"), 0
        while ranks.alive and time.monotonic() < deadline:
            ended = ranks.step(_POLL)
            for process, code in ended.items():
                if code or first:
                    self.say(f"process {process} {exit_codes.describe(code)}")
            failed = {process: code for process, code in ended.items() if code}
            if failed and not first:
                first = failed
                deadline = time.monotonic() + grace_after(cause_of(first))
            elif ended and not first and deadline == float("inf"):
                deadline = time.monotonic() + self._finish_seconds
            if len(self.signals) > forwarded:
                forwarded = len(self.signals)
                if not self._forward(ranks):
                    break
        if ranks.alive:
            if not first and not self.signals:  # the others have finished
                first = dict.fromkeys(ranks.alive, exit_codes.STUCK)
            self.say(f"ending {', '.join(f'process {process}' for process in ranks.alive)}")
        stop = self.signals[0][0] if self.signals else 0
        return Ended(first, {}, stop, {})

    def _forward(self, ranks: Ranks) -> bool:
        """Passes the first signal on; False at the second one, when all processes must be killed."""
        (number, begun), (_, newest) = self.signals[0], self.signals[-1]
        name = signal.Signals(number).name
        if len(self.signals) == 1:
            self.say(f"{name}: all processes finish their step and save; send it again to kill them")
            ranks.send(signal.SIGTERM)
        elif newest - begun >= _SECOND_SIGNAL:
            self.say(f"{name} again: killing all processes. The last saved checkpoint is intact")
            return False
        return True

    def wait(self, decision: Decision) -> bool:
        """Waits before a restart; True when a signal arrived meanwhile."""
        end = time.monotonic() + decision.delay
        while not self.signals and time.monotonic() < end:
            time.sleep(min(_POLL, max(0.0, end - time.monotonic())))
        return bool(self.signals)

    def say(self, text: str) -> None:
        """Writes one line to standard error and to the log."""
        _emit(2, f"launch: {text}\n")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._unwritten.append(f"{now} {socket.gethostname()} {text}\n")
        path = self._log
        if path is None:
            if self._job.run_dir is None or not self._job.begun():
                return
            path = self._job.run_dir / LOG_NAME
        # Appended in one write: supervisors of several hosts share the file. A full disk must not end the run.
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write("".join(self._unwritten))
            self._unwritten.clear()


@contextlib.contextmanager
def _signals(supervisor: _Supervisor) -> Iterator[None]:
    """Records signals instead of dying of them; those that are ignored, as under nohup, stay ignored."""

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        supervisor.signals.append((number, time.monotonic()))

    previous: dict[int, Any] = {}
    for handled in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(handled) is not signal.SIG_IGN:
            previous[handled] = signal.signal(handled, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _emit(stream: int, text: str) -> None:
    """Writes to standard output (1) or error (2); a reader that has gone does not end the run."""
    with contextlib.suppress(OSError, ValueError):
        file = sys.stdout if stream == 1 else sys.stderr
        file.write(text)
        file.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
