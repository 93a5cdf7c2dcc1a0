"""Metrics: published numbers, ties, and the exact threshold search against a sweep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rl import compiled as rl
from tests.rl import golden, oracles
from tests.stats import compiled as stats

CLOSE = {"rtol": 2e-5, "atol": 2e-6}
GROUPS = np.repeat([0, 1], 4)


def ragged(rows):
    out, mask = np.full((len(rows), max(map(len, rows))), np.nan), np.zeros((len(rows), max(map(len, rows))), bool)
    for i, values in enumerate(rows):
        out[i, : len(values)], mask[i, : len(values)] = values, True
    return out, mask


def test_published_pairwise_accuracy():
    case = golden.load("prime")["reward_losses"]
    scores = np.array(case["in"]["q_sum"])
    for outcome, expected in (("acc", "dpo_accuracy"), ("acc_frac", "dpo_accuracy_frac")):
        for average in ("groups", "released"):
            accuracy = rl.pairwise_accuracy(
                scores, np.array(case["in"][outcome]), GROUPS, num_groups=2, average=average
            )
            np.testing.assert_allclose(accuracy, case["out"][expected], **CLOSE)
    absolute = stats.outcome_accuracy(scores, np.array(case["in"]["acc"]))
    np.testing.assert_allclose(absolute, case["out"]["dpo_abs_accuracy"], **CLOSE)


def test_groups_without_a_pair_count_only_in_the_released_form():
    scores, outcome = np.arange(8.0), np.array([0, 0, 0, 1, 1, 1, 1, 1])
    of = {
        average: float(rl.pairwise_accuracy(scores, outcome, GROUPS, num_groups=2, average=average))
        for average in ("groups", "pairs", "released")
    }
    assert of == {"groups": 1.0, "pairs": 1.0, "released": 0.75}
    assert float(rl.pairwise_accuracy(-scores, outcome, GROUPS, num_groups=2)) == 0.0
    assert float(rl.pairwise_accuracy(scores, np.ones(8), GROUPS, num_groups=2)) == 0.5


def test_constant_scores_are_at_chance():
    outcome = np.random.default_rng(0).integers(0, 2, 8)
    assert float(rl.pairwise_accuracy(np.zeros(8), outcome, GROUPS, num_groups=2)) == 0.5


def test_trust_gate():
    np.testing.assert_allclose(rl.trust_gate([0.0, 0.5, 0.75, 1.0]), [0.0, 0.0, 0.5, 1.0])


def test_a_trust_gate_with_a_count_opens_only_for_evidence():
    """The lower end solves (a - p)^2 = z^2 p (1 - p) / n for p below a."""
    accuracy, count, z = np.array([0.6, 0.8, 1.0, 1.0, 0.9]), np.array([50, 7, 1, 12, 400]), 1.3
    gate = np.asarray(rl.trust_gate(accuracy, count=count, z=z), np.float64)
    for a, n, g in zip(accuracy, count, gate, strict=True):
        grid = np.linspace(0, a, 200_001)
        low = grid[np.argmin(np.abs((a - grid) ** 2 - z**2 * grid * (1 - grid) / n)[:-1])] if a < 1 else n / (n + z**2)
        np.testing.assert_allclose(g, max(0.0, 2 * low - 1), atol=2e-5)
    assert float(rl.trust_gate(1.0, count=0)) == 0.0 and float(rl.trust_gate(1.0, count=1)) == 0.0
    np.testing.assert_allclose(rl.trust_gate(accuracy, count=count, z=0.0), 2 * accuracy - 1, rtol=1e-6)
    chance = np.random.default_rng(0).binomial(7, 0.5, size=20_000) / 7
    plain, careful = rl.trust_gate(chance).mean(), rl.trust_gate(chance, count=7).mean()
    assert plain > 0.14 and careful < plain / 3  # noise opens the plain gate by a seventh on average


def test_published_first_error_f1():
    case = golden.load("search")["processbench"]
    for one in case["cases"]:
        scores = rl.first_error_f1(np.array(one["pred"]), np.array(one["label"]))
        for name in ("error_acc", "correct_acc", "f1"):
            np.testing.assert_allclose(100 * scores[name], one[name], **CLOSE)
    sweep = case["sweep"]
    scores, mask = ragged(sweep["scores"])
    label = np.array(sweep["label"])
    for one in sweep["rows"]:
        predicted = rl.first_error(scores, mask, threshold=np.float32(one["threshold"]))
        np.testing.assert_array_equal(predicted, one["pred"])
        np.testing.assert_allclose(100 * rl.first_error_f1(predicted, label)["f1"], one["f1"], **CLOSE)
    tried = np.array([one["threshold"] for one in sweep["rows"]])
    threshold, f1 = rl.best_threshold(scores, mask, label, candidates=tried)
    np.testing.assert_allclose([threshold, f1], [sweep["best_threshold_first_max"], 1.0], **CLOSE)
    threshold, f1 = rl.best_threshold(scores, mask, label)
    np.testing.assert_allclose([threshold, f1], [0.575, 1.0], **CLOSE)  # the middle of (0.55, 0.6]


def test_published_step_scoring():
    """Step values of implicit rewards judged as in ImplicitPRM: a step is wrong when the sigmoid is low."""
    case = golden.load("prime")["step_scoring"]
    scores, mask = ragged([one["r"] for one in case["in"]["processbench"]])
    label = np.array([one["label"] for one in case["in"]["processbench"]])
    values = 1 / (1 + np.exp(-scores))
    for threshold, expected in case["out"]["processbench_f1"].items():
        predicted = rl.first_error(values, mask, threshold=np.float32(threshold))
        np.testing.assert_allclose(rl.first_error_f1(predicted, label)["f1"], expected, **CLOSE)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_the_best_threshold_is_exact(seed, grid):
    """On a coarse grid of scores (many ties): no threshold at all does better, and the one named does it."""
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, grid, (8, 4)) / grid).astype(np.float32)
    mask = rng.random((8, 4)) < 0.8
    label = rng.integers(-1, 5, 8)  # 4 is beyond the last step: never right
    dirty = np.where(mask, scores, np.nan)
    threshold, f1 = rl.best_threshold(dirty, mask, label)
    np.testing.assert_allclose(f1, oracles.best_f1_by_sweep(scores, mask, label), atol=1e-6)
    predicted = oracles.first_error(scores, mask, float(threshold))
    np.testing.assert_allclose(oracles.first_error_f1(predicted, label, mask.any(1))["f1"], f1, atol=1e-6)


def test_best_threshold_without_data():
    threshold, f1 = rl.best_threshold(np.full((2, 3), np.nan), np.zeros((2, 3), bool), np.array([-1, 0]))
    assert np.isfinite(threshold) and f1 == 0
    everything_wrong = rl.best_threshold(np.array([[0.2], [0.9]]), np.ones((2, 1), bool), np.array([0, 0]))
    assert np.isfinite(everything_wrong[0]) and float(everything_wrong[1]) == 0  # no correct response: F1 is 0


def test_best_threshold_keeps_clear_of_the_scores():
    scores, mask = np.array([[0.2, 0.1], [0.8, 0.9]]), np.ones((2, 2), bool)
    threshold, f1 = rl.best_threshold(scores, mask, np.array([0, -1]))
    np.testing.assert_allclose([threshold, f1], [0.5, 1.0], rtol=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match="average='mean'"):
        rl.pairwise_accuracy(np.ones(2), np.ones(2), [0, 0], num_groups=1, average="mean")
    with pytest.raises(AssertionError):
        rl.first_error(np.ones((2, 3)), np.ones((2, 4), bool), threshold=0.5)


@pytest.mark.parametrize("seed", range(4))
def test_outcome_threshold_flags_as_many_responses_as_have_failed(seed):
    rng = np.random.default_rng(seed)
    scores, mask = rng.normal(size=(12, 5)).astype(np.float32), np.arange(5) < rng.integers(0, 6, size=(12, 1))
    outcome = rng.integers(0, 2, size=12).astype(np.float32)
    outcome[:2], mask[:2] = [0, 1], True
    threshold, known = rl.outcome_threshold(np.where(mask, scores, -99.0), mask, outcome)
    flagged = rl.first_error(scores, mask, threshold=threshold) >= 0
    written = mask.any(-1)
    assert known and flagged.sum() == np.sum(1 - outcome[written])


def test_outcome_threshold_needs_both_outcomes():
    for outcome in (np.zeros(3), np.ones(3)):
        threshold, known = rl.outcome_threshold(np.zeros((3, 2)), np.ones((3, 2), bool), outcome)
        assert threshold == 0 and not known
    assert not rl.outcome_threshold(np.zeros((3, 2)), np.zeros((3, 2), bool), np.array([0, 1, 0]))[1]
