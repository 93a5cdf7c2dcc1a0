"""Checking reference answers before anything is compared with them, when a task loads."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from prm_jax.errors import UserError
from prm_jax.verifiers.math import check_mathematics
from prm_jax.verifiers.number_text import parse_number

Kind: TypeAlias = Literal["exact", "number", "math"]


def check_reference(reference: str, kind: Kind) -> str:
    """What is wrong with a reference answer for one of the built-in verifiers.

    Args:
      reference: the reference answer.
      kind: ``"exact"``, ``"number"`` or ``"math"``.

    Returns:
      "" when answers can be compared with it; else the reason, a phrase to follow the place of the reference and a
      colon: "it has more than 60 digits in a row". With such a reference every response that is not the same text
      gets a verdict with status ``"error"``.

    Raises:
      UserError: for an unknown kind.
    """
    match kind:
        case "exact":
            return "" if reference.strip() else "it is empty"
        case "number":
            found = parse_number(reference)
            return "" if found is not None else f"it is not a number: {reference[:80]!r}"
        case "math":
            return check_mathematics(reference)
        case _:
            raise UserError(f"unknown kind of reference {kind!r}; expected 'exact', 'number' or 'math'")


def check_references(verifier: Any, references: Sequence[str]) -> list[str]:
    """What is wrong with each reference for this verifier, "" for nothing.

    Args:
      verifier: one with a method ``check_references(golds)``, such as ``MathVerifier``, which also measures references
        that may be slow; nothing is wrong for any other.
      references: reference answers.
    """
    check = getattr(verifier, "check_references", None)
    return list(check(references)) if check else [""] * len(references)
