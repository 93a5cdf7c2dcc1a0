"""Tests of a program: calls of its functions, or pairs of input and output."""

import ast
import builtins
import dataclasses
from collections.abc import Sequence

from prm_jax.errors import UserError
from prm_jax.verifiers.sandbox.outcome import Run, TestResult


@dataclasses.dataclass(frozen=True)
class CallTests:
    """Tests that call what the program defines.

    The tests run in a process of their own; the program runs in another sandbox and is called by messages, so that it
    never sees the tests or the expected values.

    Attributes:
      tests: code of each test, which raises to fail; ``assert f(2) == 4``, or ``def check(candidate): ...``.
      setup: code that runs before each test: imports and helpers.
      entry_point: the function that is given to ``check``; may be empty where no test defines ``check``.

    Raises:
      UserError: no test, or code that cannot be parsed.
    """

    tests: tuple[str, ...]
    setup: str = ""
    entry_point: str = ""

    def __post_init__(self) -> None:
        if not self.tests:
            raise UserError("a list of tests is empty: expected at least one test")
        for what, code in (("the setup of the tests", self.setup), *((f"the test {t!r:.80}", t) for t in self.tests)):
            try:
                ast.parse(code)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                reason = error.msg if isinstance(error, SyntaxError) else error
                raise UserError(f"{what} is not valid Python: {reason}") from error

    def names(self) -> list[str]:
        """What the tests use and neither define nor find among the builtins, which the program must define."""
        used: set[str] = {self.entry_point} if self.entry_point else set()
        known = set(dir(builtins)) | {"candidate"}
        for code in (self.setup, *self.tests):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.Name):
                    (used if isinstance(node.ctx, ast.Load) else known).add(node.id)
                elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    known.add(node.name)
                elif isinstance(node, ast.arg):
                    known.add(node.arg)
                elif isinstance(node, ast.alias):
                    known.add((node.asname or node.name).split(".")[0])
                elif isinstance(node, ast.ExceptHandler) and node.name:
                    known.add(node.name)
        return sorted((used - known) | ({self.entry_point} if self.entry_point else set()))


@dataclasses.dataclass(frozen=True)
class IOTests:
    """Tests that give the program input and compare what it prints.

    Attributes:
      inputs: text for standard input, one per test.
      outputs: expected standard output, as many.

    Raises:
      UserError: no test, or lists of different lengths.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UserError("a list of tests is empty: expected at least one pair of input and output")
        if len(self.inputs) != len(self.outputs):
            raise UserError(f"the tests have {len(self.inputs)} inputs and {len(self.outputs)} outputs")


Tests = CallTests | IOTests


def judge_output(run: Run, expected: str) -> TestResult:
    """The result of one test of input and output.

    Args:
      run: of the program on the test's input.
      expected: standard output.
    """
    if run.state != "ok":
        return TestResult(run.state, run.detail)
    if same_output(run.stdout, expected):
        return TestResult("pass")
    return TestResult("fail", f"printed {run.stdout[:80]!r}, expected {expected[:80]!r}")


def same_output(found: str, expected: str) -> bool:
    """Whether printed text is as expected, up to trailing white space and the spelling of decimals.

    Lines are compared without trailing white space, trailing empty lines are ignored. Where that differs, the words are
    compared: equal, or decimals that differ by less than 1e-6 relative or absolute.
    """
    if _lines(found) == _lines(expected):
        return True
    mine, theirs = found.split(), expected.split()
    return len(mine) == len(theirs) and all(map(_same_word, mine, theirs))


def _lines(text: str) -> Sequence[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _same_word(mine: str, theirs: str) -> bool:
    if mine == theirs:
        return True
    if not any(mark in mine + theirs for mark in ".eE") or "_" in mine + theirs:
        return False  # integers have one spelling
    try:
        a, b = float(mine), float(theirs)
    except ValueError:
        return False
    return abs(a - b) <= 1e-6 * max(1.0, abs(b))
