"""Halting distributions by products, the prior's divergence, and the deterministic exit."""

import jax
import numpy as np
import pytest

from tests.rl import compiled as rl


def slow_distribution(logits):
    stop = 1 / (1 + np.exp(-logits))
    p, left = np.zeros_like(logits), 1.0
    for i in range(len(logits) - 1):
        p[i] = left * stop[i]
        left *= 1 - stop[i]
    p[-1] = left
    return p


def geometric(length, rate):
    p = rate * (1 - rate) ** np.arange(length)
    p[-1] = 1 - p[:-1].sum()
    return p


def test_distribution_matches_products_and_sums_to_one():
    logits = np.random.default_rng(0).normal(size=(5, 6)) * 3
    p = rl.halting_distribution(np.array(logits))
    np.testing.assert_allclose(p, [slow_distribution(row) for row in logits], atol=1e-6)
    extreme = rl.halting_distribution(np.array([100.0, -100.0, 50.0, 3.0]))
    np.testing.assert_allclose(extreme, [1, 0, 0, 0], atol=1e-6)
    assert bool(np.isfinite(jax.jacobian(rl.halting_distribution)(np.array([200.0, -200.0, 0.0]))).all())


@pytest.mark.parametrize("kl", ["paper", "released"])
def test_loss_matches_a_loop_in_both_orders(kl):
    rng = np.random.default_rng(1)
    losses, logits = rng.uniform(size=(4, 5)), rng.normal(size=(4, 5))
    mask = np.array([1, 1, 0, 1], bool)
    losses[2], logits[2] = np.nan, np.nan
    prior = geometric(5, 0.3)
    total = 0.0
    for b in np.flatnonzero(mask):
        p = slow_distribution(logits[b])
        divergence = (p * np.log(p / prior)).sum() if kl == "paper" else (prior * np.log(prior / p)).sum()
        total += (p * losses[b]).sum() + 0.5 * divergence
    loss = rl.halting_loss(np.array(losses), np.array(logits), np.array(mask), prior=0.3, kl=kl)
    np.testing.assert_allclose(loss.total, total, rtol=1e-4)
    assert loss.weight == 3
    gradient = jax.grad(lambda x: rl.halting_loss(np.array(losses), x, np.array(mask), kl=kl).total)(
        np.array(logits)
    )
    assert bool(np.isfinite(gradient).all()) and float(np.abs(gradient[2]).max()) == 0


def test_orders_differ_and_both_vanish_at_the_prior():
    rate = 0.2
    at_prior = np.full((1, 6), np.log(rate / (1 - rate)))
    zero, mask = np.zeros((1, 6)), np.ones(1, bool)
    off = np.zeros((1, 6))
    values = []
    for kl in ("paper", "released"):
        np.testing.assert_allclose(rl.halting_loss(zero, at_prior, mask, prior=rate, kl=kl).total, 0.0, atol=1e-6)
        values.append(float(rl.halting_loss(zero, off, mask, prior=rate, kl=kl).total))
    assert abs(values[0] - values[1]) > 0.05


def test_quantile_exit():
    p = np.array([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]])
    np.testing.assert_array_equal(rl.quantile_exit(p), [1, 0, 2])
    np.testing.assert_array_equal(rl.quantile_exit(p, quantile=1.0), [2, 2, 2])
    long = rl.halting_distribution(np.full(64, -4.0))
    assert int(rl.quantile_exit(long, quantile=1.0)) == 63
    drawn = jax.random.categorical(jax.random.key(0), np.log(p[0]), shape=(500,))
    assert float(drawn.var()) > 0.4  # sampling the exit has variance; Q-exit none


def test_empty_mask():
    loss = rl.halting_loss(np.full((2, 3), np.nan), np.full((2, 3), np.nan), np.zeros(2, bool))
    assert loss.mean() == 0 and loss.weight == 0
