"""The experiment on credit: its statistics on numbers worked out by hand, its arms, and a smoke run."""

import json
import sys

import numpy as np
import pytest

from experiments.credit import arms, main, report
from prm_jax.prime.checks import check_options

RUN = {"rollouts": [0, 100, 200], "sampled": [0.1, 0.3, 0.5], "warm_up_rollouts": 100}


def test_the_area_charges_the_warm_up_at_the_starts_accuracy():
    assert report.area(RUN, 200, charge=False) == pytest.approx((0.2 + 0.4) / 2)
    assert report.area(RUN, 200, charge=True) == pytest.approx((0.1 + 0.2) / 2)
    assert report.area(RUN, 150, charge=False) == pytest.approx((0.2 * 100 + 0.35 * 50) / 150)


def test_rollouts_to_a_level_are_interpolated_and_at_most_the_budget():
    assert report.rollouts_to(RUN, 0.4, 200, charge=False) == pytest.approx(150)
    assert report.rollouts_to(RUN, 0.2, 300, charge=True) == pytest.approx(150)
    assert report.rollouts_to(RUN, 0.4, 200, charge=True) == 200
    assert report.rollouts_to(RUN, 0.9, 200, charge=False) == 200
    assert report.rollouts_to(RUN, 0.1, 200, charge=False) == 0


def test_ratios_are_geometric_means_with_students_interval():
    found = report.ratio([2.0, 8.0], [1.0, 2.0])
    assert found == pytest.approx(np.sqrt(8))
    half = 12.7062 * np.std(np.log([2, 4]), ddof=1) / np.sqrt(2)
    assert (found.low, found.high) == pytest.approx((np.sqrt(8) * np.exp(-half), np.sqrt(8) * np.exp(half)), rel=1e-4)


@pytest.mark.parametrize("task", arms.TASKS)
def test_arms_differ_in_the_rewards_alone_and_their_options_work(task):
    base = arms.arm_options(task, "outcome", 3, "start", rate=1e-4)
    for name in arms.ARMS:
        options = arms.arm_options(task, name, 3, "start", rate=1e-4)
        check_options(options)
        for group in ("task", "model", "sft", "policy", "eval", "steps", "seed"):
            assert getattr(options, group) == getattr(base, group), (name, group)
        assert (options.rollout == base.rollout) == (name != "outcome_filtered")


def test_tables_pair_runs_by_seed():
    runs = []
    for arm, gain, warm in (("outcome", 0.0, 0), ("easier", 0.1, 100)):
        for seed in (1, 2):
            accuracy = [0.1, 0.3 + gain + 0.01 * seed, 0.5]
            runs.append({**RUN, "arm": arm, "seed": seed, "sampled": accuracy, "warm_up_rollouts": warm,
                         "processor_seconds": 5.0, "auc": [0.9, 0.8, 0.7]})  # fmt: skip
    found = report.summary({(run["arm"], run["seed"]): run for run in runs}, "long")
    paired = found["long: paired by seed"]["easier"]
    assert paired["seeds"] == 2 and paired["area minus outcome (warm-up free)"] == pytest.approx(0.05)
    assert paired["seeds ahead"] == 0 and paired["area minus outcome"] < 0
    assert found["long: all arms"]["easier"]["step AUC, end"] == pytest.approx(0.7)


@pytest.mark.slow
def test_smoke(tmp_path, monkeypatch):
    words = ["--smoke", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", ["main", *words, "--arms", "outcome", "checker", "easier"])
    arguments = main.parsed()
    main.run(arguments)
    report.report(arguments.results)
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["arm"] for run in runs] == ["outcome", "checker", "easier"]
    assert (tmp_path / "figure.png").stat().st_size > 5_000
