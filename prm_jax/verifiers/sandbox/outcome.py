"""How programs and tests ended."""

import dataclasses
from typing import Literal

State = Literal["ok", "timeout", "crash", "infra_error"]
TestState = Literal["pass", "fail", "timeout", "crash", "infra_error"]


@dataclasses.dataclass(frozen=True)
class Run:
    """How one program ended.

    Attributes:
      state: ``"ok"``: it ended by itself with status 0; ``"crash"``: another status, a signal, or too much output;
        ``"timeout"``; ``"infra_error"``: the sandbox failed, and nothing is known about the program.
      stdout, stderr: what it wrote, at most ``Limits.output_bytes`` each.
      status: exit status, or number of the signal.
      cpu_seconds, wall_seconds: used.
      memory_bytes: largest resident size.
      detail: one line about an end that is not ``"ok"``.
    """

    state: State
    stdout: str = ""
    stderr: str = ""
    status: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    memory_bytes: int = 0
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class TestResult:
    """How one test of a program ended.

    Attributes:
      state: ``"pass"``, ``"fail"``, ``"timeout"``, ``"crash"``: the program ended or exceeded memory or output;
        ``"infra_error"``: the sandbox or the test itself failed.
      detail: one line; empty for a pass.
    """

    __test__ = False  # not a test class

    state: TestState
    detail: str = ""
