"""Layers under ``shard_map``: the numbers of one device, what is gathered, and what cannot be split."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import models
from prm_jax.models.sharding import make_mesh, shard_batch, shard_params
from prm_jax.pytree_paths import named_leaves

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")

BASE = models.ModelConfig(
    architecture="qwen2", attention_bias=True, vocab_size=24, hidden_size=32, intermediate_size=48, num_layers=2,
    num_heads=8, num_kv_heads=2, head_dim=8, remat="full",
)  # fmt: skip
LLAMA = dataclasses.replace(BASE, architecture="llama", mlp_bias=True, num_kv_heads=4, tie_word_embeddings=True)
QWEN3 = dataclasses.replace(BASE, architecture="qwen3", qk_norm=True, attention_bias=False, num_kv_heads=8)


def _random(params, key):
    """Every leaf random, biases, norms and adapters too, so that each must be right."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    )


def _both(config, sizes, *, rank=0, columns=12, packed=False):
    """(value, gradients) of a loss on one device and on the mesh."""
    params = models.init_params(config, jax.random.key(0))
    if rank:
        lora = models.LoRAConfig(rank=rank, alpha=config.lora_alpha)
        params = models.join(params, models.init_lora(config, params, jax.random.key(2), lora))
    params = _random(params, jax.random.key(3))
    tokens = jax.random.randint(jax.random.key(1), (8, columns), 0, config.vocab_size)
    segments = jnp.broadcast_to((jnp.arange(columns) >= 5).astype(jnp.int32), tokens.shape) if packed else None

    @jax.jit
    def run(params, tokens, segments):
        def loss(params):
            return models.token_logprobs(config, params, tokens, segment_ids=segments).sum()

        return jax.value_and_grad(loss)(params)

    mesh = make_mesh(*sizes)
    return run(params, tokens, segments), run(shard_params(params, mesh), *shard_batch((tokens, segments), mesh))


@pytest.mark.parametrize(
    ("config", "sizes", "more"),
    [
        (BASE, (2, 4, 1), {"rank": 2}),
        (BASE, (1, 2, 4), {"rank": 2, "packed": True}),  # two devices per key head
        (LLAMA, (2, 2, 2), {"rank": 2}),
        (LLAMA, (1, 4, 2), {"columns": 13}),  # tokens that "tensor" does not divide
        (dataclasses.replace(QWEN3, remat="none"), (1, 1, 8), {}),
        (dataclasses.replace(QWEN3, remat="dots", scan_unroll=2), (2, 2, 2), {}),
    ],
)
def test_gradients_are_those_of_one_device(config, sizes, more):
    alone, spread = _both(config, sizes, **more)
    np.testing.assert_allclose(spread[0], alone[0], rtol=1e-6)
    expected = named_leaves(alone[1])
    for name, found in named_leaves(spread[1]).items():
        scale = float(jnp.abs(expected[name]).max())
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)
