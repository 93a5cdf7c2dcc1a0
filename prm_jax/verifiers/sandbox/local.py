"""The sandbox of this machine: programs and tests on as many workers as there are processors."""

import contextlib
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from prm_jax.verifiers.sandbox.levels import Level, choose_level, find_interpreter
from prm_jax.verifiers.sandbox.limits import Limits
from prm_jax.verifiers.sandbox.outcome import Run, TestResult
from prm_jax.verifiers.sandbox.tests_of_code import CallTests, IOTests, Tests, judge_output
from prm_jax.verifiers.sandbox.worker import SandboxFailure, Worker, as_run

ATTEMPTS = 3
"""How often a program is tried when the sandbox fails."""


class LocalSandbox:
    """Runs model-written programs on this machine, isolated by the operating system.

    A program can read the Python standard library and its input. It can write no file, open no connection, start no
    process and signal none. Each program runs in a process forked from one that has never run a program, and it never
    shares a process with the tests. May be used from any thread.

    Args:
      level: ``"bubblewrap"`` (namespaces, Landlock where the kernel has it, a filter of system calls),
        ``"landlock"`` (without namespaces), or ``"auto"``: the strongest that this machine has.
      workers: programs that run at once; 0: as many as processors.
      limits: of each program, or of each test.
      python: interpreter for programs; empty: this one, or the system's where only this user can read this one.

    Raises:
      UserError: this machine has no sandbox of that level, or no such interpreter.
    """

    def __init__(
        self, level: str = "auto", *, workers: int = 0, limits: Limits | None = None, python: str = ""
    ) -> None:
        self.level: Level = choose_level(level)
        self.interpreter = find_interpreter(python)
        self.limits = limits or Limits()
        self.failures = 0
        self._lock = threading.Lock()
        count = workers or len(os.sched_getaffinity(0))
        self._idle: queue.LifoQueue[tuple[Worker, Worker]] = queue.LifoQueue()
        self._workers = [Worker(self.level, self.interpreter, slot) for slot in range(2 * count)]
        for index in range(count):
            self._idle.put((self._workers[2 * index], self._workers[2 * index + 1]))
        self._threads = ThreadPoolExecutor(count, "prm_jax-sandbox")

    def run(self, code: str, stdin: str = "", limits: Limits | None = None) -> Run:
        """Runs a program as a script.

        Args:
          code: Python.
          stdin: its standard input.
          limits: instead of the sandbox's.
        """
        with self._pair() as (program, _):
            return self._script(program, code, stdin, limits or self.limits)

    def run_many(self, jobs: Sequence[tuple[str, str]]) -> list[Run]:
        """Runs (code, stdin) pairs on all workers; results in order."""
        return list(self._threads.map(lambda job: self.run(*job), jobs))

    def check(self, code: str, tests: Tests, *, stop_at_failure: bool = False) -> list[TestResult]:
        """Runs the tests of a program.

        Args:
          code: the program.
          tests: see ``CallTests`` and ``IOTests``.
          stop_at_failure: leave out the tests after the first that does not pass.

        Returns:
          One result per test, in order, fewer where it stopped.
        """
        with self._pair() as (program, judge):
            if isinstance(tests, IOTests):
                return list(self._io(program, code, tests, stop_at_failure))
            return self._calls(program, judge, code, tests, stop_at_failure)

    def check_many(self, jobs: Sequence[tuple[str, Tests]], *, stop_at_failure: bool = False) -> list[list[TestResult]]:
        """``check`` of (program, tests) pairs on all workers; results in order."""
        waiting: list[Future[list[TestResult]]] = [
            self._threads.submit(self.check, code, tests, stop_at_failure=stop_at_failure) for code, tests in jobs
        ]
        return [future.result() for future in waiting]

    def describe(self) -> str:
        """One line about the sandbox, for logs."""
        return f"{self.level}, Python {self.interpreter.path}, {self._threads._max_workers} at once"

    def pids(self) -> list[int]:
        """Process ids of the running sandboxes."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def close(self) -> None:
        """Ends all sandboxes; this object cannot be used afterwards."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> "LocalSandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _pair(self) -> Iterator[tuple[Worker, Worker]]:
        pair = self._idle.get()
        try:
            yield pair
        finally:
            self._idle.put(pair)

    def _count_failure(self) -> None:
        with self._lock:
            self.failures += 1

    def _script(self, worker: Worker, code: str, stdin: str, limits: Limits) -> Run:
        problem = ""
        for _ in range(ATTEMPTS):
            try:
                return worker.run_script(code, stdin, limits)
            except SandboxFailure as error:
                problem = str(error)
                self._count_failure()
        return Run("infra_error", detail=problem)

    def _io(self, worker: Worker, code: str, tests: IOTests, stop_at_failure: bool) -> Iterator[TestResult]:
        for given, expected in zip(tests.inputs, tests.outputs, strict=True):
            run = self._script(worker, code, given, self.limits)
            result = judge_output(run, expected)
            yield result
            if stop_at_failure and result.state != "pass":
                return

    def _calls(
        self, program: Worker, judge: Worker, code: str, tests: CallTests, stop_at_failure: bool
    ) -> list[TestResult]:
        problem = ""
        for _ in range(ATTEMPTS):
            try:
                return _Match(program, judge, code, tests, self.limits, stop_at_failure).play()
            except SandboxFailure as error:
                problem = str(error)
                self._count_failure()
                program.close()
                judge.close()
        return [TestResult("infra_error", problem)] * len(tests.tests)


class _Match:
    """The tests in one sandbox, the program in another, and the messages between them."""

    def __init__(
        self, program: Worker, judge: Worker, code: str, tests: CallTests, limits: Limits, stop_at_failure: bool
    ) -> None:
        self.program, self.judge, self.code, self.tests = program, judge, code, tests
        self.limits, self.stop_at_failure = limits, stop_at_failure
        self.loaded = False
        self.died: Run | None = None

    def play(self) -> list[TestResult]:
        results: list[TestResult] = []
        spec = {
            "setup": self.tests.setup, "tests": list(self.tests.tests), "names": self.tests.names(),
            "entry_point": self.tests.entry_point,
        }  # fmt: skip
        # Waiting for the program costs the tests no processor time, but time by the clock.
        self.judge.start("judge", self.limits, tests=spec, calls=2 * len(self.tests.tests) + 1)
        ended = False
        try:
            while len(results) < len(self.tests.tests):
                report = self.judge.receive()
                if report is None:
                    continue
                if "end" in report:
                    ended = True
                    results.append(self._judge_ended(report["end"]))
                    break
                self._take(report["message"], results)
                if results and self.stop_at_failure and results[-1].state != "pass":
                    break
        finally:
            if not ended:
                self.judge.stop()
                self.judge.finish()
            self._end_program()
        if ended and not self.stop_at_failure:
            results += [results[-1]] * (len(self.tests.tests) - len(results))
        return results

    def _take(self, message: dict[str, Any], results: list[TestResult]) -> None:
        if "call" in message:
            self.judge.send(self._answer(message))
        elif "status" in message:
            results.append(self._result(message))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Passes a call on to the program, which is started when it does not run."""
        if not self.loaded:
            failure = self._load()
            if failure is not None:
                return failure
        self.program.send(request)
        return self._reply()

    def _load(self) -> dict[str, Any] | None:
        self.program.start("functions", self.limits, code=self.code, calls=10 * len(self.tests.tests) + 10)
        self.loaded, self.died = True, None
        reply = self._reply()
        if reply.get("loaded"):
            return None
        if not reply.get("gone"):
            self._end_program()
            self.died = Run("crash", detail=f"{reply.get('kind', '')}: {reply.get('message', '')}"[:300])
        return {"gone": self.died.detail if self.died else "the program could not be loaded"}

    def _reply(self) -> dict[str, Any]:
        report = self.program.receive(self.limits.wall_seconds)
        if report is not None and "message" in report and isinstance(report["message"], dict):
            return report["message"]
        if report is not None and "end" in report:
            self.died = as_run(report["end"])
            self.loaded = False
        else:
            self._end_program()
            self.died = Run("timeout", detail=f"a call took more than {self.limits.wall_seconds:g} s")
        if self.died.state == "ok":
            self.died = Run("crash", detail="the program ended before it answered")
        return {"gone": self.died.detail or self.died.state}

    def _end_program(self) -> None:
        if self.loaded:
            self.loaded = False
            self.program.stop()
            self.program.finish()

    def _result(self, message: dict[str, Any]) -> TestResult:
        status, detail = message["status"], message["detail"]
        if status == "gone":
            state = self.died.state if self.died is not None else "crash"
            return TestResult("crash" if state == "ok" else state, detail)
        if status == "broken":
            return TestResult("infra_error", f"the test cannot be run: {detail}")
        return TestResult(status, detail)

    def _judge_ended(self, end: dict[str, Any]) -> TestResult:
        """The process with the tests ended early: the tests loop, or need more than the limits."""
        if end["by"] == "timeout":
            return TestResult("timeout", "the test itself did not end")
        return TestResult("infra_error", f"the process with the tests ended: {end['by']} {end['status']}")
