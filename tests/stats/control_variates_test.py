"""Control variates and the shared proposal: exact on finite sample spaces."""

import jax
import numpy as np

from tests.stats import compiled as stats


def test_control_variates_are_unbiased_for_every_baseline():
    """Averaged over all outcomes of one draw the estimate is exact for every baseline."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    phi = np.array([[1.0, 0.0], [2.0, 1.0], [-1.0, 5.0]])
    for baseline in (np.zeros(2), np.array([0.7, -3.0])):
        estimate = sum(
            q[i] * stats.control_variate_mean(phi[i : i + 1], (p / q)[i : i + 1], baseline) for i in range(3)
        )
        np.testing.assert_allclose(estimate, p @ phi, rtol=1e-5)
    constant = stats.control_variate_mean(np.full((4, 1), 2.5), np.array([9.0, 0, 1, 1]), np.array([2.5]))
    np.testing.assert_allclose(constant, [2.5])  # no variance at all
    masked = stats.control_variate_mean(
        np.array([[1.0], [np.nan]]), np.array([2.0, np.nan]), np.array([0.5]), np.array([True, False])
    )
    np.testing.assert_allclose(masked, [1.5])
    empty = stats.control_variate_mean(np.ones((2, 1)), np.ones(2), np.array([0.5]), np.zeros(2, bool))
    np.testing.assert_allclose(empty, [0.5])


def test_shared_proposal_minimises_the_summed_variance():
    rng = np.random.default_rng(0)
    f, phi = rng.dirichlet(np.ones(6)), rng.normal(size=(6, 3))
    baseline = f @ phi + 0.2
    coefficients = np.array([1.0, 0.5, 2.0])

    def variance(q):
        centred = phi - baseline
        second = ((f[:, None] * centred) ** 2 / q[:, None]).sum(0)
        return (coefficients * (second - (f @ centred) ** 2)).sum()

    logits = stats.shared_proposal_logits(
        np.log(np.array(f)), np.array(phi), np.array(baseline), np.array(coefficients)
    )
    best = np.array(jax.nn.softmax(logits), np.float64)
    for _ in range(200):
        other = np.abs(best * np.exp(0.3 * rng.normal(size=6)))
        assert variance(other / other.sum()) >= variance(best) - 1e-6
    nothing = stats.shared_proposal_logits(np.zeros(2), np.array([[1.0], [2.0]]), np.array([1.0]))
    assert nothing[0] == -np.inf and np.isfinite(nothing[1])
