"""Quantised parameter trees in the model: log-probs, generation, adapters, meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import models
from prm_jax.errors import UserError
from prm_jax.models import LoRAConfig, ModelConfig, init_lora, init_params, join, quantize
from prm_jax.models.lora import merge
from prm_jax.models.qtensor import dequantize, dequantized, is_quantized
from prm_jax.models.quantization import quantized_bytes
from tests.compiled import token_logprobs

CONFIG = ModelConfig(
    vocab_size=20, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    tie_word_embeddings=True,
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(5), (2, 7), 0, 20)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def four_bits(params):
    return quantize(CONFIG, params, bits=4, group=8, embeddings=True)


def test_quantised_model_is_the_model_with_expanded_weights(params):
    logp = jax.jit(lambda p: token_logprobs(CONFIG, p, TOKENS))
    for kwargs in (
        {"bits": 4, "group": 8, "rank": 2, "transform": "hadamard", "embeddings": True},
        {"bits": 2, "group": 16, "scheme": "balanced", "fit": "mse"},
    ):
        quantized = quantize(CONFIG, params, **kwargs)
        np.testing.assert_allclose(logp(quantized), logp(dequantized(quantized)), atol=2e-5)


def test_bytes_are_those_of_the_bits(params):
    kernels = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64)
    plain = quantized_bytes(params)
    eight = quantize(CONFIG, params, bits=8)
    scales = 4 * 2 * (32 * 2 + 16 * 2 + 64 * 2 + 32)
    assert quantized_bytes(eight) == plain - 3 * kernels + scales
    four = quantize(CONFIG, params, bits=4, group=8)
    assert quantized_bytes(four) == plain - 4 * kernels + kernels // 2 + 2 * kernels // 8


def test_low_rank_correction_lowers_the_error_with_its_rank(params):
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    errors = []
    for rank in (0, 2, 8, 32):
        q = quantize(CONFIG, params, bits=4, rank=rank)["layers"]["mlp"]["up"]["kernel"]
        assert q.left is None or q.left.shape == (2, 32, rank)
        errors.append(float(jnp.linalg.norm(dequantize(q) - kernel)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * errors[0]  # full rank leaves the rounding to bfloat16


def test_low_rank_correction_is_the_truncated_decomposition(params):
    kernel = np.asarray(params["layers"]["attn"]["q"]["kernel"], np.float64)
    plain = np.asarray(dequantize(quantize(CONFIG, params, bits=4)["layers"]["attn"]["q"]["kernel"]), np.float64)
    corrected = dequantize(quantize(CONFIG, params, bits=4, rank=3)["layers"]["attn"]["q"]["kernel"])
    for layer in range(2):
        values = np.linalg.svd(kernel[layer] - plain[layer], compute_uv=False)
        rest = np.linalg.norm(np.asarray(corrected[layer], np.float64) - kernel[layer])
        np.testing.assert_allclose(rest, np.sqrt((values[3:] ** 2).sum()), rtol=1e-3)


def test_adapters_on_a_quantised_base_learn_and_the_base_does_not(four_bits):
    adapters = init_lora(CONFIG, four_bits, jax.random.key(1), LoRAConfig(rank=2))

    @jax.jit
    def reward_and_gradient(adapters, base):
        """The implicit reward without beta, and the gradient of the sum of log-probs."""

        def loss(adapters):
            logp = token_logprobs(CONFIG, join(base, adapters), TOKENS)
            return logp.sum(), logp - token_logprobs(CONFIG, base, TOKENS)

        (total, reward), gradient = jax.value_and_grad(loss, has_aux=True)(adapters)
        return total, reward, gradient

    np.testing.assert_array_equal(reward_and_gradient(adapters, four_bits)[1], np.zeros((2, 7)))
    adapters["layers"]["mlp"]["up"]["lora_b"] += 0.1
    gradient = reward_and_gradient(adapters, four_bits)[2]["layers"]
    for home, name, leaf, at in (("mlp", "up", "lora_b", (1, 0, 3)), ("attn", "q", "lora_b", (0, 1, 2))):
        ends = []
        for step in (-0.02, 0.02):
            moved = jax.tree.map(jnp.array, adapters)
            moved["layers"][home][name][leaf] = moved["layers"][home][name][leaf].at[at].add(step)
            ends.append(float(reward_and_gradient(moved, four_bits)[0]))
        np.testing.assert_allclose(gradient[home][name][leaf][at], (ends[1] - ends[0]) / 0.04, rtol=0.02, atol=2e-3)


def test_merging_expands(four_bits):
    adapters = init_lora(CONFIG, four_bits, jax.random.key(1), LoRAConfig(rank=2))
    merged = merge(CONFIG, join(four_bits, adapters))
    assert not is_quantized(merged)
    kernels = [tree["layers"]["mlp"]["up"]["kernel"] for tree in (merged, four_bits)]
    np.testing.assert_array_equal(kernels[0], dequantize(kernels[1]))


def test_generation_scores_its_own_tokens(four_bits):
    samples = models.generate(CONFIG, four_bits, [[1, 2, 3], [4]], jax.random.key(2), max_new_tokens=4)
    rows = np.zeros((2, 7), np.int32)
    mask = np.zeros((2, 7), bool)
    for row, prompt in enumerate(([1, 2, 3], [4])):
        rows[row, : len(prompt)] = prompt
        rows[row, len(prompt) : len(prompt) + 4] = samples.tokens[row]
        mask[row, len(prompt) : len(prompt) + 4] = True
    logp = token_logprobs(CONFIG, four_bits, jnp.asarray(rows), jnp.asarray(mask))
    np.testing.assert_allclose(logp[mask], np.asarray(samples.logp).reshape(-1), atol=1e-4)


@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 2, 2)])
def test_a_mesh_changes_nothing_but_rounding(four_bits, sizes):
    mesh = models.make_mesh(*sizes, devices=jax.devices()[:4])
    placed = models.shard_params(four_bits, mesh)
    values = placed["layers"]["mlp"]["up"]["kernel"].values
    assert values.sharding.shard_shape(values.shape)[1] == values.shape[1] // sizes[1]
    tokens = jnp.tile(TOKENS, (2, 1))
    expected = token_logprobs(CONFIG, four_bits, tokens)
    np.testing.assert_allclose(jax.jit(lambda p: token_logprobs(CONFIG, p, tokens))(placed), expected, atol=2e-5)


def test_a_mesh_that_cuts_groups_is_refused(params):
    quantized = quantize(CONFIG, params, bits=4, group=16)
    with pytest.raises(UserError, match=r"axis 'fsdp' of size 4 does not divide dimension 2 .*kernel/scales"):
        models.shard_params(quantized, models.make_mesh(1, 4, 1, devices=jax.devices()[:4]))


def test_what_cannot_be_quantised_is_refused(params, four_bits):
    with pytest.raises(UserError, match=r"groups of 24 inputs do not divide the 32 .* attn.q: choose .* \[8, 16, 32\]"):
        quantize(CONFIG, params, bits=4, group=24)
    with pytest.raises(UserError, match="share a byte"):
        quantize(dataclasses.replace(CONFIG, num_layers=1), params, bits=2, group=2)
    with pytest.raises(UserError, match="quantised already"):
        quantize(CONFIG, four_bits, bits=4)
    adapted = join(params, init_lora(CONFIG, params, jax.random.key(1), LoRAConfig(rank=2, targets=("up",))))
    with pytest.raises(UserError, match="adapters of mlp.up train"):
        quantize(CONFIG, adapted, bits=4)
    with pytest.raises(UserError, match="quantization.rank 33: the largest kernel has 32 directions"):
        quantize(CONFIG, params, bits=4, rank=33)
    with pytest.raises(UserError, match="choose 8, 4 or 2"):
        quantize(CONFIG, params, bits=3)
    with pytest.raises(UserError, match="scheme progressive has 4 bits in groups"):
        quantize(CONFIG, params, bits=8, scheme="progressive")
    with pytest.raises(UserError, match="balanced has five levels in 2 bits, found 4"):
        quantize(CONFIG, params, bits=4, scheme="balanced")
    with pytest.raises(UserError, match="fit normal is for"):
        quantize(CONFIG, params, bits=4, fit="normal")
