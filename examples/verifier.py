"""A verifier of your own: full marks for the right number in a short response, half for a long one.

prm-jax train --task.name problems.jsonl --task.options verifier examples/verifier.py:reward
prm-jax train --task.name problems.jsonl --task.options verifier "0.8*number,0.2*examples/verifier.py:brief"
"""

from prm_jax.data import Problem
from prm_jax.verifiers import after_marker, parse_number

LONG = 400


def reward(problem: Problem, response: str) -> float:
    """A number in [0, 1]; an exception leaves the response out of learning instead of counting it as wrong."""
    answer = after_marker(response)
    if answer is None or parse_number(answer) != parse_number(problem.answer):
        return 0.0
    return 1.0 if brief(problem, response) else 0.5


def brief(problem: Problem, response: str) -> bool:
    """Whether the response is short."""
    return len(response) <= LONG
