"""Verifiers by name: built in, functions of the user's, and weighted means of several."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from prm_jax.data.problems import Problem
from prm_jax.errors import UserError
from prm_jax.option_values import call_with_options, parameter_kinds
from prm_jax.resolve import check_signature, resolve
from prm_jax.verifiers.code import CodeVerifier
from prm_jax.verifiers.custom import FunctionVerifier, ProblemVerifier, WeightedVerifier, judge
from prm_jax.verifiers.exact import ExactVerifier
from prm_jax.verifiers.math import MathVerifier
from prm_jax.verifiers.number import NumberVerifier
from prm_jax.verifiers.unit_test_quality import UnitTestVerifier
from prm_jax.verifiers.verdict import Verifier

AnyVerifier = Verifier | ProblemVerifier

VERIFIERS: Mapping[str, Callable[..., AnyVerifier]] = {
    "exact": ExactVerifier,
    "number": NumberVerifier,
    "math": MathVerifier,
    "code": CodeVerifier,
    "unit_test": UnitTestVerifier,
}
"""Names of the built-in verifiers; the parameters of each are its options."""

_WEIGHTED = re.compile(r"\s*(?:([^*,]*)\*)?\s*([^*,]+?)\s*")


def make_verifier(
    verifier: str | AnyVerifier | Callable[..., Any], options: Mapping[str, Any] | None = None, *, option: str = ""
) -> AnyVerifier:
    """Returns the verifier that is named.

    Args:
      verifier: ``"exact"``, ``"number"``, ``"math"``, ``"code"``, ``"unit_test"``; ``"package.module:name"`` or
        ``"path/file.py:name"``, where the name is a function ``reward(problem, response)`` that returns a number in
        [0, 1] or a ``Verdict``, or a class of verifiers; several of these with weights,
        ``"0.7*number,0.3*my_mod:reward"``; or such a function or verifier itself.
      options: parameters of the built-in verifier or of the class; with several parts, of every part that has them.
      option: the command-line option that gave the name, for messages.

    Raises:
      UserError: an unknown name (the nearest is suggested), an unknown option, or a function with the wrong signature.
      MissingExtraError: ``"math"`` without mpmath.
    """
    given = dict(options or {})
    if isinstance(verifier, str):
        parts = [_WEIGHTED.fullmatch(part) for part in verifier.split(",")]
        if len(parts) == 1 and parts[0] and parts[0][1] is None:
            return _named(parts[0][2], given, option)
        return _weighted(verifier, parts, given, option)
    if _is_verifier(verifier) and not inspect.isclass(verifier):
        if given:
            raise UserError(f"a verifier that is already made takes no options, found {', '.join(given)}")
        return verifier  # type: ignore[return-value]
    return _from_callable(verifier, given, getattr(verifier, "__name__", repr(verifier)))


def check_verifier(verifier: AnyVerifier, problem: Problem, owner: str) -> None:
    """Calls a verifier once, so that a broken function is refused before anything is trained.

    Raises:
      UserError: it raised, or did not return a number in [0, 1] or a ``Verdict``.
    """
    try:
        (verdict,) = judge(verifier, [problem], [problem.answer])
        status, detail = verdict.status, verdict.detail
    except Exception as error:
        status, detail = "error", f"{type(error).__name__}: {error}"
    if status == "error":
        raise UserError(
            f"the verifier of {owner} failed on the first problem, {problem.id}, with its reference answer "
            f"{problem.answer[:80]!r} as the response: {detail}"
        )


def _named(name: str, options: Mapping[str, Any], option: str) -> AnyVerifier:
    found = resolve(name, VERIFIERS, "verifier", option=option)
    return _from_callable(found, options, name)


def _from_callable(found: Any, options: Mapping[str, Any], name: str) -> AnyVerifier:
    what = f"verifier {name!r}"
    if inspect.isclass(found):
        made: Any = call_with_options(found, options, f"the {what}")
        if _is_verifier(made):
            return made
        if not callable(made):
            raise UserError(
                f"the {what} has none of the methods verify_many, verify_problems and __call__; see prm_jax.verifiers"
            )
        found, options = made, {}
    if options:
        raise UserError(f"the {what} is a function and takes no options, found {', '.join(options)}")
    if _is_verifier(found):
        return found
    check_signature(found, ("problem", "response"), what)
    return FunctionVerifier(found, name)


def _weighted(text: str, parts: list[re.Match[str] | None], options: Mapping[str, Any], option: str) -> AnyVerifier:
    made: list[tuple[AnyVerifier, float]] = []
    taken: set[str] = set()
    for part in parts:
        if part is None:
            raise UserError(f"cannot read the verifiers {text!r}: expected weight*name,... as 0.7*number,0.3*my_mod:f")
        try:
            weight = float(part[1]) if part[1] is not None else 1.0
        except ValueError:
            raise UserError(f"the weight {part[1]!r} in the verifiers {text!r} is not a number") from None
        found = resolve(part[2], VERIFIERS, "verifier", option=option)
        kinds = parameter_kinds(found) if inspect.isclass(found) else {}
        own = {key: value for key, value in options.items() if key in kinds}
        taken |= own.keys()
        made.append((_from_callable(found, own, part[2]), weight))
    unknown = sorted(options.keys() - taken)
    if unknown:
        raise UserError(f"none of the verifiers {text!r} has the option {unknown[0]!r}")
    return WeightedVerifier(tuple(made))


def _is_verifier(value: Any) -> bool:
    return hasattr(value, "verify_many") or hasattr(value, "verify_problems")
