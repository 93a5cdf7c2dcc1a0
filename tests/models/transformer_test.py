import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models import LoRAConfig, ModelConfig, init_lora, init_params, join, logits
from prm_jax.models.transformer import hidden_states, keys_and_values

from . import numpy_transformer

SHAPE = dict(
    vocab_size=23, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    max_position_embeddings=64,
)  # fmt: skip
FAMILIES = {
    "llama": ModelConfig(**SHAPE),
    "qwen2": ModelConfig(**SHAPE, architecture="qwen2", attention_bias=True, tie_word_embeddings=True),
    "qwen3": ModelConfig(**SHAPE, architecture="qwen3", qk_norm=True),
    "windows": ModelConfig(**SHAPE, layer_windows=(3, None), attn_softcap=0.5),
}
LLAMA = FAMILIES["llama"]
TOKENS = np.random.default_rng(0).integers(23, size=(3, 9)).astype(np.int32)


def noisy(config: ModelConfig, seed: int = 0) -> dict:
    """Random parameters with biases and scales in play."""
    leaves, tree = jax.tree.flatten(init_params(config, jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_logits_match_explicit_loops(family):
    config, params = FAMILIES[family], noisy(FAMILIES[family])
    found = jax.jit(hidden_states, static_argnums=0)(config, params, TOKENS)
    assert found.dtype == jnp.float32
    for row, tokens in enumerate(TOKENS):
        expected = numpy_transformer.hidden_states(config, params, tokens)
        np.testing.assert_allclose(found[row], expected, atol=2e-5)
    exact = numpy_transformer.log_softmax(config, params, TOKENS[0])
    np.testing.assert_allclose(jax.nn.log_softmax(logits(config, params, found[0])), exact, atol=5e-5)


def test_adapters_match_the_explicit_product():
    config = dataclasses.replace(LLAMA, lora_alpha=8.0)
    params = noisy(config)
    adapters = init_lora(config, params, jax.random.key(1), LoRAConfig(rank=4, alpha=8.0))
    adapters = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), adapters)
    joined = join(params, adapters)
    found = hidden_states(config, joined, TOKENS[:1])[0]
    np.testing.assert_allclose(found, numpy_transformer.hidden_states(config, joined, TOKENS[0]), atol=3e-5)
    assert np.abs(found - hidden_states(config, params, TOKENS[:1])[0]).max() > 0.1


def test_a_token_sees_only_earlier_ones():
    params = noisy(LLAMA)
    changed = TOKENS.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % 23
    before, after = hidden_states(LLAMA, params, TOKENS), hidden_states(LLAMA, params, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.asarray(before[:, 5:]) != np.asarray(after[:, 5:])).any(axis=-1).all()


def test_packed_segments_equal_separate_rows():
    params = noisy(LLAMA)
    packed = np.concatenate([TOKENS[0, :4], TOKENS[1, :3], [0, 0]])[None]
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]])
    found = hidden_states(LLAMA, params, packed, segment_ids=jnp.asarray(segments))
    np.testing.assert_allclose(found[:, :4], hidden_states(LLAMA, params, TOKENS[:1, :4]), atol=1e-5)
    np.testing.assert_allclose(found[:, 4:7], hidden_states(LLAMA, params, TOKENS[1:2, :3]), atol=1e-5)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("changes", [{}, {"remat": "full"}, {"scan_unroll": 2}])
def test_keys_and_values_of_every_layer_are_collected(changes):
    config = dataclasses.replace(LLAMA, **changes)
    params = noisy(config)
    hidden, keys, values = jax.jit(keys_and_values, static_argnums=0)(config, params, TOKENS)
    np.testing.assert_array_equal(hidden, jax.jit(hidden_states, static_argnums=0)(config, params, TOKENS))
    assert keys.shape == values.shape == (2, 3, 9, 2, 8)
    x = np.asarray(params["embed"]["embedding"])[TOKENS]
    first = jax.tree.map(lambda leaf: np.asarray(leaf[0]), params["layers"])
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * first["attn_norm"]["scale"]
    expected = (normed @ first["attn"]["v"]["kernel"]).reshape(3, 9, 2, 8)
    np.testing.assert_allclose(values[0], expected, atol=1e-5)
    shorter = keys_and_values(config, params, TOKENS[:, :5])
    np.testing.assert_allclose(keys[:, :, :5], shorter[1], atol=1e-5)  # later tokens change nothing


@pytest.mark.parametrize(
    "changes",
    [{"remat": "full"}, {"remat": "dots"}, {"remat": "attention", "attention": "blockwise"}, {"scan_unroll": 2}],
)
def test_rematerialisation_and_unrolling_change_no_gradient(changes):
    params = noisy(LLAMA)

    def gradient(config):
        return jax.jit(jax.grad(lambda p: (hidden_states(config, p, TOKENS) ** 2 * 0.1).sum()))(params)

    plain, changed = gradient(LLAMA), gradient(dataclasses.replace(LLAMA, **changes))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(changed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_half_precision_computes_in_it_and_keeps_the_parameters():
    config = dataclasses.replace(LLAMA, compute_dtype="bfloat16")
    params = noisy(LLAMA)
    found = hidden_states(config, params, TOKENS)
    assert found.dtype == jnp.bfloat16
    exact = hidden_states(LLAMA, params, TOKENS)
    assert 1e-4 < np.abs(found.astype(jnp.float32) - exact).max() < 0.2
    assert init_params(dataclasses.replace(LLAMA, dtype="bfloat16"), jax.random.key(0))["final_norm"][
        "scale"
    ].dtype == jnp.bfloat16  # fmt: skip


def test_the_layers_are_scanned_not_copied_into_the_program():
    deep = dataclasses.replace(LLAMA, num_layers=12)

    def size(config):
        params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
        return len(jax.jit(hidden_states, static_argnums=0).lower(config, params, TOKENS).as_text())

    assert size(deep) < 1.1 * size(LLAMA)


def test_layers_start_with_parameters_of_their_own():
    kernel = init_params(LLAMA, jax.random.key(0))["layers"]["attn"]["q"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1], atol=0.1)


def test_initial_variances_and_untied_heads():
    config = dataclasses.replace(LLAMA, hidden_size=64, intermediate_size=128)
    params = init_params(config, jax.random.key(0))
    layers = params["layers"]
    assert np.std(layers["attn"]["q"]["kernel"]) == pytest.approx(1 / 8, rel=0.05)
    assert np.std(layers["mlp"]["down"]["kernel"]) == pytest.approx(1 / np.sqrt(128 * 2 * 2), rel=0.05)
    assert params["head"]["kernel"].shape == (23, 64)
    assert "head" not in init_params(FAMILIES["qwen2"], jax.random.key(0))


def test_wrong_uses_are_refused_and_bad_tokens_poison_their_row():
    params = noisy(LLAMA)
    with pytest.raises(ValueError, match=r"\[B, T\], found shape \(9,\)"):
        hidden_states(LLAMA, params, TOKENS[0])
    bad = TOKENS.copy()
    bad[0, 0] = 23
    found = hidden_states(LLAMA, params, bad)
    assert np.isnan(found[0]).all() and np.isfinite(found[1:]).all()
