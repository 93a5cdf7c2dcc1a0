"""Programs whose results are known, run to learn whether a sandbox can be trusted."""

from typing import Protocol

from prm_jax.errors import UserError
from prm_jax.verifiers.sandbox.outcome import TestResult
from prm_jax.verifiers.sandbox.tests_of_code import CallTests, IOTests, Tests

_DOUBLE = CallTests(("assert double(21) == 42", "assert double('ab') == 'abab'"))
_PRINT = IOTests(("3\n4\n",), ("7\n",))
CANARIES: tuple[tuple[str, str, Tests, str], ...] = (
    ("a right function", "def double(x):\n    return x + x\n", _DOUBLE, "pass"),
    ("a wrong function", "def double(x):\n    return x\n", _DOUBLE, "fail"),
    ("a right script", "print(int(input()) + int(input()))\n", _PRINT, "pass"),
    ("a wrong script", "print(int(input()) * int(input()))\n", _PRINT, "fail"),
    ("a script that starts a process", "import os\nos.fork()\nprint(7)\n", _PRINT, "crash"),
    ("a script that opens a connection", "import socket\nsocket.socket()\nprint(7)\n", _PRINT, "crash"),
)
"""(what it is, program, tests, state of every test)."""


class _Checker(Protocol):
    def check(self, code: str, tests: Tests, *, stop_at_failure: bool = False) -> list[TestResult]: ...


def check_canaries(sandbox: _Checker, *, calls: bool = True) -> None:
    """Runs the canaries.

    Args:
      sandbox: to be tested.
      calls: whether it can run ``CallTests`` and isolates programs itself; a server's isolation is its own business.

    Raises:
      UserError: a result is not the known one, so that no verdict of this sandbox can be trusted.
    """
    for name, code, tests, expected in CANARIES:
        if not calls and (isinstance(tests, CallTests) or expected == "crash"):
            continue
        found = sandbox.check(code, tests)
        if any(result.state != expected for result in found):
            shown = ", ".join(f"{result.state} {result.detail}".strip() for result in found)
            raise UserError(
                f"the sandbox cannot be trusted: {name} must give {expected!r} and gave {shown}; see prm-jax doctor"
            )
