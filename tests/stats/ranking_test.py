"""The likelihood of an order, against products of choices and its cases of two and four entries."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from tests.rl import compiled as rl
from tests.stats import compiled as stats


def slow(scores):
    """-log of the chance to draw the entries in this order, each with chance proportional to exp(score)."""
    chances = np.exp(np.asarray(scores, np.float64))
    return -sum(np.log(chances[k] / chances[k:].sum()) for k in range(len(scores)))


def test_matches_a_loop_and_skips_holes():
    rng = np.random.default_rng(0)
    scores, mask = rng.normal(size=(6, 5)), rng.uniform(size=(6, 5)) < 0.7
    mask[0], mask[1], mask[2] = True, False, np.arange(5) == 3
    orders = [row for row in range(6) if mask[row].sum() >= 2]
    expected = sum(slow(scores[row, mask[row]]) for row in orders)
    loss = stats.plackett_luce_loss(np.where(mask, scores, np.nan), mask)
    np.testing.assert_allclose([loss.total, loss.weight], [expected, len(orders)], rtol=1e-5)
    top = np.mean([scores[r, mask[r]].argmax() == 0 for r in orders])
    np.testing.assert_allclose(loss.metrics["top"].mean(), top, rtol=1e-6)
    assert stats.plackett_luce_loss(scores, np.zeros_like(mask)).mean() == 0


def test_chances_of_all_orders_sum_to_one():
    scores = np.array([0.3, -1.0, 2.0, 0.1])
    orders = np.array([scores[list(p)] for p in itertools.permutations(range(4))])
    chances = jax.vmap(lambda s: jnp.exp(-stats.plackett_luce_loss(s).total))(orders)
    np.testing.assert_allclose(chances.sum(), 1.0, rtol=1e-5)


def test_two_entries_are_bradley_terry_and_large_scores_stay_finite():
    scores = np.array([[0.4, -0.3], [200.0, -200.0], [-200.0, 200.0]])
    pair = rl.pairwise_loss(scores[:, 0], scores[:, 1])
    order = stats.plackett_luce_loss(scores)
    np.testing.assert_allclose(order.total, pair.total, rtol=1e-5)
    gradient = jax.grad(lambda s: stats.plackett_luce_loss(s).total)(scores)
    np.testing.assert_allclose(gradient.sum(-1), np.zeros(3), atol=1e-6)
    assert bool(np.isfinite(gradient).all())
