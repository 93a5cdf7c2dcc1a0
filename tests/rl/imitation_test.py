"""Weighted imitation: filtered cloning, advantage weighting, and what masks keep out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.rl import imitation


def data():
    rng = np.random.default_rng(0)
    logp = -rng.uniform(size=(4, 5))
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]], bool)
    return np.where(mask, logp, np.nan), mask


def test_zero_one_weights_are_the_mean_over_what_is_kept():
    logp, mask = data()
    keep = np.array([1.0, 0.0, 1.0, 1.0])
    loss = imitation.weighted_nll(jnp.array(logp), jnp.array(keep), jnp.array(mask))
    kept = np.concatenate([-logp[0, mask[0]], -logp[3, mask[3]]])
    np.testing.assert_allclose(loss.mean(), kept.mean(), rtol=1e-6)
    np.testing.assert_allclose(loss.metrics["nll"].mean(), -logp[mask].mean(), rtol=1e-6)


def test_token_weights_and_normalisers_match_a_loop():
    logp, mask = data()
    weights = np.random.default_rng(1).normal(size=(4, 5))
    total = sum(-weights[b, t] * logp[b, t] for b, t in np.argwhere(mask))
    sizes = {"tokens": mask.sum(), "responses": 3, "weights": weights[mask].sum()}
    weights[~mask] = np.nan
    for normalize, size in sizes.items():
        loss = imitation.weighted_nll(jnp.array(logp), jnp.array(weights), jnp.array(mask), normalize=normalize)
        np.testing.assert_allclose([loss.total, loss.weight], [total, size], rtol=1e-5)


def test_hint_tokens_and_hinted_successes():
    """START: keep what was right with the hint and wrong without; learn nothing from the hint's own tokens."""
    plain = np.array([True, False, False, True])
    hinted = np.array([True, True, False, False])
    keep = jnp.array(hinted & ~plain)
    np.testing.assert_array_equal(keep, [False, True, False, False])
    logp = -jnp.ones((4, 5))
    sampled = jnp.array([[1, 1, 0, 0, 1]] * 4, bool)  # tokens 2 and 3 were inserted
    gradient = jax.grad(lambda x: imitation.weighted_nll(x, keep, sampled).mean())(logp)
    expected = np.zeros((4, 5))
    expected[1, [0, 1, 4]] = -1 / 3
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_gradients_stop_at_weights_and_masks():
    logp, mask = data()
    grads = jax.grad(lambda l, w: imitation.weighted_nll(l, w, jnp.array(mask)).total, (0, 1))(
        jnp.array(logp), jnp.ones(4)
    )
    np.testing.assert_array_equal(grads[0], -mask.astype(np.float32))
    np.testing.assert_array_equal(grads[1], np.zeros(4))


def test_empty_mask_and_fractional_weights():
    logp, mask = data()
    empty = imitation.weighted_nll(jnp.array(logp), jnp.ones(4), jnp.zeros_like(mask))
    assert empty.mean() == 0 and empty.weight == 0
    tenth = imitation.weighted_nll(-jnp.ones((1, 20)), jnp.array([0.1]), jnp.ones((1, 20), bool))
    np.testing.assert_allclose(tenth.mean(), 1.0, rtol=1e-6)
    with pytest.raises(ValueError, match="normalize"):
        imitation.weighted_nll(jnp.zeros((1, 1)), jnp.ones(1), jnp.ones((1, 1), bool), normalize="mean")


def test_advantage_weights():
    out = imitation.advantage_weights(jnp.array([-1.0, 0.0, 0.1, 1000.0]), temperature=0.05)
    np.testing.assert_allclose(out, [np.exp(-20), 1, np.exp(2), 20], rtol=1e-4)
    free = imitation.advantage_weights(jnp.array([2.0]), temperature=0.5, max_weight=None)
    np.testing.assert_allclose(free, [np.exp(4)], rtol=1e-5)
