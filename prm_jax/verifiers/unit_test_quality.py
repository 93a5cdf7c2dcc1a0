"""Quality of unit tests by static analysis: is it a test, does it test what it should, is it well made?

Reinforcement learning from static quality metrics (RLSQM, arXiv 2310.02368), for Python: properties of a test that can
be read from its text, rewarded one by one or together, where a test that is not valid gets the floor whatever else it
has.
Nothing is executed.
"""

import ast
import math
from collections.abc import Callable, Mapping, Sequence

from prm_jax.errors import UserError
from prm_jax.verifiers.program_text import find_program
from prm_jax.verifiers.verdict import NO_ANSWER, Verdict, failed, passed

Metric = Callable[[ast.Module, str], bool]
_ASSERTIONS = ("assert", "raises", "warns", "fail")
_CONDITIONS = (ast.If, ast.IfExp, ast.For, ast.While, ast.AsyncFor, ast.Match, ast.comprehension)


def asserts_something(tree: ast.Module, focal: str) -> bool:
    """An assertion that can fail: an ``assert`` of more than a constant, or a call such as ``assertEqual``."""
    return bool(_assertions(tree))


def calls_focal(tree: ast.Module, focal: str) -> bool:
    """A call of the function or method under test."""
    return any(_called(node) == focal for node in ast.walk(tree) if isinstance(node, ast.Call))


def no_duplicate_assertion(tree: ast.Module, focal: str) -> bool:
    """No assertion twice."""
    found = [ast.dump(node) for node in _assertions(tree)]
    return len(found) == len(set(found))


def no_condition(tree: ast.Module, focal: str) -> bool:
    """No branch and no loop: a test that may skip its assertions says little."""
    return not any(isinstance(node, _CONDITIONS) for node in ast.walk(tree))


def no_print(tree: ast.Module, focal: str) -> bool:
    """Nothing is printed."""
    return not any(isinstance(node, ast.Call) and _called(node) == "print" for node in ast.walk(tree))


def no_swallowed_exception(tree: ast.Module, focal: str) -> bool:
    """No ``try`` that hides a failure; exceptions are expected by name, as with ``pytest.raises``."""
    return not any(isinstance(node, ast.Try) for node in ast.walk(tree))


def is_described(tree: ast.Module, focal: str) -> bool:
    """A descriptive name (three words or more after ``test``), a docstring, or messages in the assertions."""
    tests = _tests(tree)
    named = any(len([word for word in test.name.split("_")[1:] if word]) >= 3 for test in tests)
    documented = any(ast.get_docstring(test) for test in tests)
    messages = any(isinstance(node, ast.Assert) and node.msg is not None for node in ast.walk(tree))
    return named or documented or messages


def is_one_test(tree: ast.Module, focal: str) -> bool:
    """Exactly one function ``test...``."""
    return len(_tests(tree)) == 1


METRICS: Mapping[str, Metric] = {
    "asserts": asserts_something,
    "calls_focal": calls_focal,
    "no_duplicate_assertion": no_duplicate_assertion,
    "no_condition": no_condition,
    "no_print": no_print,
    "no_swallowed_exception": no_swallowed_exception,
    "described": is_described,
    "one_test": is_one_test,
}
"""Names of the metrics; ``"parses"`` is the gate of all of them."""

GATES = ("asserts", "calls_focal")
"""Properties without which a test is worthless, as in the paper."""


class UnitTestVerifier:
    """The weighted share of properties that a generated unit test has.

    A text that is not Python, or that lacks a property of `gates`, gets 0 whatever else it has.

    Args:
      metrics: names in ``METRICS``; one name rewards a single property.
      weights: of `metrics`, positive; empty: equal.
      gates: names in ``METRICS`` that must hold.

    Raises:
      UserError: an unknown name, weights of another number, a weight that is not positive.
    """

    def __init__(
        self,
        *,
        metrics: tuple[str, ...] = tuple(METRICS),
        weights: tuple[float, ...] = (),
        gates: tuple[str, ...] = GATES,
    ) -> None:
        for name in (*metrics, *gates):
            if name not in METRICS:
                raise UserError(f"unknown property {name!r} of unit tests; known: {', '.join(METRICS)}")
        if not metrics:
            raise UserError("a verifier of unit tests needs at least one property to reward")
        if weights and len(weights) != len(metrics):
            raise UserError(f"{len(weights)} weights for {len(metrics)} properties of unit tests")
        if any(not (weight > 0 and math.isfinite(weight)) for weight in weights):
            raise UserError(f"the weights of properties must be positive numbers, found {weights}")
        self.metrics, self.gates = tuple(metrics), tuple(gates)
        self.weights = tuple(weights) or (1.0,) * len(metrics)

    def verify(self, response: str, gold: str) -> Verdict:
        """The verdict on one response; `gold` is the name of the function or method under test."""
        found = read_properties(response, gold)
        if found is None:
            return failed(f"{NO_ANSWER}: no complete block of Python code")
        missing = [name for name in dict.fromkeys((*self.gates, *self.metrics)) if not found[name]]
        lacking = [name for name in self.gates if not found[name]]
        if lacking:
            return failed(f"lacks {', '.join(lacking)}")
        total = math.fsum(self.weights)
        score = math.fsum(w for name, w in zip(self.metrics, self.weights, strict=True) if found[name]) / total
        return passed() if not missing else Verdict(score, "fail", f"lacks {', '.join(missing)}")

    def verify_many(self, responses: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """One verdict per pair."""
        return [self.verify(response, gold) for response, gold in zip(responses, golds, strict=True)]


def read_properties(response: str, focal: str) -> dict[str, bool] | None:
    """Which of ``METRICS`` a unit test has; None where there is no Python in the response.

    Args:
      response: of a model; ``find_program`` says what its program is.
      focal: name of the function or method under test, the last part of a dotted one counts.
    """
    program = find_program(response)
    if program is None:
        return None
    tree = ast.parse(program)
    name = focal.strip().rpartition(".")[2]
    return {metric: check(tree, name) for metric, check in METRICS.items()}


def _tests(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
    ]


def _assertions(tree: ast.Module) -> list[ast.AST]:
    """Assertions inside test functions; ``assert True`` is none."""
    found: list[ast.AST] = []
    for test in _tests(tree):
        for node in ast.walk(test):
            if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
                found.append(node.test)
            elif isinstance(node, ast.Call) and _called(node).startswith(_ASSERTIONS):
                if not (node.args and all(isinstance(item, ast.Constant) for item in node.args)):
                    found.append(node)
    return found


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""
