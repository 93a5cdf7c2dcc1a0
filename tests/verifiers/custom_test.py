"""Functions as verifiers and weighted combinations: scores in [0, 1], and failures that count as no evidence."""

import dataclasses

import pytest

from prm_jax.errors import UserError
from prm_jax.verifiers import ExactVerifier, FunctionVerifier, NumberVerifier, Verdict, WeightedVerifier, judge


@dataclasses.dataclass(frozen=True)
class _Problem:
    answer: str
    metadata: dict = dataclasses.field(default_factory=dict)


def _one(verifier, response, answer="4"):
    (verdict,) = judge(verifier, [_Problem(answer)], [response])
    return verdict


@pytest.mark.parametrize(
    ("result", "score", "status"),
    [
        (1, 1.0, "pass"),
        (True, 1.0, "pass"),
        (0.0, 0.0, "fail"),
        (False, 0.0, "fail"),
        (0.25, 0.25, "fail"),
        (Verdict(0.0, "timeout"), 0.0, "timeout"),
        (1.5, 0.0, "error"),
        (-0.1, 0.0, "error"),
        (float("nan"), 0.0, "error"),
        (None, 0.0, "error"),
        ("yes", 0.0, "error"),
    ],
)
def test_results_of_a_function(result, score, status):
    verdict = _one(FunctionVerifier(lambda problem, response: result, "mine"), "x")
    assert (verdict.score, verdict.status) == (score, status) and verdict.usable == (status != "error")
    assert status != "error" or "mine" in verdict.detail


def test_an_exception_is_an_error_and_names_its_kind():
    verdict = _one(FunctionVerifier(lambda problem, response: problem.metadata["absent"], "mine"), "x")
    assert verdict.status == "error" and verdict.detail == "mine raised KeyError: 'absent'"


def test_a_function_sees_the_whole_problem():
    verifier = FunctionVerifier(lambda problem, response: problem.metadata["n"] == len(response))
    problems = [_Problem("", {"n": 2}), _Problem("", {"n": 3})]
    assert [verdict.score for verdict in judge(verifier, problems, ["ab", "ab"])] == [1.0, 0.0]


def test_a_weighted_mean():
    short = FunctionVerifier(lambda problem, response: len(response) < 12, "short")
    both = WeightedVerifier(((NumberVerifier(), 3.0), (short, 1.0)))
    assert _one(both, "#### 4") == Verdict(1.0, "pass")
    assert _one(both, "It is so: #### 4").score == 0.75
    assert _one(both, "#### 5").score == 0.25
    assert _one(both, "4").no_answer and _one(both, "4").score == 0.25
    assert not _one(both, "#### 5").no_answer


def test_a_part_that_cannot_judge_spoils_the_verdict():
    broken = FunctionVerifier(lambda problem, response: 1 / 0, "broken")
    verdict = _one(WeightedVerifier(((ExactVerifier(), 1.0), (broken, 1.0))), "4")
    assert not verdict.usable and "ZeroDivisionError" in verdict.detail


def test_bad_weights_are_refused():
    for parts in ((), ((ExactVerifier(), 0.0),), ((ExactVerifier(), float("nan")),), ((ExactVerifier(), -1.0),)):
        with pytest.raises(UserError, match="weight"):
            WeightedVerifier(parts)
