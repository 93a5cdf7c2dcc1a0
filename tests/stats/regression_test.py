"""Weighted ridge against NumPy's solver, its bonus, and what the weights buy."""

import jax
import numpy as np

from tests.stats import compiled as stats


def slow_ridge(features, targets, weights, l2):
    gram = features.T @ (weights[:, None] * features) + l2 * np.eye(features.shape[1])
    return np.linalg.solve(gram, features.T @ (weights * targets)), np.linalg.inv(gram)


def test_matches_numpy_and_skips_rows_without_weight():
    rng = np.random.default_rng(0)
    features, targets, weights = rng.normal(size=(30, 4)), rng.normal(size=30), rng.uniform(size=30)
    weights[::5] = 0
    theta, covariance = slow_ridge(features, targets, weights, 0.3)
    features[::5], targets[::5] = np.nan, np.inf
    fit = jax.jit(stats.weighted_ridge, static_argnames="l2")(
        np.array(features), np.array(targets), np.array(weights), l2=0.3
    )
    np.testing.assert_allclose(fit.coefficients, theta, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-4, atol=1e-6)
    gradient = jax.grad(
        lambda y: stats.weighted_ridge(np.array(features), y, np.array(weights), l2=0.3).coefficients.sum()
    )(np.array(targets))
    assert bool(np.isfinite(gradient).all()) and float(np.abs(gradient[::5]).max()) == 0


def test_several_objectives_with_missing_labels():
    """ArmoRM's first stage: vmap over objectives, weight 0 where a label is missing."""
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(40, 5)), rng.normal(size=(3, 40))
    labels[rng.uniform(size=(3, 40)) < 0.3] = np.nan
    known = np.isfinite(labels)
    fit = jax.vmap(lambda y, w: stats.weighted_ridge(np.array(features), y, w, l2=1.0))(
        np.array(labels), np.array(known)
    )
    for k in range(3):
        rows = known[k]
        theta, _ = slow_ridge(features[rows], labels[k, rows], np.ones(rows.sum()), 1.0)
        np.testing.assert_allclose(fit.coefficients[k], theta, rtol=1e-3, atol=1e-5)


def test_no_data_gives_the_prior():
    fit = stats.weighted_ridge(np.full((3, 2), np.nan), np.full(3, np.nan), np.zeros(3), l2=0.5)
    np.testing.assert_array_equal(fit.coefficients, np.zeros(2))
    np.testing.assert_allclose(fit.covariance, 2 * np.eye(2), rtol=1e-6)


def test_bonus_falls_with_the_root_of_the_count():
    counts = np.array([1, 4, 100])
    rows = np.array(np.repeat(np.eye(3), counts, axis=0))
    fit = stats.weighted_ridge(rows, np.zeros(105), np.ones(105), l2=1e-6)
    bonus = stats.elliptical_bonus(fit, np.eye(3))
    np.testing.assert_allclose(bonus, 1 / np.sqrt(counts), rtol=1e-3)
    np.testing.assert_allclose(stats.elliptical_bonus(fit, 9 * np.eye(3)), [1, 1, 0.9], rtol=1e-3)
    gradient = jax.grad(lambda x: stats.elliptical_bonus(fit, x))(np.zeros(3))
    assert bool(np.isfinite(gradient).all())


def test_weights_floor_and_gradients():
    out = stats.variance_weights(np.array([0.0, 0.2, 0.01]), np.array([0.0, 0.1, 0.5]), gamma=0.5, floor=0.1)
    np.testing.assert_allclose(out, [100, 5, 8], rtol=1e-5)


def test_weighting_by_variance_lowers_the_error_under_uneven_noise():
    rng = np.random.default_rng(2)
    theta = np.array([1.0, -1.0, 0.5])
    errors = np.zeros((50, 2))
    for trial in range(50):
        features = rng.normal(size=(60, 3))
        noise = np.where(rng.uniform(size=60) < 0.5, 0.05, 2.0)  # forty-fold spread
        targets = features @ theta + noise * rng.normal(size=60)
        weights = stats.variance_weights(np.array(noise**2), np.zeros(60), gamma=1.0, floor=0.01)
        for column, w in enumerate((weights, np.ones(60))):
            fit = FIT(np.array(features), np.array(targets), w)
            errors[trial, column] = np.square(fit.coefficients - theta).sum()
    assert errors[:, 0].mean() < 0.05 * errors[:, 1].mean()


FIT = jax.jit(lambda f, y, w: stats.weighted_ridge(f, y, w, l2=1e-3))


def test_variance_from_two_moments():
    """E[V^2] - E[V]^2 of a Bernoulli value, clipped to what a value in [0, 1] can have."""
    mean = np.array([0.0, 0.3, 1.0, 0.9, 1.4])
    second = np.array([0.0, 0.3, 1.0, 0.5, 2.0])
    np.testing.assert_allclose(stats.moment_variance(second, mean), [0, 0.21, 0, 0, 0], atol=1e-6)
    wider = stats.moment_variance(second, mean, error=0.5)
    np.testing.assert_allclose(wider, [0.5, 0.71, 0.5, 0.19, 0.5], atol=1e-6)
