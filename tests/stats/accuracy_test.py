"""Votes, pass@k and areas under curves: published numbers, ties, missing answers."""

import numpy as np
import pytest

from tests.rl import golden, oracles
from tests.stats import compiled as stats

CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def test_published_votes():
    case = golden.load("prime")["step_scoring"]
    answers = {a: i for i, a in enumerate(dict.fromkeys(case["in"]["answers"]))}
    ids = np.array([answers[a] for a in case["in"]["answers"]])
    weights = 1 / (1 + np.exp(-np.array(case["out"]["min_single"])))
    totals = stats.vote_totals(weights, ids)
    for answer, expected in case["out"]["weighted_vote_sigmoid"].items():
        np.testing.assert_allclose(totals[case["in"]["answers"].index(answer)], expected, **CLOSE)
    case = golden.load("search")["aggregate"]
    answers = {a: i for i, a in enumerate(dict.fromkeys(case["answers"]))}
    ids = np.array([answers[a] for a in case["answers"]])
    for how, expected in case["vote"].items():
        scores = np.array(case["agg"][how])
        totals = stats.vote_totals(scores, ids)
        for answer, total in expected["sums"].items():
            np.testing.assert_allclose(totals[case["answers"].index(answer)], total, **CLOSE)
        assert case["answers"][int(np.argmax(totals))] == expected["winner"]


def test_majority_and_missing_answers():
    totals = stats.vote_totals(np.ones(4), np.array([2, -1, 5, 2]))
    np.testing.assert_array_equal(totals, [2, 0, 1, 2])


def test_published_pass_at_k():
    for case in golden.load("search")["pav"]["pass_at_k"]:
        value = stats.pass_at_k(np.int32(case["n"]), np.int32(case["c"]), k=case["k"])
        np.testing.assert_allclose(value, case["value"], **CLOSE)
    n, c = np.meshgrid(np.arange(5, 9), np.arange(0, 5))
    np.testing.assert_allclose(stats.pass_at_k(n, c, k=4), oracles.pass_at_k(n, c, 4), rtol=1e-5)
    np.testing.assert_allclose(stats.pass_at_k(n, c, k=1), c / n, rtol=1e-6)


def test_roc_auc():
    assert float(stats.roc_auc(np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]))) == 1.0
    assert float(stats.roc_auc(np.array([1.0, 1.0, 1.0]), np.array([0, 1, 1]))) == 0.5
    assert float(stats.roc_auc(np.array([1.0, np.inf]), np.array([0, 1]))) == 1.0
    assert float(stats.roc_auc(np.ones(2), np.ones(2))) == 0.5


def test_a_process_reward_that_only_sees_the_end():
    scores = np.array([[0.9, 0.8, 0.1], [0.5, 0.2, 0.9], [0.3, 0.9, 0.9]])
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], bool)
    assert float(stats.min_at_last_rate(scores, mask)) == 1.0
    assert float(stats.min_at_last_rate(scores, np.ones((3, 3), bool))) == pytest.approx(1 / 3)


def test_votes_by_mean_and_by_the_best():
    weights = np.array([[0.9, 0.5, 0.6, 0.2, 0.99]])
    answers = np.array([[0, 1, 1, 2, -1]])
    np.testing.assert_allclose(stats.vote_totals(weights, answers), [[0.9, 1.1, 1.1, 0.2, 0]], rtol=1e-6)
    mean = stats.vote_totals(weights, answers, reduce="mean")
    np.testing.assert_allclose(mean, [[0.9, 0.55, 0.55, 0.2, 0]], rtol=1e-6)
    best = stats.vote_totals(weights, answers, reduce="max")
    np.testing.assert_allclose(best, [[0.9, 0.6, 0.6, 0.2, 0]], rtol=1e-6)
    # "max" is best-of-n among responses with an answer; equal weights are a majority.
    assert int(np.argmax(best)) == int(np.argmax(np.where(answers >= 0, weights, -1)))
    assert int(np.argmax(stats.vote_totals(np.ones((1, 5)), answers))) == 1
