"""Short programs from short specifications, with a teacher who writes subtractions the wrong way round.

A problem is ``a+b;*c;d-:``: add, multiply by ``c``, subtract the result from ``d``. Its solution is the body of
``def f(a,b,c,d):``, one statement per operation::

     x=a+b
     x=x*c
     return d-x

A response is right when the function passes tests that are not in the prompt. The teacher writes ``return x-d`` with
some probability, so a model trained on its demonstrations has a wrong mode and some right samples.
"""

import ast
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from prm_jax.data.problems import Problem, is_eval
from prm_jax.data.procedural import DrawnProblems, DrawnTask, draw_distinct, words
from prm_jax.data.splitters import make_splitter
from prm_jax.errors import UserError
from prm_jax.verifiers.code import CodeVerifier, Score, call_reference
from prm_jax.verifiers.sandbox import CallTests
from prm_jax.verifiers.verdict import Verdict

ALPHABET = "abcdx23456789+-*=;: \nreturn"
"""The characters of prompts and responses, some of them twice; with padding, begin and end a vocabulary of 29."""
HEAD = "def f(a,b,c,d):"
_LETTERS, _DIGITS = "abcd", "23456789"
_APPLY: dict[str, Callable[[int, int], int]] = {"+": operator.add, "*": operator.mul, "-": operator.sub}
_NODES = {ast.Add: "+", ast.Mult: "*", ast.Sub: "-"}

Operation: TypeAlias = tuple[str, str, str]
"""(left operand, operator, right operand); ``x`` is the result of the operation before."""


class ProgramsTask(DrawnTask):
    """The built-in task of programs; its answers run in the sandbox.

    Args:
      min_operations, max_operations: statements of a program, uniform in this range; 2 to 8.
      reversals: in [0, 1], the probability that an operation after the first subtracts the result from an operand.
      careless: in [0, 1], the probability that the teacher writes such a subtraction the wrong way round.
      tests: calls of the function on which it is judged, with arguments from -9 to 9.
      score: ``"all"``: 1 when every test passes, else 0; ``"fraction"``: the share of tests that pass.
      sandbox: see ``CodeVerifier``.
      workers: programs at once; 0: as many as processors.
      num_train: number of training problems in an epoch; made when they are read.
      num_eval: number of evaluation problems.
      seed: of the problems drawn.

    Raises:
      UserError: an option out of range, or no sandbox on this machine.
    """

    def __init__(
        self,
        min_operations: int = 3,
        max_operations: int = 4,
        *,
        reversals: float = 0.4,
        careless: float = 0.6,
        tests: int = 4,
        score: Score = "all",
        sandbox: str = "auto",
        workers: int = 0,
        num_train: int = 1 << 17,
        num_eval: int = 512,
        seed: int = 0,
    ) -> None:
        if not 2 <= min_operations <= max_operations <= 8:
            raise UserError(
                "the task of programs needs 2 <= min_operations <= max_operations <= 8, found "
                f"{min_operations} and {max_operations}"
            )
        for name, share in {"reversals": reversals, "careless": careless}.items():
            if not 0.0 <= share <= 1.0:
                raise UserError(f"{name} is a probability in [0, 1], found {share}")
        if min(tests, num_train, num_eval) < 1:
            raise UserError(f"tests, num_train and num_eval must be at least 1, found {tests}, {num_train}, {num_eval}")
        self.name = "programs"
        self.alphabet = ALPHABET
        self.splitter = make_splitter("statement")
        self.stop: tuple[str, ...] = ()
        self.careless, self.max_operations = careless, max_operations
        self.verifier = CodeVerifier(score=score, sandbox=sandbox, workers=workers, cpu_seconds=1.0)
        draw = functools.partial(_draw, min_operations, max_operations, round(reversals * 1000))
        make = functools.partial(_problem, tests)
        key = ("programs", min_operations, max_operations, reversals, tests, seed)
        self._train = DrawnProblems(num_train, draw, lambda row: not is_eval(_prompt(row)), make, (*key, "train"))
        rows = draw_distinct(draw, lambda row: is_eval(_prompt(row)), tuple, num_eval, (*key, "eval"))
        if len(rows) < num_eval:
            raise UserError(
                f"the task of programs has about {len(rows)} evaluation problems with these options, {num_eval} wanted;"
                " lower num_eval or raise max_operations"
            )
        self._eval = [make(row) for row in rows]

    @property
    def notes(self) -> list[str]:
        """Where the programs run."""
        return [f"programs run in a sandbox: {self.verifier.sandbox.describe()}"]

    def tokenizer(self) -> Any:
        """A character tokenizer over ``ALPHABET``."""
        from prm_jax.models.tokenizer import CharTokenizer

        return CharTokenizer("".join(dict.fromkeys(ALPHABET)))

    def solve(self, problem: Problem) -> str:
        """The right response."""
        return _write(operations(problem), lambda: False)

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """(prompt, what the careless teacher writes) pairs on training problems drawn at random."""
        rows = [self._train.row(int(index)) for index in rng.integers(len(self._train), size=count)]
        slips = iter((rng.random((count, self.max_operations)) < self.careless).ravel().tolist())
        return [(_prompt(row), _write(row, lambda: next(slips))) for row in rows]

    def verify(self, problem: Problem, response: str) -> float:
        """The score of the response's program on its tests, in [0, 1]."""
        return self.verify_many([problem], [response])[0].score

    def verify_many(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response; ``"error"`` where the sandbox failed."""
        return self.verifier.verify_many(responses, [problem.answer for problem in problems])

    def step_labels(self, problem: Problem, response: str) -> list[bool]:
        """Whether each statement does the operation of its place on the result before it.

        ``x=c*x`` is as good as ``x=x*c``. Any other form is wrong, also one that would give the same result.

        Args:
          problem: of this task.
          response: any text.

        Returns:
          One bool per step of the splitter; [] for the empty response.
        """
        row = operations(problem)
        lines = [response[start:end].rstrip("\n") for start, end in self.splitter(response)]
        return [index < len(row) and _does(line, row[index], index == len(row) - 1) for index, line in enumerate(lines)]


def operations(problem: Problem) -> list[Operation]:
    """The operations of a problem, read from its prompt."""
    prompt = problem.prompt
    parts = prompt[:-1].split(";") if isinstance(prompt, str) and prompt.endswith(":") else []
    row = [part if index == 0 else _completed(part) for index, part in enumerate(parts)]
    names = set(_LETTERS + _DIGITS + "x")
    if len(row) < 2 or any(len(part) != 3 or part[1] not in _APPLY or not {*part[::2]} <= names for part in row):
        raise UserError(f"{prompt!r} is not a problem of the task of programs; expected one like 'a+b;*c;d-:'")
    return [(part[0], part[1], part[2]) for part in row]


def _completed(part: str) -> str:
    return f"x{part}" if part[:1] in _APPLY else f"{part}x"


def _draw(low: int, high: int, reversals: int, stream: Iterator[int]) -> tuple[Operation, ...]:
    count = low + next(stream) % (high - low + 1)
    names = list(_LETTERS)
    first = names.pop(next(stream) % 4)
    row: list[Operation] = [(first, "+-*"[next(stream) % 3], names[next(stream) % 3])]
    for _ in range(count - 1):
        operands = _LETTERS + _DIGITS
        operand = operands[next(stream) % len(operands)]
        if next(stream) % 1000 < reversals:
            row.append((operand, "-", "x"))
        else:
            row.append(("x", "+-*"[next(stream) % 3], operand))
    return tuple(row)


def _prompt(row: Sequence[Operation]) -> str:
    return ";".join("".join(part).replace("x", "") for part in row) + ":"


def _problem(tests: int, row: Sequence[Operation]) -> Problem:
    prompt = _prompt(row)
    stream = words("programs/tests", prompt)
    calls = [tuple(next(stream) % 19 - 9 for _ in _LETTERS) for _ in range(tests)]
    asserts = tuple(f"assert f{arguments} == {_evaluate(row, arguments)}" for arguments in calls)
    answer = call_reference(CallTests(asserts), prefix=HEAD)
    return Problem(prompt, answer, f"programs/{prompt[:-1]}", {"solution": _write(row, lambda: False)})


def _evaluate(row: Sequence[Operation], arguments: Sequence[int]) -> int:
    values = dict(zip(_LETTERS, arguments, strict=True)) | {digit: int(digit) for digit in _DIGITS}
    for left, sign, right in row:
        values["x"] = _APPLY[sign](values[left], values[right])
    return values["x"]


def _write(row: Sequence[Operation], slips: Callable[[], bool]) -> str:
    """The body of the function; ``slips()`` says at each subtraction from an operand whether to write it wrongly."""
    lines = []
    for index, (left, sign, right) in enumerate(row):
        if index and right == "x" and slips():
            left, right = right, left
        lines.append(f" {'return ' if index == len(row) - 1 else 'x='}{left}{sign}{right}")
    return "\n".join(lines)


def _does(line: str, wanted: Operation, last: bool) -> bool:
    """Whether a line is the statement for an operation."""
    try:
        statements = ast.parse(f"{HEAD}\n{line}").body[0].body  # type: ignore[attr-defined]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    statement = statements[0]
    if len(statements) != 1 or not isinstance(statement, ast.Return if last else ast.Assign):
        return False
    targets = [ast.unparse(target) for target in getattr(statement, "targets", [])]
    value = statement.value
    if targets != ([] if last else ["x"]) or not isinstance(value, ast.BinOp):
        return False
    sides = [ast.unparse(value.left), ast.unparse(value.right)]
    left, sign, right = wanted
    same = sides == [left, right] or (sign != "-" and sides == [right, left])
    return same and _NODES.get(type(value.op)) == sign
