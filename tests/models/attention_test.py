"""Implementations of attention: values and gradients against float64 loops, memory, sharding."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from prm_jax.models import ModelConfig, init_params, make_mesh, token_logprobs
from prm_jax.models.attention import attend, resolve
from prm_jax.models.blockwise_attention import block_size, blockwise_attention

IMPLEMENTATIONS = {
    "naive": functools.partial(attend, implementation="naive"),
    "blockwise": blockwise_attention,
    "blocks of 16": functools.partial(blockwise_attention, block=16),
}
# T, query heads, key heads, head_dim
SHAPES = {"one token": (1, 2, 1, 8), "grouped": (40, 6, 2, 8), "one block": (128, 3, 3, 64), "wide": (129, 7, 1, 80)}


def problem(length, heads, kv_heads, width, *, packed, dtype="float32", rows=2):
    rng = np.random.default_rng(length)
    arrays = [rng.normal(size=(rows, length, n, width)) for n in (heads, kv_heads, kv_heads, heads)]
    lengths = np.cumsum(rng.integers(1, 23, size=(rows, 200)), axis=1)
    segments = (np.arange(length)[None, None] >= lengths[:, :, None]).sum(1) if packed else None
    return [jnp.asarray(x, dtype) for x in arrays], segments


def reference(q, k, v, d_out, segments):
    """Values and gradients in float64, row by row and head by head."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    group = q.shape[2] // k.shape[2]
    out, dq, dk, dv = (np.zeros(x.shape) for x in (q, q, k, v))
    allowed = np.tril(np.ones((q.shape[1],) * 2, bool))
    for b in range(len(q)):
        sees = allowed if segments is None else allowed & (segments[b][:, None] == segments[b][None])
        for h in range(q.shape[2]):
            scores = np.where(sees, q[b, :, h] @ k[b, :, h // group].T / np.sqrt(q.shape[3]), -np.inf)
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            out[b, :, h] = p @ v[b, :, h // group]
            dp = d_out[b, :, h] @ v[b, :, h // group].T
            ds = p * (dp - (p * dp).sum(1, keepdims=True)) / np.sqrt(q.shape[3])
            dq[b, :, h] = ds @ k[b, :, h // group]
            dk[b, :, h // group] += ds.T @ q[b, :, h]
            dv[b, :, h // group] += p.T @ d_out[b, :, h]
    return out, dq, dk, dv


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(f, q, k, v, d_out, segments):
    out, back = jax.vjp(lambda q, k, v: f(q, k, v, segments), q, k, v)
    return (out, *back(d_out))


def error(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / max(np.linalg.norm(expected), 1e-30)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_values_and_gradients_match_float64_loops(name, shape, packed):
    arrays, segments = problem(*SHAPES[shape], packed=packed)
    for found, expected in zip(
        value_and_gradients(IMPLEMENTATIONS[name], *arrays, segments), reference(*arrays, segments), strict=True
    ):
        assert found.dtype == jnp.float32 and (error(found, expected) < 1e-5 or SHAPES[shape][0] == 1)


@pytest.mark.parametrize("name", ["naive", "blocks of 16"])
def test_half_precision(name):
    arrays, segments = problem(50, 4, 2, 16, packed=True, dtype="bfloat16")
    found = value_and_gradients(IMPLEMENTATIONS[name], *arrays, segments)
    for x, expected in zip(found, reference(*arrays, segments), strict=True):
        assert x.dtype == jnp.bfloat16 and error(x, expected) < 2e-2


def test_later_tokens_and_other_segments_change_nothing():
    (q, k, v, _), _ = problem(80, 4, 2, 16, packed=False)
    segments = jnp.asarray(np.arange(80) >= 37)[None].repeat(2, 0).astype(jnp.int32)
    f = jax.jit(IMPLEMENTATIONS["blocks of 16"])
    before = f(q, k, v, segments)
    after = f(q, k.at[:, :37].set(1e6), v.at[:, :37].set(-1e6), segments)
    np.testing.assert_array_equal(before[:, 37:], after[:, 37:])
    np.testing.assert_array_equal(f(q, k, v, None)[:, :50], f(q, k.at[:, 50:].set(9.0), v, None)[:, :50])


def test_vmap_and_remat():
    (q, k, v, d_out), segments = problem(40, 4, 2, 8, packed=True, rows=4)
    f = IMPLEMENTATIONS["blocks of 16"]
    whole = value_and_gradients(f, q, k, v, d_out, segments)

    def split(x):
        return None if x is None else x.reshape(2, 2, *x.shape[1:])

    parts = jax.jit(jax.vmap(lambda *a: value_and_gradients(f, *a)))(*map(split, (q, k, v, d_out, segments)))
    again = value_and_gradients(jax.checkpoint(f), q, k, v, d_out, segments)
    for a, b, c in zip(whole, parts, again, strict=True):
        np.testing.assert_allclose(a, b.reshape(a.shape), atol=1e-5)
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("mode", ["auto", "shard_map"])
def test_sharded_over_devices_equals_one_device(mode):
    """Rows over four devices and heads over two; keys and values are not gathered."""
    (q, k, v, d_out), segments = problem(40, 4, 2, 8, packed=True, rows=4)
    f = IMPLEMENTATIONS["blocks of 16"]
    expected = value_and_gradients(f, q, k, v, d_out, segments)
    mesh = make_mesh(4, 1, 2)
    heads, ids = P("data", None, "tensor", None), P("data", None)
    run = functools.partial(value_and_gradients, f)
    if mode == "shard_map":
        run = jax.shard_map(run, mesh=mesh, in_specs=(heads,) * 4 + (ids,), out_specs=heads)
    places = [jax.NamedSharding(mesh, spec) for spec in (*(heads,) * 4, ids)]
    compiled = jax.jit(run, in_shardings=places).lower(q, k, v, d_out, segments).compile()
    for a, b in zip(compiled(*jax.device_put([q, k, v, d_out, segments], places)), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    gathered = [line for line in compiled.as_text().splitlines() if "all-gather(" in line and "f32" in line]
    assert not gathered, gathered


def test_the_choice():
    for platform, length, chosen in [
        ("cpu", 255, "naive"), ("cpu", 256, "blockwise"), ("gpu", 4096, "naive"), ("tpu", 4096, "naive"),
    ]:  # fmt: skip
        assert resolve("auto", platform=platform, length=length) == chosen
    assert resolve("cudnn", platform="cpu", length=1) == "cudnn"
    assert (block_size(100), block_size(2048), block_size(2049)) == (128, 128, 256)


CONFIG = ModelConfig(
    vocab_size=32, hidden_size=32, intermediate_size=32, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8,
    max_position_embeddings=4096,
)  # fmt: skip


def _compiled(config, length):
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    loss = jax.value_and_grad(lambda p, t: token_logprobs(config, p, t, segment_ids=t).sum())
    return jax.jit(loss).lower(params, tokens).compile()


def test_memory_grows_with_the_length_and_not_with_its_square():
    small, large = (_compiled(CONFIG, length) for length in (1024, 2048))
    assert large.memory_analysis().temp_size_in_bytes < 2.3 * small.memory_analysis().temp_size_in_bytes
    for shape in re.findall(r"[fspb]\w*\[([\d,]+)\]", large.as_text()):
        assert sum(int(n) >= 2048 for n in shape.split(",")) < 2, shape


def test_scores_with_and_without_gradient_agree_bit_for_bit():
    """Implicit rewards are zero where policy and reference are equal: the same on long rows."""
    config = dataclasses.replace(CONFIG, num_layers=2)
    params = init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 300), 0, 32)
    plain = jax.jit(lambda p: token_logprobs(config, p, tokens))(params)
    logp = jax.jit(lambda p: jax.vjp(lambda p: token_logprobs(config, p, tokens), p)[0])(params)

    def loss(p):
        logp = token_logprobs(config, p, tokens)
        return (logp**2).sum(), logp

    (_, trained), _ = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_array_equal(plain, logp)
    np.testing.assert_array_equal(plain, trained)
    naive = token_logprobs(dataclasses.replace(config, attention="naive"), params, tokens)
    np.testing.assert_allclose(plain, naive, atol=2e-5)
