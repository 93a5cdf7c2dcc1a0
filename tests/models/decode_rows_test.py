"""Decoding rows of different lengths: the hidden states of the whole rows, whatever is in unused columns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models import ModelConfig, decode, decode_rows, init_params
from tests.compiled import hidden_states

CONFIG = ModelConfig(
    architecture="qwen3", vocab_size=23, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, qk_norm=True,
)  # fmt: skip
WINDOWS = dataclasses.replace(CONFIG, layer_windows=(4, 2), attn_softcap=0.5)


@pytest.mark.parametrize("config", [CONFIG, WINDOWS], ids=["plain", "windows"])
def test_rows_of_different_lengths_are_decoded_together(config):
    params = init_params(config, jax.random.key(0))
    packed = decode.prepare(config, params, repack=True)
    tokens = np.random.default_rng(0).integers(0, 23, (3, 8)).astype(np.int32)
    lengths = jnp.array([5, 2, 3])
    _, prefix = decode.prefill(config, params, tokens[:, :5], lengths)
    layers = decode_rows.init_columns(config, 4, 10, "float32")
    layers = jax.tree.map(lambda x: x + 7.0, layers)  # unused columns are ignored
    # Text 0 to slot 2, text 1 to slot 0, text 2 to slot 3; slot 4 does not exist.
    layers = decode_rows.copy_columns(layers, prefix.layers, jnp.array([2, 0, 3, 4]), jnp.array([0, 1, 2, 0]))
    step = jax.jit(lambda layers, fed, columns: decode_rows.decode_rows(config, packed, layers, fed, columns))
    for i in range(3):
        columns = jnp.array([2 + i, 10, 5 + i, 3 + i])
        fed = jnp.array([tokens[1, 2 + i], 0, tokens[0, 5 + i], tokens[2, 3 + i]])
        before = layers
        hidden, layers = step(layers, fed, columns)
        for slot, row in ((0, 1), (2, 0), (3, 2)):
            expected = hidden_states(config, params, tokens[row : row + 1])[0, columns[slot]]
            np.testing.assert_allclose(hidden[:, slot], expected, atol=1e-5)
        np.testing.assert_array_equal(layers[0].k[1], before[0].k[1])  # column 10 is outside
