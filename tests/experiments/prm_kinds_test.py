"""The experiment that compares kinds of reward models runs in its smallest configuration."""

import math

import numpy as np
import pytest

from experiments.prm_kinds import main as experiment
from prm_jax.data.carry import CarryTask


@pytest.mark.slow
def test_smoke():
    tables = experiment.run(experiment.SMOKE)
    rows, differences = tables.values()
    assert set(rows) == set(experiment.SMOKE.arms) and set(differences) == set(rows) - {experiment.BASE}
    assert all(math.isfinite(value) for table in tables.values() for row in table.values() for value in row.values())
    # All arms pay the same, but for what the last update is too much.
    spent = [row["compute"] for row in rows.values()]
    assert max(spent) < 1.2 * min(spent)


def test_monte_carlo_labels_are_shares_of_right_completions():
    task = CarryTask(3, 3, num_train=64, num_eval=8)
    problem = task.train[0]
    right = task.solve(problem)
    steps = [right[start:end] for start, end in task.splitter(right)]
    rng = np.random.default_rng(0)
    labels = experiment.monte_carlo(task, problem, steps, 64, rng)
    assert labels[-2:] == (1.0, 1.0)  # nothing is left to go wrong
    total, row = 9, (9, 9, 9)
    ends = [experiment.finish(row, total, 0, 0.6, rng) for _ in range(4000)]
    assert set(ends) == {27, 17, 7} and np.mean(np.asarray(ends) == 27) == pytest.approx(0.16, abs=0.03)
