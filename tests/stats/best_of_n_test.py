"""Best-of-n estimators by enumeration of subsets, bounds by enumeration of outcomes, and fits."""

import itertools
import math

import jax
import numpy as np
import pytest

from tests.stats import compiled as stats


def enumerate_best(proxy, gold, n):
    """Mean over all n-subsets of the gold reward of the best, ties averaged."""
    picks = []
    for subset in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        picks.append(np.mean([gold[i] for i in subset if proxy[i] == top]))
    return np.mean(picks)


@pytest.mark.parametrize("ties", [False, True])
def test_curve_is_the_mean_over_all_subsets(ties):
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
    if ties:
        proxy = np.round(proxy)
    valid = np.ones((3, 7), bool)
    valid[1, 5:] = False
    masked_proxy, masked_gold = np.where(valid, proxy, np.nan), np.where(valid, gold, np.nan)
    sizes = (1, 2, 4, 6)
    curve = jax.jit(stats.bon_curve, static_argnames="sizes")(
        np.array(masked_proxy), np.array(masked_gold), np.array(valid), sizes=sizes
    )
    for k, n in enumerate(sizes):
        rows = [p for p in range(3) if valid[p].sum() >= n]
        for name, field in (("proxy", proxy), ("gold", gold)):
            expected = np.mean([enumerate_best(proxy[p][valid[p]], field[p][valid[p]], n) for p in rows])
            np.testing.assert_allclose(getattr(curve, name)[k], expected, rtol=1e-4, atol=1e-6)
        assert curve.prompts[k] == len(rows)


def test_weights_are_binomial_ratios_even_for_many_samples():
    for total, n in ((64, 3), (1024, 2), (1024, 500)):
        weights = stats.best_of_n_weights(np.arange(total), n=n)
        expected = [math.comb(i, n - 1) / math.comb(total, n) for i in range(total)]
        np.testing.assert_allclose(weights, expected, rtol=2e-4, atol=1e-12)
        np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)


def test_too_few_samples_and_bad_sizes():
    weights = stats.best_of_n_weights(np.array([1.0, 2.0, np.nan]), np.array([True, True, False]), n=3)
    np.testing.assert_array_equal(weights, np.zeros(3))
    curve = stats.bon_curve(np.ones((2, 3)), np.ones((2, 3)), np.zeros((2, 3), bool), sizes=(1, 3))
    np.testing.assert_array_equal(curve.gold, np.zeros(2))
    for sizes in ((), (0,), (4,)):
        with pytest.raises(ValueError, match="sizes"):
            stats.bon_curve(np.ones((2, 3)), np.ones((2, 3)), sizes=sizes)


def test_divergence_and_win_rate_bounds_on_an_enumerated_policy():
    """Fifty outcomes with distinct scores: best-of-n in closed form, against both bounds."""
    p = np.random.default_rng(1).dirichlet(np.ones(50))
    cdf = np.cumsum(p)
    for n in (2, 16, 64):
        best = cdf**n - (cdf - p) ** n
        kl = (best * np.log(best / p)).sum()
        bound = float(stats.best_of_n_kl(n))
        np.testing.assert_allclose(bound, np.log(n) - (n - 1) / n, rtol=1e-5)
        assert kl < bound
        win = (best * (cdf - p / 2)).sum()
        assert win < float(stats.best_of_n_win_rate(n))
    fine = np.full(20_000, 1 / 20_000)  # hardly any ties: the bound is nearly attained
    cdf = np.cumsum(fine)
    best = cdf**4 - (cdf - fine) ** 4
    np.testing.assert_allclose((best * np.log(best / fine)).sum(), stats.best_of_n_kl(4), atol=1e-3)
    np.testing.assert_allclose((best * (cdf - fine / 2)).sum(), 0.8, atol=1e-3)


@pytest.mark.parametrize("kind", ["bon", "rl"])
def test_fit_recovers_the_law(kind):
    kl = np.array([0.0, 0.3, 1.0, 2.0, 4.0, 7.0])
    d = np.sqrt(kl)
    gold = d * (1.5 - 0.4 * (d if kind == "bon" else np.log(np.where(d > 0, d, 1))))
    padded = np.append(np.array(gold), np.nan)
    fit = stats.fit_over_optimization(np.append(np.array(kl), 3.0), padded, np.isfinite(padded), kind=kind)
    np.testing.assert_allclose([fit.alpha, fit.beta], [1.5, 0.4], rtol=1e-3)


def test_ranking_metrics_by_hand():
    chosen = np.array([0.9, 0.5, 0.5, 0.1, 7.0])
    rejected = np.array([[0.1, 0.8], [0.5, 0.2], [0.6, 0.4], [0.6, 0.4], [np.nan, np.nan]])
    mask = np.array([[1, 1], [1, 1], [1, 1], [1, 0], [0, 0]], bool)
    out = stats.ranking_metrics(chosen, rejected, mask)
    np.testing.assert_allclose(out["accuracy"], 1 / 4)
    np.testing.assert_allclose(out["ties"], 1 / 4)
    np.testing.assert_allclose(out["mrr"], (1 + 1 / 2 + 1 / 2 + 1 / 2) / 4)
    np.testing.assert_allclose(out["pairwise"], (2 + 1.5 + 1 + 0) / 7, rtol=1e-6)


def test_random_scorer_is_right_one_time_in_ten():
    scores = jax.random.normal(jax.random.key(0), (20_000, 10))
    out = stats.ranking_metrics(scores[:, 0], scores[:, 1:])
    np.testing.assert_allclose(out["accuracy"], 0.1, atol=0.01)
    np.testing.assert_allclose(out["pairwise"], 0.5, atol=0.01)
    constant = stats.ranking_metrics(np.ones(5), np.ones((5, 9)))
    assert constant["accuracy"] == 0 and constant["ties"] == 1
    np.testing.assert_allclose(constant["mrr"], 0.1)
    empty = stats.ranking_metrics(np.ones(2), np.ones((2, 3)), np.zeros((2, 3), bool))
    assert all(float(v) == 0 for v in empty.values())
