"""Moments and penalties of ensembles: NumPy, the law of total variance, and degenerate ensembles."""

import jax
import numpy as np
import pytest
import scipy.stats

from tests.rl import compiled as rl
from tests.stats import compiled as stats


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, 6)), rng.uniform(0.1, 1.0, size=(4, 6))


def test_moments_obey_the_law_of_total_variance():
    means, variances = data()
    moments = stats.ensemble_moments(np.array(means), np.array(variances))
    rng = np.random.default_rng(1)
    member = rng.integers(0, 4, size=400_000)
    draws = means[member, 2] + np.sqrt(variances[member, 2]) * rng.normal(size=400_000)
    np.testing.assert_allclose(moments.mean[2], draws.mean(), atol=0.01)
    np.testing.assert_allclose(moments.epistemic[2] + moments.aleatoric[2], draws.var(), atol=0.02)
    np.testing.assert_allclose(moments.epistemic, means.var(0), rtol=1e-5)


@pytest.mark.parametrize("kind", ["std", "max_aleatoric", "max_deviation", "max_pairwise", "loo_kl"])
def test_uncertainties_match_loops(kind):
    means, variances = data()
    expected = np.zeros(6)
    for i in range(6):
        mu, v = means[:, i], variances[:, i]
        if kind == "std":
            expected[i] = np.sqrt(v.mean() + mu.var())
        elif kind == "max_aleatoric":
            expected[i] = np.sqrt(v.max())
        elif kind == "max_deviation":
            expected[i] = np.abs(mu - mu.mean()).max()
        elif kind == "max_pairwise":
            expected[i] = max(abs(a - b) for a in mu for b in mu)
        else:
            terms = []
            for e in range(4):
                others = [k for k in range(4) if k != e]
                m, s = mu[others].mean(), v[others].mean() + mu[others].var()
                terms.append(0.5 * (np.log(s / v[e]) + (v[e] + (mu[e] - m) ** 2) / s - 1))
            expected[i] = np.mean(terms)
    out = stats.ensemble_uncertainty(np.array(means), np.array(variances), kind=kind)
    np.testing.assert_allclose(out, expected, rtol=1e-4)
    penalized = stats.penalized_rewards(np.array(means), np.array(variances), coefficient=0.7, kind=kind)
    np.testing.assert_allclose(penalized, means.mean(0) - 0.7 * expected, rtol=1e-4, atol=1e-5)


def test_point_predictions_agree_with_the_short_form():
    means, _ = data()
    short, epistemic = rl.pessimistic_rewards(np.array(means), coefficient=1.3)
    np.testing.assert_allclose(stats.penalized_rewards(np.array(means), coefficient=1.3), short, rtol=1e-5)
    np.testing.assert_allclose(stats.ensemble_uncertainty(np.array(means)), epistemic, rtol=1e-5)


def test_one_member_is_certain_and_shared_error_invisible():
    x = np.array([[0.3, -2.0]])
    np.testing.assert_array_equal(stats.ensemble_uncertainty(x), [0, 0])
    gradient = jax.grad(lambda a: stats.penalized_rewards(a, coefficient=5.0).sum())(x)
    np.testing.assert_allclose(gradient, [[1, 1]])
    biased = np.full((5, 1), 3.0)  # all members wrong by the same amount
    assert float(stats.ensemble_uncertainty(biased)[0]) == 0
    with pytest.raises(ValueError, match="variances"):
        stats.ensemble_uncertainty(x, kind="loo_kl")
    with pytest.raises(AssertionError):
        stats.ensemble_uncertainty(x, np.ones((1, 2)), kind="loo_kl")


def test_variance_of_log_likelihoods_matches_a_loop():
    rng = np.random.default_rng(5)
    mean, variance, sample = rng.normal(size=(4, 3)), rng.uniform(0.2, 2, size=(4, 3)), rng.normal(size=3)
    loglik = [scipy.stats.norm.logpdf(sample, mean[e], np.sqrt(variance[e])) for e in range(4)]
    found = stats.ensemble_uncertainty(
        np.array(mean), np.array(variance), kind="loglik_variance", sample=np.array(sample)
    )
    np.testing.assert_allclose(found, np.var(loglik, axis=0), rtol=1e-4)
    with pytest.raises(ValueError, match="needs a sample"):
        stats.ensemble_uncertainty(np.array(mean), np.array(variance), kind="loglik_variance")
