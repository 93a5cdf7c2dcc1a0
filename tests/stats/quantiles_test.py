"""Quantile losses, crossing, and aggregation against loops and the published guarantees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stats import compiled as stats

LEVELS = np.array([0.1, 0.3, 0.5, 0.7, 0.9])


def pinball(q, y, levels):
    error = y[..., None] - q
    return np.maximum(levels * error, (levels - 1) * error).mean(-1)


def test_pinball_matches_the_formula_and_ignores_masked():
    rng = np.random.default_rng(0)
    q, y = rng.normal(size=(8, 5)), rng.normal(size=8)
    mask = rng.uniform(size=8) < 0.6
    expected = pinball(q, y, LEVELS)[mask].sum()
    q[~mask], y[~mask] = np.nan, np.inf
    loss = stats.pinball_loss(np.array(q), np.array(y), np.array(mask), levels=LEVELS)
    np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
    assert loss.weight == mask.sum()
    grads = jax.grad(lambda a, b: stats.pinball_loss(a, b, np.array(mask), levels=LEVELS).total, (0, 1))(
        np.array(q), np.array(y)
    )
    assert bool(np.isfinite(grads[0]).all()) and float(np.abs(grads[1]).max()) == 0
    assert stats.pinball_loss(np.array(q), np.array(y), np.zeros(8, bool), levels=LEVELS).mean() == 0


def test_huber_joins_the_line_and_keeps_the_slopes():
    y, mask, levels = np.zeros(1), np.ones(1, bool), np.array([0.3])
    value = lambda q, huber: stats.pinball_loss(np.array([[q]]), y, mask, levels=levels, huber=huber).total  # noqa: E731
    np.testing.assert_allclose(value(-2.0, 0.5), 0.3 * (2.0 - 0.25), rtol=1e-6)
    np.testing.assert_allclose(value(0.2, 0.5), 0.7 * 0.2**2 / 2 / 0.5, rtol=1e-5)
    np.testing.assert_allclose(value(0.5, 0.5), 0.7 * 0.25, rtol=1e-5)
    np.testing.assert_allclose(value(1.3, 1e-6), value(1.3, 0.0), rtol=1e-4)


def test_the_minimum_is_the_quantile():
    y = np.array(np.random.default_rng(1).exponential(size=2001))
    loss = lambda q: stats.pinball_loss(  # noqa: E731
        jnp.broadcast_to(q, (2001, 5)), y, np.ones(2001, bool), levels=LEVELS
    ).mean()
    q = np.zeros(5)
    step = jax.jit(lambda q: q - 2.0 * jax.grad(loss)(q))
    for _ in range(300):
        q = step(q)
    np.testing.assert_allclose(q, np.quantile(y, LEVELS), atol=0.03)


def test_monotone_by_hand():
    q = np.array([1.0, 3.0, 2.0, 0.0, 5.0])
    np.testing.assert_allclose(stats.monotone_quantiles(q, how="sort"), [0, 1, 2, 3, 5])
    np.testing.assert_allclose(stats.monotone_quantiles(q, how="pava"), [1, 5 / 3, 5 / 3, 5 / 3, 5], rtol=1e-6)
    np.testing.assert_allclose(stats.monotone_quantiles(q, how="median_out"), [1, 2, 2, 2, 5])
    ordered = np.sort(q)
    for how in ("sort", "pava", "median_out"):
        np.testing.assert_allclose(stats.monotone_quantiles(ordered, how=how), ordered, rtol=1e-6)


def test_sort_and_pava_never_raise_the_loss_of_any_sample():
    rng = np.random.default_rng(2)
    q = np.sort(rng.normal(size=(500, 5)), -1) + 0.7 * rng.normal(size=(500, 5))
    y = rng.normal(size=500)
    raw = pinball(q, y, LEVELS)
    for how in ("sort", "pava"):
        fixed = np.array(stats.monotone_quantiles(np.array(q), how=how))
        assert (np.diff(fixed) >= -1e-6).all()
        assert (pinball(fixed, y, LEVELS) <= raw + 1e-5).all()
    cummax = np.array(stats.monotone_quantiles(np.array(q), how="median_out"))
    assert (pinball(cummax, y, LEVELS) > raw + 1e-3).any()  # the guarantee does not cover it


@pytest.mark.parametrize("how", ["sort", "pava", "median_out"])
def test_monotone_gradients(how):
    q, moves = np.array([1.0, 3.0, 2.0, 0.5, 5.0]), 0.01 * np.eye(5)
    coefficients = np.array([1.0, -2.0, 0.5, 3.0, 1.0])
    value = lambda x: (coefficients * stats.monotone_quantiles(x, how=how)).sum()  # noqa: E731
    numeric = [(value(q + move) - value(q - move)) / 0.02 for move in moves]
    np.testing.assert_allclose(jax.grad(value)(q), numeric, atol=1e-3)


def test_crossing_penalty_by_hand():
    q = np.array([[1.0, 0.5, 2.0], [0.0, 1.0, 2.0], [np.nan, 0.0, 0.0]])
    mask = np.array([True, True, False])
    np.testing.assert_allclose(stats.crossing_penalty(q, mask).total, 0.5)
    with_margin = stats.crossing_penalty(q, mask, margin=0.75)
    np.testing.assert_allclose(with_margin.total, 0.5 + 0.75, rtol=1e-6)
    assert stats.crossing_penalty(q, np.zeros(3, bool)).mean() == 0


def test_aggregation_of_each_fineness():
    rng = np.random.default_rng(3)
    predictions = rng.normal(size=(4, 3, 5))
    logits = rng.normal(size=(3, 5, 5))
    soft = lambda x, axes: np.exp(x) / np.exp(x).sum(axes, keepdims=True)  # noqa: E731
    coarse = stats.aggregate_quantiles(np.array(predictions), np.array(logits[:, 0, 0]))
    np.testing.assert_allclose(coarse, np.einsum("bek,e->bk", predictions, soft(logits[:, 0, 0], 0)), atol=1e-5)
    medium = stats.aggregate_quantiles(np.array(predictions), np.array(logits[:, :, 0]))
    np.testing.assert_allclose(medium, (predictions * soft(logits[:, :, 0], 0)).sum(1), atol=1e-5)
    fine = stats.aggregate_quantiles(np.array(predictions), np.array(logits))
    np.testing.assert_allclose(fine, np.einsum("bei,eoi->bo", predictions, soft(logits, (0, 2))), atol=1e-5)
    local = stats.aggregate_quantiles(np.array(predictions), np.array(rng.normal(size=(4, 3, 5))))
    assert local.shape == (4, 5)
    with pytest.raises(ValueError, match="do not fit predictions"):
        stats.aggregate_quantiles(np.array(predictions), np.zeros((2, 7)))
