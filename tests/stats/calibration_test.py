"""Calibration measures and Platt scaling against loops, hand-worked bins and SciPy's optimiser."""

import jax
import numpy as np
import pytest
from scipy import optimize, special

from tests.stats import compiled as stats


def slow_ece(confidence, outcome, num_bins):
    total = 0.0
    for k in range(num_bins):
        low, high = k / num_bins, (k + 1) / num_bins
        inside = [i for i, c in enumerate(confidence) if low < c <= high or (k == 0 and c == 0)]
        if inside:
            gap = abs(np.mean(outcome[inside]) - np.mean(confidence[inside]))
            total += len(inside) / len(confidence) * gap
    return total


def slow_ace(confidence, outcome, num_bins):
    order = np.argsort(confidence)
    parts = np.array_split(order, num_bins)
    return sum(len(p) / len(confidence) * abs(outcome[p].mean() - confidence[p].mean()) for p in parts if len(p))


def test_by_hand():
    confidence, outcome = np.array([0.9, 0.8, 0.7, 0.2]), np.array([1.0, 1.0, 0.0, 0.0])
    table = stats.reliability_bins(confidence, outcome, num_bins=2)
    np.testing.assert_allclose(table.confidence, [0.2, 0.8], rtol=1e-6)
    np.testing.assert_allclose(table.accuracy, [0, 2 / 3], rtol=1e-6)
    np.testing.assert_array_equal(table.size, [1, 3])
    ece = stats.calibration_error(confidence, outcome, num_bins=2)
    np.testing.assert_allclose(ece, 0.25 * 0.2 + 0.75 * (0.8 - 2 / 3), rtol=1e-5)
    mce = stats.calibration_error(confidence, outcome, num_bins=2, kind="mce")
    np.testing.assert_allclose(mce, 0.2, rtol=1e-5)
    ace = stats.calibration_error(confidence, outcome, num_bins=2, kind="ace")
    np.testing.assert_allclose(ace, 0.5 * 0.15 + 0.5 * 0.45, rtol=1e-5)  # {.9, .8} and {.7, .2}: means 1, 0
    np.testing.assert_allclose(stats.brier_score(confidence, outcome), (0.01 + 0.04 + 0.49 + 0.04) / 4)


@pytest.mark.parametrize("seed", range(4))
def test_matches_loops_and_ignores_masked(seed):
    rng = np.random.default_rng(seed)
    confidence, outcome = rng.uniform(size=60), rng.uniform(size=60)
    mask = np.append(np.ones(60, bool), [False, False])
    padded = np.append(np.array(confidence), np.array([np.nan, 7.0]))
    results = np.append(np.array(outcome), np.array([np.nan, np.inf]))
    ece = stats.calibration_error(padded, results, mask, num_bins=7)
    np.testing.assert_allclose(ece, slow_ece(confidence, outcome, 7), atol=1e-6)
    ace = stats.calibration_error(padded, results, mask, kind="ace", num_bins=6)
    np.testing.assert_allclose(ace, slow_ace(confidence, outcome, 6), atol=1e-6)
    np.testing.assert_allclose(
        stats.brier_score(padded, results, mask), ((confidence - outcome) ** 2).mean(), rtol=1e-5
    )


def test_ties_share_a_bin_of_equal_mass():
    confidence = np.array([0.5, 0.5, 0.5, 0.9])
    first = stats.calibration_error(confidence, np.array([1.0, 0, 0, 1]), kind="ace", num_bins=2)
    second = stats.calibration_error(confidence, np.array([0.0, 0, 1, 1]), kind="ace", num_bins=2)
    np.testing.assert_allclose(first, second)


def test_error_of_a_calibrated_forecaster_vanishes_with_data():
    rng = np.random.default_rng(0)
    errors = []
    for size in (100, 1_000, 30_000):
        confidence = rng.uniform(size=size)
        outcome = rng.uniform(size=size) < confidence
        errors.append(float(stats.calibration_error(np.array(confidence), np.array(outcome))))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02


def test_pooled_over_devices():
    rng = np.random.default_rng(1)
    confidence, outcome = np.array(rng.uniform(size=(4, 16))), np.array(rng.uniform(size=(4, 16)) < 0.5)
    mask = np.array(rng.uniform(size=(4, 16)) < 0.7)
    for function in (stats.calibration_error, stats.brier_score):
        pooled = jax.vmap(lambda c, o, m, f=function: f(c, o, m, axis_name="d"), axis_name="d")
        np.testing.assert_allclose(
            pooled(confidence, outcome, mask), np.full(4, function(confidence, outcome, mask)), rtol=1e-6
        )
    mass = jax.vmap(lambda c, o, m: stats.calibration_error(c, o, m, kind="ace", axis_name="d"), axis_name="d")
    whole = stats.calibration_error(confidence, outcome, mask, kind="ace")
    np.testing.assert_allclose(mass(confidence, outcome, mask), np.full(4, whole), rtol=1e-6)


def test_empty_mask_gives_zero():
    nothing = np.zeros(3, bool)
    for kind in ("ece", "ace", "mce"):
        assert stats.calibration_error(np.full(3, np.nan), np.ones(3), nothing, kind=kind) == 0
    assert stats.brier_score(np.full(3, np.nan), np.ones(3), nothing) == 0
    scale = stats.fit_platt(np.full(3, np.nan), np.ones(3), nothing)
    assert scale.slope == 0 and np.isfinite(scale.intercept)


@pytest.mark.parametrize("smooth", [True, False])
def test_platt_matches_scipy(smooth):
    rng = np.random.default_rng(5)
    scores = rng.normal(2.0, 3.0, size=500)
    labels = (rng.uniform(size=500) < special.expit(0.7 * scores - 1)).astype(float)
    high = (labels.sum() + 1) / (labels.sum() + 2) if smooth else 1.0
    low = 1 / (500 - labels.sum() + 2) if smooth else 0.0
    target = labels * high + (1 - labels) * low

    def loss(theta):
        z = theta[0] * scores + theta[1]
        return np.mean(np.logaddexp(0, z) - target * z)

    best = optimize.minimize(loss, np.zeros(2), tol=1e-12).x
    scale = jax.jit(lambda s, y: stats.fit_platt(s, y, smooth=smooth))(np.array(scores), np.array(labels))
    np.testing.assert_allclose([scale.slope, scale.intercept], best, atol=2e-3)


def test_platt_of_calibrated_logits_is_the_identity_and_keeps_order():
    rng = np.random.default_rng(6)
    logits = rng.normal(size=20_000) * 1.5
    labels = rng.uniform(size=20_000) < special.expit(logits)
    scale = stats.fit_platt(np.array(logits), np.array(labels))
    np.testing.assert_allclose([scale.slope, scale.intercept], [1, 0], atol=0.06)
    read = np.array(stats.apply_platt(scale, np.array(np.sort(logits)[::100])))
    assert (np.diff(read) > 0).all()  # so AUROC does not change


def test_platt_stays_finite_for_separable_and_constant_scores():
    separable = stats.fit_platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
    assert np.isfinite(separable.slope) and separable.slope > 0
    constant = stats.fit_platt(np.ones(4), np.array([0, 1, 1, 1]), smooth=False)
    assert constant.slope == 0
    np.testing.assert_allclose(stats.apply_platt(constant, np.ones(1)), [0.75], atol=1e-4)


def test_gradient_of_the_brier_score():
    confidence, outcome = np.array([0.3, 0.9, np.nan]), np.array([1.0, 0.0, 1.0])
    gradient = jax.grad(stats.brier_score)(confidence, outcome, np.array([True, True, False]))
    np.testing.assert_allclose(gradient, [-0.7, 0.9, 0.0], rtol=1e-6)
