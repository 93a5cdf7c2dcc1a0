"""Comparing searches with votes of as many tokens: worked out by hand."""

import dataclasses

import numpy as np
import pytest

from experiments.prime_smollm2.main import over_problems
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


def test_a_finished_seed_is_read_again_and_another_setting_is_not(tmp_path, monkeypatch):
    made = []

    def one_seed(config, drop_carry, seed):
        made.append((config.width, drop_carry, seed))
        return {"value model": {("DVTS", 4): outcome([0.0, 0.5], 7.0)}}, {"right samples": 0.25}

    monkeypatch.setattr(experiment, "one_seed", one_seed)
    config = experiment.Config(kept=str(tmp_path), seeds=3)
    first, again = (experiment.kept_seed(config, 0.6, 1) for _ in range(2))
    assert made == [(4, 0.6, 1)]
    for outcomes, facts in (first, again):
        assert facts == {"right samples": 0.25}
        found = outcomes["value model"]["DVTS", 4]
        np.testing.assert_array_equal(found.right, [0.0, 0.5])
        np.testing.assert_array_equal(found.tokens, [7.0, 7.0])
    # More seeds change nothing for a seed that is there; another setting does, and without a directory nothing is kept.
    experiment.kept_seed(dataclasses.replace(config, seeds=5), 0.6, 1)
    assert len(made) == 1
    experiment.kept_seed(dataclasses.replace(config, width=2), 0.6, 1)
    experiment.kept_seed(dataclasses.replace(config, kept=""), 0.6, 1)
    assert made[1:] == [(2, 0.6, 1), (4, 0.6, 1)] and len(list(tmp_path.iterdir())) == 2


def test_accuracies_of_the_run_on_smollm2_carry_intervals_over_problems():
    right = np.repeat([1.0, 0.0], [26, 102])
    half = 1.9788 * right.std(ddof=1) / np.sqrt(128)
    assert over_problems(26 / 128, 128) == pytest.approx((26 / 128, 26 / 128 - half, 26 / 128 + half), abs=2e-4)
