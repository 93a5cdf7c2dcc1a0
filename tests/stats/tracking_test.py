"""Correlations against SciPy, divergence flags on made-up runs, and the concentration of credit."""

import jax
import numpy as np
import pytest
import scipy.stats

from tests.stats import compiled as stats


@pytest.mark.parametrize("seed", range(3))
def test_correlations_match_scipy(seed):
    rng = np.random.default_rng(seed)
    x, y = np.round(4 * rng.normal(size=40)) / 4, np.round(4 * rng.normal(size=40)) / 4  # ties
    y = y + 0.5 * x
    mask = rng.uniform(size=40) < 0.7
    dirty_x, dirty_y = np.where(mask, x, np.nan), np.where(mask, y, np.inf)
    args = np.array(dirty_x), np.array(dirty_y), np.array(mask)
    np.testing.assert_allclose(stats.pearson(*args), scipy.stats.pearsonr(x[mask], y[mask])[0], rtol=1e-4)
    np.testing.assert_allclose(stats.spearman(*args), scipy.stats.spearmanr(x[mask], y[mask])[0], rtol=1e-4)
    np.testing.assert_allclose(stats.r_squared(*args), scipy.stats.linregress(x[mask], y[mask]).rvalue ** 2, rtol=1e-3)
    ranks = stats.midranks(args[0], args[2])
    np.testing.assert_allclose(ranks[mask], scipy.stats.rankdata(x[mask]))
    assert float(np.abs(ranks[~mask]).max()) == 0


def test_constant_sides_give_zero_and_finite_gradients():
    x = np.full(5, 0.1)
    assert stats.pearson(x, np.arange(5.0)) == 0
    assert stats.spearman(x, np.arange(5.0)) == 0
    assert stats.r_squared(np.arange(5.0), x) == 0
    assert stats.pearson(np.full(3, np.nan), np.ones(3), np.zeros(3, bool)) == 0
    assert bool(np.isfinite(jax.grad(lambda a: stats.pearson(a, np.arange(5.0)))(x)).all())


def test_weighted_r_squared_counts_repeats():
    x, y = np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 1.0])
    repeated = scipy.stats.linregress([0, 1, 1, 1, 2], [0, 2, 2, 2, 1]).rvalue ** 2
    np.testing.assert_allclose(stats.r_squared(x, y, weights=np.array([1.0, 3.0, 1.0])), repeated, rtol=1e-5)


def test_report_flags_the_update_where_gold_falls_and_proxy_rises():
    # Means: proxy 0, 1, 2, 3, 4; gold 0, 1, 1.5, 1, 0.
    proxy = np.arange(5.0)[:, None] + np.array([-1.0, 0.0, 1.0])
    gold = np.array([0, 1, 1.5, 1, 0])[:, None] + np.array([-1.0, 0.0, 1.0])
    report = stats.proxy_gold_report(proxy, gold)
    assert int(report["first_divergence"]) == 3
    np.testing.assert_allclose(report["spearman"], np.ones(5), rtol=1e-5)  # within a batch all is well
    np.testing.assert_allclose(report["gap"], [0, 0, 0.5, 2, 4], atol=1e-6)
    np.testing.assert_allclose(
        report["checkpoint_correlation"], scipy.stats.pearsonr(range(5), [0, 1, 1.5, 1, 0])[0], atol=1e-5
    )
    assert int(stats.proxy_gold_report(proxy, gold, tolerance=0.6)["first_divergence"]) == 4


def test_report_never_flags_a_faithful_proxy_or_a_plain_fall():
    gold = jax.random.normal(jax.random.key(0), (30, 8))
    assert int(stats.proxy_gold_report(gold, gold)["first_divergence"]) == -1
    falling = np.array([3.0, 2.0, 1.0])[:, None]
    assert int(stats.proxy_gold_report(falling, falling - 1)["first_divergence"]) == -1
    empty = stats.proxy_gold_report(gold, gold, np.zeros(gold.shape, bool))
    assert int(empty["first_divergence"]) == -1 and bool(np.isfinite(empty["gap"]).all())


def test_binned_r_squared():
    rng = np.random.default_rng(0)
    proxy = rng.uniform(size=4000)
    line = proxy + 3 * rng.normal(size=4000)
    assert stats.binned_r_squared(np.array(proxy), np.array(2 * proxy - 1)) > 0.999
    assert 0.2 < stats.binned_r_squared(np.array(proxy), np.array(line)) < 1  # bins average the noise out
    valley = np.array((proxy - 0.5) ** 2)
    assert stats.binned_r_squared(np.array(proxy), valley) < 0.01
    half = np.array(proxy > 0.5, np.float32)  # all weight where gold rises with proxy
    assert stats.binned_r_squared(np.array(proxy), valley, half) > 0.9
    # By hand: two bins of weight 2 hold means (0.5, 1) and (2.5, 4): a line through two points.
    assert stats.binned_r_squared(np.arange(4.0), np.array([0.0, 2, 3, 5]), num_bins=2) == 1


def test_credit_concentration_limits_and_loop():
    mask = np.ones((4, 100), bool)
    one_hot = -3.0 * (np.arange(100) == 7)
    rewards = np.stack([np.full(100, 0.2), one_hot, jax.random.normal(jax.random.key(0), (100,)), np.zeros(100)])
    out = stats.credit_concentration(rewards, mask)
    np.testing.assert_allclose(out[:2], [0.0, 0.99], atol=1e-4)
    w = np.abs(np.array(rewards[2]))
    np.testing.assert_allclose(out[2], 1 - 100 ** (1 - 2) * (w**0.5).sum() ** 2 / w.sum(), rtol=1e-4)
    assert out[3] == 0
    np.testing.assert_allclose(stats.credit_concentration(rewards * 1e-20, mask)[:3], out[:3], atol=1e-4)
    short = stats.credit_concentration(np.append(rewards[2], np.nan), np.append(mask[0], False))
    np.testing.assert_allclose(short, out[2], rtol=1e-5)
    assert stats.credit_concentration(rewards[0], np.zeros(100, bool)) == 0
    gradient = jax.grad(lambda r: stats.credit_concentration(r, mask[0]))(one_hot)
    assert bool(np.isfinite(gradient).all())
    with pytest.raises(ValueError, match="p < q"):
        stats.credit_concentration(rewards, mask, p=1.0)
