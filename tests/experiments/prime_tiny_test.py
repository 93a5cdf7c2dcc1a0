"""The seeds experiment: its statistics on numbers worked out by hand, and a smoke run."""

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.prime_tiny import main as experiment


def test_interquartile_mean_drops_a_quarter_on_either_side():
    assert experiment.interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0])) == pytest.approx(1.5)
    # Five values: the outer quarters take the ends whole and a quarter of their neighbours.
    five = (0.75 * 1 + 1 * 2 + 0.75 * 3) / 2.5
    assert experiment.interquartile_mean(np.array([0.0, 1.0, 2.0, 3.0, 100.0])) == pytest.approx(five)
    assert experiment.interquartile_mean(np.array([7.0])) == 7.0


def test_interval_holds_the_middle_and_shrinks_to_a_point_for_equal_seeds():
    middle, low, high = experiment.interval(np.array([0.1, 0.5, 0.6, 0.7, 0.9]))
    assert low < middle < high
    assert experiment.interval(np.full(5, 0.3)) == pytest.approx((0.3, 0.3, 0.3))


def test_steps_to_a_level_are_interpolated_and_double_when_never_reached():
    steps, values = np.array([0, 10, 20]), np.array([0.2, 0.6, 1.0])
    assert experiment.steps_to(steps, values, 0.8) == pytest.approx(15.0)
    assert experiment.steps_to(steps, values, 0.1) == 0.0
    assert experiment.steps_to(steps, np.zeros(3), 0.8) == 40.0


def test_every_regime_compares_arms_that_differ_in_the_rewards_alone():
    for name, options in experiment.regimes().items():
        assert not options.baseline and options.prm.pretrain_rollouts == 0, name


@pytest.mark.slow
def test_smoke(tmp_path):
    command = [sys.executable, experiment.__file__, "--smoke", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=500, capture_output=True)
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["smoke"]["seeds"] == 1 and set(summary["smoke"]["arms"]) == set(experiment.ARMS)
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_running_means_take_fewer_values_at_the_ends():
    np.testing.assert_allclose(experiment.running_mean(np.array([1.0, 2.0, 6.0]), 3), [1.5, 3.0, 4.0])
    np.testing.assert_allclose(experiment.running_mean(np.array([1.0, 2.0, 6.0]), 1), [1.0, 2.0, 6.0])
