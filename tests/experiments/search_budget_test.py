"""Comparing searches with votes of as many tokens: worked out by hand."""

import numpy as np
import pytest

from experiments.search_budget import main as experiment


def outcome(right: list[float], tokens: float) -> experiment.Outcome:
    return experiment.Outcome(np.array(right), np.full(len(right), tokens), np.zeros(len(right)), np.zeros(len(right)))


def test_votes_are_interpolated_over_the_logarithm_of_their_tokens():
    found = {
        ("majority vote", 1): outcome([0.0, 1.0], 10.0),
        ("majority vote", 4): outcome([1.0, 1.0], 40.0),
        ("DVTS", 2): outcome([1.0, 0.0], 20.0),  # half way between the votes
        ("MCTS", 2): outcome([1.0, 1.0], 80.0),  # beyond the largest
    }
    np.testing.assert_allclose(experiment.less_vote(found, ("DVTS", 2)), [0.5, -1.0])
    np.testing.assert_allclose(experiment.less_vote(found, ("MCTS", 2)), [0.0, 0.0])
    np.testing.assert_allclose(experiment.less_vote(found, ("majority vote", 1)), [0.0, 0.0])
    np.testing.assert_allclose(experiment.less_vote(found, ("majority vote", 4)), [0.0, 0.0])


def test_intervals_are_over_seeds_or_over_the_problems_of_a_single_seed():
    seeds = [np.array([0.0, 1.0]), np.array([1.0, 1.0]), np.array([0.0, 0.0])]
    found = experiment.over_seeds(seeds)
    half = 4.3027 * 0.5 / np.sqrt(3)  # means 0.5, 1, 0
    assert found == pytest.approx(0.5) and (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    alone = experiment.over_seeds(seeds[:1])
    assert alone == pytest.approx(0.5) and alone.high == pytest.approx(0.5 + 12.706 * 0.5, abs=1e-2)
