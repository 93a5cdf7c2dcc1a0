import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models import decode
from prm_jax.models.config import ModelConfig
from prm_jax.models.transformer import init_params
from tests.compiled import hidden_states, logits

CONFIG = ModelConfig(
    vocab_size=12, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4
)
PARAMS = init_params(CONFIG, jax.random.key(0))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 12, (6, 5)), jnp.int32)
LENGTHS = jnp.array([5, 1, 3, 2, 4, 5])


def _prefill(params=PARAMS, config=CONFIG):
    return jax.jit(lambda p: decode.prefill(config, p, TOKENS, LENGTHS))(params)


def test_prefill_gives_the_last_hidden_state_and_ignores_padding():
    hidden, prefix = _prefill()
    full = np.asarray(hidden_states(CONFIG, PARAMS, TOKENS))
    np.testing.assert_allclose(hidden.T, full[np.arange(6), np.asarray(LENGTHS) - 1], atol=1e-5)
    assert prefix.layers[0].k.shape == (6, 1, 4, 5) and prefix.layers[1].v.shape == (6, 1, 5, 4)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_prefill_in_parts_is_the_same(monkeypatch, at_once):
    whole = _prefill()
    monkeypatch.setattr(decode, "_MAX_SCORES", at_once * 2 * 25)
    parts = _prefill()
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


WINDOWS = dataclasses.replace(CONFIG, layer_windows=(None, 3), attn_softcap=0.5)


@pytest.mark.parametrize(("config", "repack"), [(CONFIG, True), (CONFIG, False), (WINDOWS, True)])
def test_a_step_is_the_next_column_of_an_uncached_pass(config, repack):
    """Prompt p continues with two samples; each sees the prompt and its own tokens."""
    more = jnp.asarray(np.random.default_rng(1).integers(0, 12, (12, 3)), jnp.int32)
    packed = decode.prepare(config, PARAMS, repack=repack)
    _, prefix = _prefill(config=config)
    suffix = decode.init_suffix(config, 12, 4)
    step_fn = jax.jit(lambda suffix, tokens, step: decode.decode_step(config, packed, prefix, suffix, tokens, step))
    rows = np.zeros((12, 8), np.int32)
    for row in range(12):
        prompt = np.asarray(TOKENS)[row // 2, : int(LENGTHS[row // 2])]
        rows[row, : len(prompt) + 3] = np.concatenate([prompt, more[row]])
    full = hidden_states(config, PARAMS, jnp.asarray(rows))
    for step in range(3):
        hidden, suffix = step_fn(suffix, more[:, step], jnp.int32(step))
        expected = np.asarray(full)[np.arange(12), np.repeat(LENGTHS, 2) + step]
        np.testing.assert_allclose(hidden.T, expected, atol=1e-5)
        scores = decode.next_logits(config, packed, hidden)
        np.testing.assert_allclose(scores, logits(config, PARAMS, jnp.asarray(expected)), atol=1e-5)
