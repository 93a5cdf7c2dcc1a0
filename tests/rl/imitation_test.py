"""Weighted imitation: filtered cloning, advantage weighting, and what masks keep out."""

import jax
import numpy as np
import pytest

from tests.rl import compiled as rl


def data():
    rng = np.random.default_rng(0)
    logp = -rng.uniform(size=(4, 5))
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]], bool)
    return np.where(mask, logp, np.nan), mask


def test_zero_one_weights_give_the_mean_over_selected_tokens():
    logp, mask = data()
    keep = np.array([1.0, 0.0, 1.0, 1.0])
    loss = rl.weighted_nll(np.array(logp), np.array(keep), np.array(mask))
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
        loss = rl.weighted_nll(np.array(logp), np.array(weights), np.array(mask), normalize=normalize)
        np.testing.assert_allclose([loss.total, loss.weight], [total, size], rtol=1e-5)


def test_hint_tokens_and_hinted_successes():
    """START: keep what was right with the hint and wrong without; learn nothing from the hint's own tokens."""
    plain = np.array([True, False, False, True])
    hinted = np.array([True, True, False, False])
    keep = np.array(hinted & ~plain)
    np.testing.assert_array_equal(keep, [False, True, False, False])
    logp = -np.ones((4, 5))
    sampled = np.array([[1, 1, 0, 0, 1]] * 4, bool)  # tokens 2 and 3 were inserted
    gradient = jax.grad(lambda x: rl.weighted_nll(x, keep, sampled).mean())(logp)
    expected = np.zeros((4, 5))
    expected[1, [0, 1, 4]] = -1 / 3
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_gradients_stop_at_weights_and_masks():
    logp, mask = data()
    grads = jax.grad(lambda l, w: rl.weighted_nll(l, w, np.array(mask)).total, (0, 1))(
        np.array(logp), np.ones(4)
    )
    np.testing.assert_array_equal(grads[0], -mask.astype(np.float32))
    np.testing.assert_array_equal(grads[1], np.zeros(4))


def test_empty_mask_and_fractional_weights():
    logp, mask = data()
    empty = rl.weighted_nll(np.array(logp), np.ones(4), np.zeros_like(mask))
    assert empty.mean() == 0 and empty.weight == 0
    tenth = rl.weighted_nll(-np.ones((1, 20)), np.array([0.1]), np.ones((1, 20), bool))
    np.testing.assert_allclose(tenth.mean(), 1.0, rtol=1e-6)
    with pytest.raises(ValueError, match="normalize"):
        rl.weighted_nll(np.zeros((1, 1)), np.ones(1), np.ones((1, 1), bool), normalize="mean")


def test_advantage_weights():
    out = rl.advantage_weights(np.array([-1.0, 0.0, 0.1, 1000.0]), temperature=0.05)
    np.testing.assert_allclose(out, [np.exp(-20), 1, np.exp(2), 20], rtol=1e-4)
    free = rl.advantage_weights(np.array([2.0]), temperature=0.5, max_weight=None)
    np.testing.assert_allclose(free, [np.exp(4)], rtol=1e-5)
