"""Reward models on named features: they find the weights that made the data, and refuse tables that cannot be used."""

import csv

import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.prm import fit_features

NAMES = ("shortness", "checks", "noise")


def rows(groups=120, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for group in range(groups):
        for _ in range(2):
            x = rng.normal(size=3) * (1, 5, 1) + (0, 3, 0)
            good = x[0] + 0.4 * (x[1] - 3) + 0.3 * rng.logistic()
            found.append({**dict(zip(NAMES, x.tolist(), strict=True)), "outcome": good, "problem": group})
    return found


@pytest.mark.parametrize("group", ["problem", ""])
def test_the_weights_are_those_that_made_the_data(group):
    model = fit_features(rows(), NAMES, group=group)
    weights = np.asarray(list(model.weights.values()))
    assert abs(weights[2]) < 0.15 * weights[0] and weights[1] / weights[0] == pytest.approx(2.0, rel=0.15)
    assert model.accuracy > 0.85 and model.means["checks"] == pytest.approx(3, abs=1)
    better, worse = {"shortness": 1, "checks": 5, "noise": 0}, {"shortness": 1, "checks": 3, "noise": 0}
    assert model.score(better) > model.score(worse)


def test_a_table_in_a_file(tmp_path):
    path = tmp_path / "table.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*NAMES, "outcome", "problem"])
        writer.writeheader()
        writer.writerows(rows(40))
    assert fit_features(path, NAMES, group="problem").accuracy > 0.8
    with pytest.raises(UserError, match="has no column 'chekcs'; did you mean 'checks'"):
        fit_features(path, ["chekcs"])
    with pytest.raises(UserError, match="the row: the column 'noise' holds None, expected a finite number"):
        fit_features(path, NAMES).score({"shortness": 1, "checks": 2})


def test_bad_tables():
    with pytest.raises(UserError, match="no two rows of a problem differ in 'outcome'"):
        fit_features([{"a": a, "outcome": 1, "problem": 0} for a in (1, 2)], ["a"], group="problem")
    with pytest.raises(UserError, match="row 1: the column 'a' holds 'x'"):
        fit_features([{"a": 1, "outcome": 1}, {"a": "x", "outcome": 0}], ["a"])
    with pytest.raises(UserError, match="found 0 and 1"):
        fit_features([], ["a"])
