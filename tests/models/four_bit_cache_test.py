"""Keys and values in 4 bits: what a vector becomes, and attention over it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models import ModelConfig, decode_rows
from prm_jax.models.decode import KeyValues
from prm_jax.models.four_bit_cache import cache_bytes, empty
from prm_jax.models.qtensor import unpack

CONFIG = ModelConfig(
    vocab_size=8, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=4
)


def expanded(own):
    """(keys [N, K, Hd, S], values [N, K, S, Hd]) that the integers stand for, by the definition."""
    k = np.asarray(unpack(own.k, 4), np.float32) * own.k_scale[:, :, None] + own.k_low[:, :, None]
    nibbles = np.asarray(own.v)
    v = np.stack([nibbles & 15, nibbles >> 4], -1).reshape(*nibbles.shape[:-1], -1).astype(np.float32)
    return k * own.smooth[..., None], v * own.v_scale[..., None] + own.v_low[..., None]


@pytest.fixture(scope="module")
def filled():
    """(cache, keys [N, K, Hd, S], values) of two rows after a prefill of three columns and one more token."""
    key = jax.random.key(0)
    k = jax.random.normal(key, (2, 2, 4, 4)) * jnp.array([1.0, 30.0, 1.0, 1.0])[:, None]  # an outlier channel
    v = jax.random.normal(jax.random.key(1), (2, 2, 4, 4))
    layers = (empty(CONFIG, 3, 5),)
    prefix = (KeyValues(k[..., :3], v[:, :, :3]),)
    layers = decode_rows.copy_columns(layers, prefix, jnp.array([2, 0, 3]), jnp.array([0, 1, 0]))  # slot 3 is nowhere
    rows = jnp.array([1, 0, 0])  # slot -> row of the prefill
    own = layers[0].appended(k[rows, :, :, 3], v[rows, :, 3], jnp.arange(3), jnp.array([3, 5, 3]))
    return own, k, v


def test_vectors_are_rounded_to_sixteen_levels(filled):
    own, k, v = filled
    keys, values = expanded(own)
    for slot, row in ((2, 0), (0, 1)):
        step = np.asarray(own.k_scale, np.float32)[slot][:, None, :4] * np.asarray(own.smooth)[slot][..., None]
        assert (np.abs(keys[slot, ..., :4] - k[row]) <= 0.56 * step).all()  # scales and lows are bfloat16
        step = np.asarray(own.v_scale, np.float32)[slot][:, :4, None]
        assert (np.abs(values[slot, :, :4] - v[row]) <= 0.56 * step).all()
    np.testing.assert_array_equal(own.k[1], 0)  # a token at column 5 of 5 is not kept


def test_smoothing_keeps_small_channels(filled):
    own, k, _ = filled
    largest = np.abs(np.asarray(k)[0, :, :, :3]).max(-1)
    np.testing.assert_allclose(own.smooth[2], np.sqrt(largest), rtol=1e-6)
    error = np.abs(expanded(own)[0][2, ..., :4] - k[0])[:, [0, 2, 3]]
    plain = np.asarray(k[0].max(1) - k[0].min(1)) / 15 / 2  # half a step without smoothing
    assert error.mean() < 0.5 * plain.mean()


def test_attention_is_that_of_the_expanded_cache(filled):
    own, _, _ = filled
    q = jax.random.normal(jax.random.key(2), (3, 2, 2, 4))
    seen = jnp.arange(5)[None] < jnp.array([4, 1, 3])[:, None]
    keys, values = expanded(own)
    scores = np.einsum("bkqd,bkdc->bkqc", q * 0.5, keys)
    scores = np.where(seen[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        own.attend(CONFIG, q, seen, 0.5), np.einsum("bkqc,bkcd->bkqd", weights, values), rtol=1e-4, atol=1e-4
    )
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(own)) == cache_bytes(CONFIG, 3, 5)
