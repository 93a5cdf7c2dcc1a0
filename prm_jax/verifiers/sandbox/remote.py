"""Programs on a server that speaks SandboxFusion's protocol (``POST /run_code``)."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prm_jax.errors import UserError
from prm_jax.verifiers.sandbox.limits import Limits
from prm_jax.verifiers.sandbox.outcome import Run, TestResult
from prm_jax.verifiers.sandbox.tests_of_code import IOTests, Tests, judge_output

ATTEMPTS = 3
_MAX_ANSWER = 16 << 20


class RemoteSandbox:
    """Runs programs on a server, which isolates them in its own way.

    Only tests of input and output: tests that call functions would have to travel with the program, which could then
    read the expected values.

    Args:
      url: of the server, as ``http://HOST:8080``.
      workers: requests at once.
      limits: ``cpu_seconds`` and ``memory_bytes`` are sent along; ``wall_seconds`` is the deadline of a request.

    Raises:
      UserError: not an address of a server.
    """

    def __init__(self, url: str, *, workers: int = 8, limits: Limits | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"the address of a sandbox server begins with http:// or https://, found {url!r}")
        self.url = url.rstrip("/")
        self.limits = limits or Limits()
        self.failures = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, "prm_jax-sandbox")

    def run(self, code: str, stdin: str = "", limits: Limits | None = None) -> Run:
        """Runs a program as a script; ``"infra_error"`` when the server fails several times."""
        limits = limits or self.limits
        body = {
            "code": code, "language": "python", "stdin": stdin, "run_timeout": limits.cpu_seconds,
            "memory_limit_MB": limits.memory_bytes >> 20,
        }  # fmt: skip
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(0.2 * 2**attempt)
            try:
                return _as_run(self._post("/run_code", body, limits.wall_seconds), limits)
            except (OSError, ValueError, KeyError, TypeError) as error:
                problem = f"the sandbox server {self.url} failed: {type(error).__name__}: {error}"
                with self._lock:
                    self.failures += 1
        return Run("infra_error", detail=problem)

    def run_many(self, jobs: Sequence[tuple[str, str]]) -> list[Run]:
        """Runs (code, stdin) pairs; results in order."""
        return list(self._threads.map(lambda job: self.run(*job), jobs))

    def check(self, code: str, tests: Tests, *, stop_at_failure: bool = False) -> list[TestResult]:
        """Runs tests of input and output, one after the other.

        Raises:
          UserError: tests that call functions.
        """
        if not isinstance(tests, IOTests):
            raise UserError(
                "tests that call functions need the sandbox of this machine, since a server would have to be sent the "
                "expected values together with the program: name no server"
            )
        results: list[TestResult] = []
        for given, expected in zip(tests.inputs, tests.outputs, strict=True):
            run = self.run(code, given)
            results.append(judge_output(run, expected))
            if stop_at_failure and results[-1].state != "pass":
                break
        return results

    def check_many(self, jobs: Sequence[tuple[str, Tests]], *, stop_at_failure: bool = False) -> list[list[TestResult]]:
        """``check`` of (program, tests) pairs; results in order."""
        return list(self._threads.map(lambda job: self.check(*job, stop_at_failure=stop_at_failure), jobs))

    def describe(self) -> str:
        """One line about the sandbox, for logs."""
        return f"the server {self.url}"

    def close(self) -> None:
        """Waits for nothing that is still on its way."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _post(self, path: str, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=seconds + 10) as answer:
            data = answer.read(_MAX_ANSWER)
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("the answer is not a JSON object")
        return found


def _as_run(answer: dict[str, Any], limits: Limits) -> Run:
    """A result of the server.

    Raises:
      ValueError: the server reports a failure of its own, or something else than its protocol.
    """
    if answer.get("status") == "SandboxError":
        raise ValueError(str(answer.get("message", "SandboxError"))[:300])
    result = answer["run_result"]
    stdout, stderr = str(result.get("stdout") or ""), str(result.get("stderr") or "")
    common: dict[str, Any] = {
        "stdout": stdout[: limits.output_bytes],
        "stderr": stderr[: limits.output_bytes],
        "wall_seconds": float(result.get("execution_time") or 0.0),
    }
    if result["status"] == "TimeLimitExceeded":
        return Run("timeout", detail=f"no end after {limits.cpu_seconds:g} s", **common)
    if result["status"] != "Finished":
        raise ValueError(f"status {result['status']!r}")
    status = int(result["return_code"])
    if status == 0:
        return Run("ok", **common)
    last = stderr.strip().splitlines()[-1:]
    return Run("crash", status=status, detail=": ".join([f"exit status {status}", *last])[:300], **common)
