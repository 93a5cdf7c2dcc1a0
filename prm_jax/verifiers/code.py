"""Programs as answers: they pass when their tests do."""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from prm_jax.errors import UserError
from prm_jax.verifiers.program_text import find_program
from prm_jax.verifiers.sandbox import (
    CallTests,
    IOTests,
    Limits,
    LocalSandbox,
    RemoteSandbox,
    TestResult,
    check_canaries,
)
from prm_jax.verifiers.verdict import NO_ANSWER, Verdict, broken, check_choice, failed, passed

Score: TypeAlias = Literal["all", "fraction"]
_LETTERS = {"pass": ".", "fail": "F", "timeout": "T", "crash": "C", "infra_error": "?"}
_SHOWN = 60


class CodeVerifier:
    """Runs the program of a response in a sandbox and compares what it does with tests.

    References are JSON, made by ``call_reference`` and ``io_reference`` or by the task ``code``. Expected values never
    enter the process of a program. Before the first program, and every `canary_every` programs, programs of known
    results are run; when one of them gives another result, no further program is judged.

    Args:
      score: ``"all"``: 1 when every test passes, else 0; ``"fraction"``: the share of tests that pass.
      sandbox: ``"auto"``, ``"bubblewrap"``, ``"landlock"``, or the address of a server, ``http://HOST:PORT``.
      workers: programs at once; 0: as many as processors.
      cpu_seconds: processor time of each test.
      wall_seconds: time by the clock of each test.
      memory_mb: MiB of memory of each program.
      python: interpreter for programs; empty: see ``LocalSandbox``.
      stop_at_failure: do not run the tests after the first that fails; only with ``score="all"``.
      canary_every: programs between two canary runs.

    Raises:
      UserError: no sandbox on this machine; options that contradict each other.
    """

    def __init__(
        self,
        *,
        score: Score = "all",
        sandbox: str = "auto",
        workers: int = 0,
        cpu_seconds: float = 4.0,
        wall_seconds: float = 12.0,
        memory_mb: int = 512,
        python: str = "",
        stop_at_failure: bool = True,
        canary_every: int = 2000,
    ) -> None:
        check_choice("score", score, ("all", "fraction"))
        limits = Limits(cpu_seconds=cpu_seconds, wall_seconds=wall_seconds, memory_bytes=memory_mb << 20)
        self.score = score
        self.stop_at_failure = stop_at_failure and score == "all"
        self.canary_every = canary_every
        self.sandbox: LocalSandbox | RemoteSandbox
        if sandbox.startswith(("http://", "https://")):
            self.sandbox = RemoteSandbox(sandbox, workers=workers or 8, limits=limits)
        else:
            self.sandbox = LocalSandbox(sandbox, workers=workers, limits=limits, python=python)
        self._until_canary = 0
        self._lock = threading.Lock()

    def verify(self, response: str, gold: str) -> Verdict:
        """The verdict on one response."""
        return self.verify_many([response], [gold])[0]

    def verify_many(self, responses: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """One verdict per response; equal programs with equal tests run once.

        Args:
          responses: any texts; ``find_program`` says what their program is.
          golds: references.

        Returns:
          Verdicts, whose detail says which tests passed: ``"3 of 5 tests (..F.T); ..."``. ``"error"`` where the
          sandbox or the tests failed; such a response must not count as wrong.

        Raises:
          UserError: the sandbox does not give the known results of the canaries.
        """
        self._check_sandbox(len(responses))
        verdicts: list[Verdict | None] = []
        jobs: list[tuple[str, CallTests | IOTests]] = []
        for response, gold in zip(responses, golds, strict=True):
            try:
                prefix, tests = read_reference(gold)
            except UserError as error:
                verdicts.append(broken(str(error)))
                continue
            program = find_program(response, names=_needed(tests), prefix=prefix)
            if program is None:
                verdicts.append(failed(f"{NO_ANSWER}: no complete block of Python code"))
                continue
            jobs.append((program, tests))
            verdicts.append(None)
        different = list(dict.fromkeys(jobs))
        found = self.sandbox.check_many(different, stop_at_failure=self.stop_at_failure)
        known = {job: self._verdict(results, _count(job[1])) for job, results in zip(different, found, strict=True)}
        judged = iter([known[job] for job in jobs])
        return [next(judged) if given is None else given for given in verdicts]

    def check_references(self, golds: Sequence[str]) -> list[str]:
        """What is wrong with each reference; "" for nothing."""
        found = []
        for gold in golds:
            try:
                read_reference(gold)
                found.append("")
            except UserError as error:
                found.append(str(error))
        return found

    def close(self) -> None:
        """Ends the sandboxes."""
        self.sandbox.close()

    def _check_sandbox(self, count: int) -> None:
        with self._lock:
            if self._until_canary <= 0:
                check_canaries(self.sandbox, calls=not isinstance(self.sandbox, RemoteSandbox))
                self._until_canary = self.canary_every
            self._until_canary -= count

    def _verdict(self, results: Sequence[TestResult], count: int) -> Verdict:
        failures = [result for result in results if result.state != "pass"]
        right = len(results) - len(failures)
        if any(result.state == "infra_error" for result in results):
            return broken(next(result.detail for result in results if result.state == "infra_error"))
        if not failures:
            return passed(f"{count} of {count} tests")
        letters = "".join(_LETTERS[result.state] for result in results[:_SHOWN])
        detail = f"{right} of {count} tests ({letters}); {failures[0].state}: {failures[0].detail}"
        score = right / count if self.score == "fraction" else 0.0
        return Verdict(score, "timeout" if score == 0 and failures[0].state == "timeout" else "fail", detail)


def call_reference(tests: CallTests, *, prefix: str = "") -> str:
    """The reference of a problem whose tests call functions.

    Args:
      tests: see ``CallTests``.
      prefix: code that responses may continue.
    """
    document: dict[str, Any] = {"tests": list(tests.tests)}
    document |= {"setup": tests.setup} if tests.setup else {}
    document |= {"entry_point": tests.entry_point} if tests.entry_point else {}
    document |= {"prefix": prefix} if prefix else {}
    return json.dumps(document)


def io_reference(tests: IOTests) -> str:
    """The reference of a problem whose tests compare what a program prints."""
    return json.dumps({"inputs": list(tests.inputs), "outputs": list(tests.outputs)})


def read_reference(gold: str) -> tuple[str, CallTests | IOTests]:
    """(code that responses may continue, tests) of a reference.

    Raises:
      UserError: not a reference of programs; the message says what is wrong.
    """
    try:
        document = json.loads(gold)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the reference of a program is not JSON: {error}") from error
    if isinstance(document, dict) and "tests" in document:
        known = {"tests": list, "setup": str, "entry_point": str, "prefix": str}
        _check_fields(document, known)
        tests = CallTests(tuple(document["tests"]), document.get("setup", ""), document.get("entry_point", ""))
        return document.get("prefix", ""), tests
    if isinstance(document, dict) and "inputs" in document and "outputs" in document:
        _check_fields(document, {"inputs": list, "outputs": list})
        return "", IOTests(tuple(document["inputs"]), tuple(document["outputs"]))
    raise UserError(
        "the reference of a program must be a JSON object with 'tests', or with 'inputs' and 'outputs'; found "
        + (f"fields {', '.join(map(str, document)) or '(none)'}" if isinstance(document, dict) else gold[:80])
    )


def _check_fields(document: dict[str, Any], known: Mapping[str, type]) -> None:
    for name, value in document.items():
        if name not in known:
            raise UserError(f"the reference of a program has the unknown field {name!r}; known: {', '.join(known)}")
        if not isinstance(value, known[name]) or (
            isinstance(value, list) and not all(isinstance(item, str) for item in value)
        ):
            kind = "a list of texts" if known[name] is list else "a text"
            raise UserError(f"the field {name!r} of the reference of a program must be {kind}")


def _needed(tests: CallTests | IOTests) -> tuple[str, ...]:
    if isinstance(tests, IOTests):
        return ()
    return (tests.entry_point,) if tests.entry_point else tuple(tests.names())


def _count(tests: CallTests | IOTests) -> int:
    return len(tests.inputs) if isinstance(tests, IOTests) else len(tests.tests)
