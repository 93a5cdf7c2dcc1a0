"""Langevin samples against posteriors that are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import stats


def gaussian(theta, key):
    """Mean (1, -2), standard deviations (1, 0.5), as two leaves."""
    del key
    return -0.5 * (theta["a"] - 1) ** 2 - 2.0 * (theta["b"] + 2) ** 2


START = {"a": jnp.zeros(()), "b": jnp.zeros(())}


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_moments_of_a_gaussian(temperature):
    found = stats.langevin_samples(
        gaussian, START, jax.random.key(0), samples=500, chains=16, thin=20, burn_in=400, step_size=0.05,
        temperature=temperature,
    )  # fmt: skip
    assert found["a"].shape == (16, 500)
    for name, mean, deviation in (("a", 1.0, 1.0), ("b", -2.0, 0.5)):
        inflated = temperature * deviation**2 / (1 - 0.05 / (2 * deviation**2))
        np.testing.assert_allclose(found[name].mean(), mean, atol=0.05)
        np.testing.assert_allclose(found[name].var(), inflated, rtol=0.1)


def test_cold_chains_climb_and_differ_otherwise():
    kwargs = dict(samples=2, chains=3, thin=5, burn_in=200, step_size=0.1)
    cold = stats.langevin_samples(gaussian, START, jax.random.key(0), temperature=0.0, **kwargs)
    np.testing.assert_allclose(cold["b"], -2.0, atol=1e-3)
    warm = stats.langevin_samples(gaussian, START, jax.random.key(0), **kwargs)
    again = stats.langevin_samples(gaussian, START, jax.random.key(0), **kwargs)
    assert len(set(np.asarray(warm["a"][:, 0]).tolist())) == 3 and (warm["a"] == again["a"]).all()


def test_minibatches_give_the_posterior_of_all_data():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 2)), jnp.float32)
    y = x @ jnp.asarray([1.0, -1.0]) + 0.5 * jnp.asarray(rng.normal(size=64), jnp.float32)

    def log_density(theta, key):
        rows = jax.random.choice(key, 64, (32,), replace=False)
        return -0.5 * jnp.sum(theta**2) - 2 * jnp.sum((y[rows] - x[rows] @ theta) ** 2) / (2 * 0.25)

    fit = stats.weighted_ridge(x, y, jnp.full(64, 4.0), l2=1.0)
    found = stats.langevin_samples(
        log_density, jnp.zeros(2), jax.random.key(1), samples=200, chains=8, thin=10, burn_in=500, step_size=2e-3,
        final_step_size=1e-4,
    ).reshape(-1, 2)  # fmt: skip
    np.testing.assert_allclose(found.mean(0), fit.coefficients, atol=0.03)
    np.testing.assert_allclose(found.var(0), jnp.diag(fit.covariance), rtol=0.4)


@pytest.mark.parametrize("bad", [{"step_size": 0.0}, {"temperature": -1.0}, {"samples": 0}, {"final_step_size": -1.0}])
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        stats.langevin_samples(gaussian, START, jax.random.key(0), **{"samples": 1, **bad})
