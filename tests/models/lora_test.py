import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import LoRAConfig, init_lora, join, merge, split, token_logprobs
from prm_jax.models.transformer import hidden_states

from .transformer_test import LLAMA, TOKENS, noisy

CONFIG = dataclasses.replace(LLAMA, lora_alpha=8.0)


def adapted(rank=4, targets=("q", "v", "down"), seed=3):
    """A base and adapters that do something."""
    params = noisy(CONFIG)
    adapters = init_lora(CONFIG, params, jax.random.key(seed), LoRAConfig(rank, 8.0, targets))
    noise = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(seed + 1), x.shape), adapters)
    return params, jax.tree.map(jnp.add, adapters, noise)


def test_new_adapters_change_no_bit_and_have_the_documented_shapes():
    params = noisy(CONFIG)
    adapters = init_lora(CONFIG, params, jax.random.key(0), LoRAConfig(rank=3, alpha=8.0))
    np.testing.assert_array_equal(
        hidden_states(CONFIG, join(params, adapters), TOKENS), hidden_states(CONFIG, params, TOKENS)
    )
    attn, mlp = adapters["layers"]["attn"], adapters["layers"]["mlp"]
    assert set(attn) == {"q", "k", "v", "o"} and set(mlp) == {"gate", "up", "down"}
    assert attn["k"]["lora_a"].shape == (2, 16, 3) and attn["k"]["lora_b"].shape == (2, 3, 16)
    assert mlp["down"]["lora_a"].shape == (2, 24, 3) and not mlp["down"]["lora_b"].any()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(adapters))


def test_join_and_split_are_inverse_and_copy_nothing():
    params, adapters = adapted()
    base, found = split(join(params, adapters))
    assert jax.tree.structure(base) == jax.tree.structure(params)
    assert jax.tree.structure(found) == jax.tree.structure(adapters)
    assert all(a is b for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(params), strict=True))
    assert all(a is b for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(adapters), strict=True))
    assert split(params)[1] == {}


def test_merged_kernels_compute_the_same():
    params, adapters = adapted()
    joined = join(params, adapters)
    plain = merge(CONFIG, joined)
    assert jax.tree.structure(plain) == jax.tree.structure(params)
    np.testing.assert_allclose(hidden_states(CONFIG, plain, TOKENS), hidden_states(CONFIG, joined, TOKENS), atol=2e-5)
    kernel, lora = plain["layers"]["attn"]["q"]["kernel"], adapters["layers"]["attn"]["q"]
    expected = [
        np.asarray(params["layers"]["attn"]["q"]["kernel"][i], np.float64)
        + np.asarray(lora["lora_a"][i], np.float64) @ np.asarray(lora["lora_b"][i], np.float64) * 8.0 / 4
        for i in range(2)
    ]
    np.testing.assert_allclose(kernel, expected, atol=1e-6)
    assert plain["layers"]["attn"]["k"]["kernel"] is params["layers"]["attn"]["k"]["kernel"]


def test_adapter_gradients_match_the_chain_rule_through_the_merged_kernel():
    params, adapters = adapted(targets=("o",))

    def loss(tree):
        return token_logprobs(CONFIG, tree, TOKENS).sum()

    found = jax.jit(jax.grad(lambda a: loss(join(params, a))))(adapters)["layers"]["attn"]["o"]
    kernel = jax.jit(jax.grad(loss))(merge(CONFIG, join(params, adapters)))["layers"]["attn"]["o"]["kernel"]
    a, b = adapters["layers"]["attn"]["o"]["lora_a"], adapters["layers"]["attn"]["o"]["lora_b"]
    for i in range(2):
        np.testing.assert_allclose(found["lora_a"][i], kernel[i] @ b[i].T * 2.0, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found["lora_b"][i], a[i].T @ kernel[i] * 2.0, rtol=1e-3, atol=1e-4)


def test_half_precision_kernels_keep_their_dtype_when_merged():
    params, adapters = adapted()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    merged = merge(CONFIG, join(half, adapters))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merged))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "positive integer, found 0"),
        ({"rank": True}, "found True"),
        ({"rank": 2.0}, "found 2.0"),
        ({"targets": ("q", "qkv")}, r"\['qkv'\]; known: q, k, v, o, gate, up, down"),
        ({"targets": ()}, "are empty"),
    ],
)
def test_bad_settings_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        LoRAConfig(**fields)


def test_a_scale_other_than_the_models_and_a_foreign_projection_are_refused():
    params, adapters = adapted()
    with pytest.raises(UserError, match=r"alpha 16.0 is not the model config's lora_alpha 8.0"):
        init_lora(CONFIG, params, jax.random.key(0), LoRAConfig())
    with pytest.raises(ValueError, match="adapters for 'layers'"):
        join({"embed": params["embed"]}, adapters)
