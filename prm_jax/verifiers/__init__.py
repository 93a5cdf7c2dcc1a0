"""Did the answer pass?  A ``Verdict`` tells a wrong answer from a check that failed.

Every verifier has ``verify(response, gold)`` and ``verify_many(responses, golds)``.
"""

from prm_jax.verifiers.custom import FunctionVerifier, ProblemVerifier, WeightedVerifier, judge
from prm_jax.verifiers.exact import ExactVerifier
from prm_jax.verifiers.extraction import ANSWER_MARKERS, after_marker, find_answer, last_boxed, last_number
from prm_jax.verifiers.math import MathVerifier
from prm_jax.verifiers.math_pool import MathPool
from prm_jax.verifiers.number import NumberVerifier, parse_number
from prm_jax.verifiers.verdict import NO_ANSWER, Status, Verdict, Verifier

__all__ = [
    "ANSWER_MARKERS",
    "NO_ANSWER",
    "ExactVerifier",
    "FunctionVerifier",
    "MathPool",
    "MathVerifier",
    "NumberVerifier",
    "ProblemVerifier",
    "Status",
    "Verdict",
    "Verifier",
    "WeightedVerifier",
    "after_marker",
    "find_answer",
    "judge",
    "last_boxed",
    "last_number",
    "parse_number",
]
