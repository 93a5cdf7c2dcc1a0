"""Layers under ``shard_map``: the numbers of one device, what is gathered, and what cannot be split."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from prm_jax import models
from prm_jax.errors import UserError
from prm_jax.models import gathers, manual_layers
from prm_jax.models.sharding import make_mesh, shard_batch, shard_params
from prm_jax.pytree_paths import named_leaves
from prm_jax.runs.hlo_accounting import collectives

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")]

BASE = models.ModelConfig(
    architecture="qwen2", attention_bias=True, vocab_size=24, hidden_size=32, intermediate_size=48, num_layers=2,
    num_heads=8, num_kv_heads=2, head_dim=8, remat="full",
)  # fmt: skip
LLAMA = dataclasses.replace(BASE, architecture="llama", mlp_bias=True, num_kv_heads=4, tie_word_embeddings=True)
QWEN3 = dataclasses.replace(BASE, architecture="qwen3", qk_norm=True, attention_bias=False, num_kv_heads=8)
PLAIN = dataclasses.replace(BASE, architecture="llama", attention_bias=False)
OLMO2 = dataclasses.replace(PLAIN, architecture="olmo2", qk_norm=True)
GEMMA3 = dataclasses.replace(
    PLAIN, architecture="gemma3", qk_norm=True, layer_windows=(3, None), rope_local_theta=100.0, logit_softcap=5.0,
    embed_scale=2.0, residual_scale=0.5,
)  # fmt: skip
MIXTRAL = dataclasses.replace(PLAIN, architecture="mixtral", num_experts=4, experts_per_token=2, sliding_window=6)


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
            sparse = config.num_experts > 0
            found = models.token_statistics(config, params, tokens, segment_ids=segments, load=sparse)
            return found.logp.sum() + (9.0 * found.load.balance().sum() if sparse else 0.0)

        return jax.value_and_grad(loss)(params)

    mesh = make_mesh(*sizes[:3], expert=(*sizes, 1)[3])
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
        # Layers of two kinds.
        (dataclasses.replace(QWEN3, remat="attention", layer_windows=(3, None)), (1, 8, 1), {}),
        (OLMO2, (1, 2, 4), {}),  # norms over the heads of several devices, two devices per key head
        (GEMMA3, (2, 2, 2), {"rank": 2}),  # layers with windows and frequencies of their own
        (MIXTRAL, (1, 2, 4), {"rank": 2}),
        (MIXTRAL, (1, 2, 2, 2), {}),  # experts on devices of their own
    ],
)
def test_gradients_are_those_of_one_device(config, sizes, more):
    alone, spread = _both(config, sizes, **more)
    np.testing.assert_allclose(spread[0], alone[0], rtol=1e-6)
    expected = named_leaves(alone[1])
    for name, found in named_leaves(spread[1]).items():
        scale = float(jnp.abs(expected[name]).max())
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def test_gathers_in_two_steps_and_gathered_weights_are_not_kept(monkeypatch):
    monkeypatch.setattr(gathers, "outer_size", lambda mesh: 2)
    config = dataclasses.replace(BASE, remat="none", num_layers=3)
    alone, spread = _both(config, (1, 8, 1))
    np.testing.assert_allclose(spread[0], alone[0], rtol=1e-6)
    for found, expected in zip(jax.tree.leaves(spread[1]), jax.tree.leaves(alone[1]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))
    mesh = make_mesh(1, 8, 1)
    params = shard_params(models.init_params(config, jax.random.key(0)), mesh)
    tokens = shard_batch(jnp.zeros((8, 12), jnp.int32), mesh)
    run = jax.jit(jax.grad(lambda params: models.token_logprobs(config, params, tokens).sum()))
    text = run.lower(params).compile().as_text()
    steps = {one.group for one in collectives(text) if one.kind in ("all-gather", "reduce-scatter")}
    assert {4, 2} <= steps <= {8, 4, 2}  # token ids are gathered over all 8
    for one in ((config.hidden_size, config.intermediate_size), (config.intermediate_size, config.hidden_size)):
        assert f"[{config.num_layers},{one[0]},{one[1]}]" not in text  # all layers' weights, whole


def test_experts_that_are_divided_are_never_gathered_and_may_be_quantised():
    """Nowhere in the compiled gradient is an array of all four experts."""
    config = dataclasses.replace(MIXTRAL, intermediate_size=40)
    params, mesh = models.init_params(config, jax.random.key(0)), make_mesh(2, 1, 1, expert=4)
    tokens = jax.random.randint(jax.random.key(1), (8, 12), 0, config.vocab_size)
    spread = shard_params(params, mesh)
    assert spread["layers"]["mlp"]["up"]["kernel"].sharding.shard_shape((2, 4, 32, 40)) == (2, 1, 32, 40)
    gradient = jax.jit(jax.grad(lambda params, tokens: models.token_logprobs(config, params, tokens).sum()))
    text = gradient.lower(spread, shard_batch(tokens, mesh)).compile().as_text()
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", text)}
    assert (2, 1, 32, 40) in shapes and not [shape for shape in shapes if {4, 32, 40} <= set(shape)]
    packed = models.quantize(config, params, bits=8, group=8)
    score = jax.jit(lambda params, tokens: models.token_logprobs(config, params, tokens))
    expected = score(packed, tokens)
    np.testing.assert_allclose(score(shard_params(packed, mesh), shard_batch(tokens, mesh)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "rows", "message"),
    [
        ((2, 4, 1), 12, "12 rows cannot be split over data 2 x fsdp 4; 8 must divide them"),
        ((1, 1, 3), 12, r"8 heads and 2 key-value heads cannot be split over tensor 3; .* among \[1, 2, 4, 8\]"),
    ],
)
def test_what_cannot_be_split_is_left_to_constraints_or_refused(sizes, rows, message):
    mesh = make_mesh(*sizes).abstract_mesh
    assert not manual_layers.applies(BASE, mesh, rows)
    manual = dataclasses.replace(BASE, layers="manual")
    with pytest.raises(UserError, match=f"--model.layers manual: {message}, or use --model.layers auto"):
        manual_layers.applies(manual, mesh, rows)
    assert manual_layers.applies(manual, make_mesh(1, 4, 2).abstract_mesh, rows)
    assert not manual_layers.applies(manual, None, rows)
    assert not manual_layers.applies(dataclasses.replace(BASE, layers="constraints"), mesh, 24)


@pytest.mark.parametrize(
    ("kind", "sizes", "outer"),
    [
        ("TPU v5", (1, 64, 1), 4),  # 4x4x4
        ("TPU v5", (1, 512, 1), 8),  # 8x8x8
        ("TPU v5", (4, 16, 1), 4),  # a plane of 4x4x4
        ("TPU v5 lite", (1, 16, 1), 4),
        ("TPU v6 lite", (1, 64, 1), 8),
        ("TPU v6 lite", (1, 8, 1), 1),
        ("TPU v5", (1, 24, 1), 1),
        ("", (1, 64, 1), 1),
    ],
)
def test_steps_follow_the_torus(kind, sizes, outer):
    device = AbstractDevice(kind, None, "tpu") if kind else None
    types = (AxisType.Auto,) * 3
    mesh = AbstractMesh(sizes, ("data", "fsdp", "tensor"), axis_types=types, abstract_device=device)
    assert gathers.outer_size(mesh) == outer
    assert math.prod(gathers.Gathers(mesh).mesh.shape.values()) == math.prod(sizes)
