"""Checking answers. A ``Verdict`` distinguishes a wrong answer from a check that failed.

Every verifier has ``verify(response, gold)`` and ``verify_many(responses, golds)``.
"""

from prm_jax.verifiers.exact import ExactVerifier
from prm_jax.verifiers.extraction import (
    ANSWER_MARKERS,
    after_marker,
    find_answer,
    find_candidates,
    last_boxed,
    last_number,
)
from prm_jax.verifiers.math import MathVerifier
from prm_jax.verifiers.math_pool import MathPool
from prm_jax.verifiers.number import NumberVerifier
from prm_jax.verifiers.number_text import parse_number, read_number
from prm_jax.verifiers.verdict import Mode, Status, Verdict, Verifier

__all__ = [
    "ANSWER_MARKERS",
    "ExactVerifier",
    "MathPool",
    "MathVerifier",
    "Mode",
    "NumberVerifier",
    "Status",
    "Verdict",
    "Verifier",
    "after_marker",
    "find_answer",
    "find_candidates",
    "last_boxed",
    "last_number",
    "parse_number",
    "read_number",
]
