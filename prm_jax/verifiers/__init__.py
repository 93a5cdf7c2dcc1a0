"""Checking answers. A ``Verdict`` distinguishes a wrong answer from a check that failed.

Every built-in verifier has ``verify(response, gold)`` and ``verify_many(responses, golds)``. A function
``reward(problem, response)`` becomes a verifier with ``FunctionVerifier``; ``WeightedVerifier`` combines several.
"""

from prm_jax.verifiers.calculator import Calculator
from prm_jax.verifiers.code import CodeVerifier, call_reference, io_reference
from prm_jax.verifiers.custom import FunctionVerifier, ProblemVerifier, WeightedVerifier, judge
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
from prm_jax.verifiers.program_text import find_program
from prm_jax.verifiers.python_tool import PythonTool
from prm_jax.verifiers.references import check_reference, check_references
from prm_jax.verifiers.tool_calls import Markers
from prm_jax.verifiers.tools import make_tool
from prm_jax.verifiers.unit_test_quality import UnitTestVerifier
from prm_jax.verifiers.verdict import NO_ANSWER, Mode, Status, Verdict, Verifier

__all__ = [
    "ANSWER_MARKERS",
    "NO_ANSWER",
    "Calculator",
    "CodeVerifier",
    "ExactVerifier",
    "FunctionVerifier",
    "Markers",
    "MathPool",
    "MathVerifier",
    "Mode",
    "NumberVerifier",
    "ProblemVerifier",
    "PythonTool",
    "Status",
    "UnitTestVerifier",
    "Verdict",
    "Verifier",
    "WeightedVerifier",
    "after_marker",
    "call_reference",
    "check_reference",
    "check_references",
    "find_answer",
    "find_candidates",
    "find_program",
    "io_reference",
    "judge",
    "last_boxed",
    "last_number",
    "make_tool",
    "parse_number",
    "read_number",
]
