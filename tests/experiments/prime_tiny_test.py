"""The seeds experiment: its statistics on numbers worked out by hand, and a smoke run."""

import json
import pathlib
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


def test_intervals_are_students_and_of_width_0_for_one_seed():
    found = experiment.with_intervals({"PRIME": {"greedy": [0.1, 0.5, 0.6, 0.7, 0.9]}, "short": {"greedy": [0.3]}})
    half = 2.7764 * np.std([0.1, 0.5, 0.6, 0.7, 0.9], ddof=1) / np.sqrt(5)
    assert found["PRIME"]["greedy"] == pytest.approx((0.56, 0.56 - half, 0.56 + half), abs=1e-4)
    assert found["short"]["greedy"] == (0.3, 0.3, 0.3)


def test_the_stored_intervals_are_those_of_the_stored_seeds():
    stored = json.loads((pathlib.Path(experiment.__file__).parent / "results.json").read_text())
    for name in ("short", "long"):
        assert json.loads(json.dumps(experiment.with_intervals(stored[name]["per_seed"]))) == stored[name]["arms"]


def test_steps_to_a_level_are_interpolated_and_double_when_never_reached():
    steps, values = np.array([0, 10, 20]), np.array([0.2, 0.6, 1.0])
    assert experiment.steps_to(steps, values, 0.8) == pytest.approx(15.0)
    assert experiment.steps_to(steps, values, 0.1) == 0.0
    assert experiment.steps_to(steps, np.zeros(3), 0.8) == 40.0


def test_every_regime_compares_arms_that_differ_in_the_rewards_alone():
    for name, options in experiment.regimes().items():
        assert not options.baseline and options.prm.pretrain_rollouts == 0, name


@pytest.mark.slow
def test_smoke(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--smoke", "--out", str(tmp_path)])
    experiment.main()
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["smoke"]["seeds"] == 1 and set(summary["smoke"]["arms"]) == set(experiment.arms("smoke"))
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_running_means_take_fewer_values_at_the_ends():
    np.testing.assert_allclose(experiment.running_mean(np.array([1.0, 2.0, 6.0]), 3), [1.5, 3.0, 4.0])
    np.testing.assert_allclose(experiment.running_mean(np.array([1.0, 2.0, 6.0]), 1), [1.0, 2.0, 6.0])
