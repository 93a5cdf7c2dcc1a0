"""Transforms that neighbouring layers absorb: the same function, and less to lose by rounding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import ModelConfig, init_params, quantize, token_logprobs
from prm_jax.models.folded_transforms import expected_error, fold_transforms, transformed
from prm_jax.models.qtensor import dequantize
from tests.models.checkpoints import FAMILIES

CONFIG = ModelConfig(
    architecture="qwen2", attention_bias=True, vocab_size=20, hidden_size=32, intermediate_size=48, num_layers=2,
    num_heads=4, num_kv_heads=2, head_dim=8, tie_word_embeddings=True,
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(5), (2, 7), 0, 20)


@pytest.fixture(scope="module")
def params():
    """With outlier channels in norms and up, and biases that are not zero."""
    params = init_params(CONFIG, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 20))
    layers = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape) if x.ndim == 2 else x, params["layers"]
    )
    layers["attn_norm"]["scale"] = layers["attn_norm"]["scale"].at[:, 3].set(8.0)
    up = layers["mlp"]["up"]["kernel"]
    layers["mlp"]["up"]["kernel"] = up.at[:, :, 5].multiply(6.0)
    return {**params, "layers": layers}


def test_folding_keeps_the_function_and_lowers_the_expected_error(params):
    folded = fold_transforms(CONFIG, params, bits=4, group=None)
    logp = jax.jit(lambda p: token_logprobs(CONFIG, p, TOKENS))
    np.testing.assert_allclose(logp(folded), logp(params), atol=1e-4)
    scale = folded["layers"]["attn_norm"]["scale"]
    assert not np.allclose(scale, params["layers"]["attn_norm"]["scale"], rtol=0.05)

    def error(tree):
        layer = jax.tree.map(lambda x: x[0], tree["layers"])
        zero = {name: jnp.zeros(shape) for name, shape in (("attn", 32), ("mlp", 32), ("up", 48), ("value", (2, 8)))}
        return expected_error(CONFIG, layer, zero | {"skew": jnp.zeros((2, 8, 8))}, bits=4, group=None, spans=False)

    assert error(folded) < 0.8 * error(params)


def test_a_transform_by_hand(params):
    layer = jax.tree.map(lambda x: x[0], params["layers"])
    transforms = {
        "attn": jnp.full(32, np.log(2.0)), "mlp": jnp.zeros(32), "up": jnp.full(48, np.log(4.0)),
        "value": jnp.zeros((2, 8)), "skew": jax.random.normal(jax.random.key(2), (2, 8, 8)),
    }  # fmt: skip
    new = transformed(CONFIG, layer, transforms)
    np.testing.assert_allclose(new["attn"]["q"]["kernel"], 2 * layer["attn"]["q"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(new["attn_norm"]["scale"], layer["attn_norm"]["scale"] / 2, rtol=1e-6)
    np.testing.assert_allclose(new["mlp"]["down"]["kernel"], 4 * layer["mlp"]["down"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(new["mlp"]["up"]["bias"] if "bias" in new["mlp"]["up"] else 0.0, 0.0)
    # Values are rotated: the norms of a head's columns together stay, and v o is the same for every pair of heads.
    for head in range(4):
        rows = slice(8 * head, 8 * head + 8)
        columns = slice(8 * (head // 2), 8 * (head // 2) + 8)
        product = new["attn"]["v"]["kernel"][:, columns] @ new["attn"]["o"]["kernel"][rows]
        expected = 2 * layer["attn"]["v"]["kernel"][:, columns] @ layer["attn"]["o"]["kernel"][rows]
        np.testing.assert_allclose(product, expected, rtol=1e-3, atol=1e-5)


def test_quantised_outputs_are_closer_after_folding(params):
    logp = jax.jit(lambda p: token_logprobs(CONFIG, p, TOKENS))
    exact = logp(params)
    errors = {t: float(jnp.square(logp(quantize(CONFIG, params, bits=4, transform=t)) - exact).mean())
              for t in (None, "folded")}  # fmt: skip
    assert errors["folded"] < errors[None]
    kernel = quantize(CONFIG, params, bits=4, transform="folded")["layers"]["mlp"]["up"]["kernel"]
    assert kernel.block == 0 and dequantize(kernel).shape == (2, 32, 48)


def test_other_families_absorb_them_or_are_refused():
    granite = dataclasses.replace(CONFIG, architecture="granite", residual_scale=0.5, mlp_bias=True)
    params = init_params(granite, jax.random.key(3))
    folded = fold_transforms(granite, params, bits=4, group=None, steps=2)
    logp = jax.jit(lambda p: token_logprobs(granite, p, TOKENS))
    np.testing.assert_allclose(logp(folded), logp(params), atol=1e-4)
    for name in ("gemma2", "olmo2", "qwen3_moe"):
        with pytest.raises(UserError, match=f"transform folded is for dense models .* found {name}: use hadamard"):
            fold_transforms(FAMILIES[name], params, bits=4, group=None)
