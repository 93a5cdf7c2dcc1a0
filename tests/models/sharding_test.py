"""Meshes: sizes and their errors, rules by path, and a sharded step that equals the one on a single device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from prm_jax import models
from prm_jax.errors import UserError
from prm_jax.models import sharding as meshes
from prm_jax.models.local_copies import own_sizes
from prm_jax.models.sharding import (
    batch_sharding,
    check_expert_axis,
    check_spans_processes,
    make_mesh,
    partition_spec,
    rows_over,
    shard_batch,
    shard_params,
    shardings_for,
)
from prm_jax.pytree_paths import named_leaves

P = PartitionSpec
pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": -1}, (1, 8, 1)),
        ({"data": 1}, (1, 1, 1)),
        ({"data": 2, "tensor": 3}, (2, 1, 3)),
    ],
)
def test_sizes(sizes, shape):
    mesh = make_mesh(**sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 3}, "8 devices cannot be split evenly for a mesh of data -1, fsdp 1, tensor 3"),
        ({"data": 4, "fsdp": 4}, "needs 16 devices; there are 8"),
        ({"data": -1, "fsdp": -1}, "at most one -1"),
        ({"data": 0}, "must be positive"),
        ({"tensor": -2}, "must be positive"),
    ],
)
def test_impossible_sizes(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(**sizes)


def test_an_axis_of_experts_is_there_where_it_is_asked_for():
    mesh = make_mesh(1, 2, 1, expert=-1)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "expert": 4, "tensor": 1}
    assert batch_sharding(mesh).spec == P(("data", "fsdp", "expert")) and rows_over(mesh) == 8
    assert partition_spec("opt/mu/layers/mlp/up/kernel", (3, 8, 16, 8), mesh) == P(None, "expert", "fsdp", None)
    assert partition_spec("layers/mlp/up/kernel", (3, 16, 8), mesh) == P(None, "fsdp", None)
    with pytest.raises(UserError, match="axis 'expert' of size 4 does not divide dimension 6 of the parameter"):
        partition_spec("layers/mlp/down/kernel", (3, 6, 8, 16), mesh)
    with pytest.raises(UserError, match=r"4 rows of tokens cannot .* \(data 1 x fsdp 2 x expert 4\): choose .* 8"):
        shard_batch({"tokens": jnp.zeros((4, 3))}, mesh)
    assert own_sizes(mesh, 4) == {"data": 1, "fsdp": 1, "expert": 4, "tensor": 1}  # of a process with 4 devices
    check_expert_axis(mesh, 8, "mixtral")
    with pytest.raises(UserError, match="--mesh.expert 4 divides experts, .* 'llama' has none: use --mesh.data or"):
        check_expert_axis(mesh, 0, "llama")


def test_rules_name_every_kind_of_parameter():
    mesh = make_mesh(2, 2, 2)
    expected = {
        "embed/embedding": ((32, 16), P("tensor", "fsdp")),
        "head/kernel": ((32, 16), P("tensor", "fsdp")),
        "layers/attn/q/kernel": ((3, 16, 8), P(None, "fsdp", "tensor")),
        "layers/attn/v/bias": ((3, 8), P(None, "tensor")),
        "layers/attn/o/kernel": ((3, 8, 16), P(None, "tensor", "fsdp")),
        "layers/attn/o/bias": ((3, 16), P()),
        "layers/mlp/up/kernel": ((3, 16, 8), P(None, "fsdp", "tensor")),
        "layers/mlp/down/kernel": ((3, 8, 16), P(None, "tensor", "fsdp")),
        "layers/attn/q/lora_a": ((3, 16, 4), P(None, "fsdp", None)),
        "layers/attn/q/lora_b": ((3, 4, 8), P(None, None, "tensor")),
        "layers/mlp/down/lora_a": ((3, 8, 4), P(None, "tensor", None)),
        "layers/mlp/down/lora_b": ((3, 4, 16), P(None, None, "fsdp")),
        "layers/attn_norm/scale": ((3, 16), P()),
        "layers/attn/q_norm/scale": ((3, 4), P()),
        "final_norm/scale": ((16,), P()),
        # An optimiser's state carries the path at its end; factored moments and counters are left whole.
        "policy/opt/0/mu/layers/attn/q/kernel": ((3, 16, 8), P(None, "fsdp", "tensor")),
        "opt/v_row/layers/attn/q/kernel": ((3, 16), P()),
        "opt/0/count": ((), P()),
        "other_head/kernel": ((32, 16), P()),
    }
    for name, (shape, spec) in expected.items():
        assert partition_spec(name, shape, mesh) == spec, name


def test_indivisible_dimensions():
    mesh = make_mesh(2, 2, 2)
    with pytest.raises(
        UserError, match="axis 'tensor' of size 2 does not divide dimension 7 of the parameter layers/attn"
    ):
        partition_spec("layers/attn/q/kernel", (3, 16, 7), mesh)
    assert partition_spec("embed/embedding", (17, 16), mesh) == P(None, "fsdp")  # vocabularies have any size
    assert partition_spec("layers/attn/q/kernel", (3, 7, 7), make_mesh(8)) == P(None, None, None)


def _setup():
    config = models.ModelConfig(
        architecture="qwen3",
        vocab_size=31,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        qk_norm=True,
        tie_word_embeddings=False,
        max_position_embeddings=64,
    )
    params = models.init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 12), 0, 31)
    mask = jnp.arange(12)[None, :] < jnp.arange(4, 12)[:, None]
    return config, params, tokens, mask


def test_a_sharded_training_step_equals_the_single_one():
    config, params, tokens, mask = _setup()
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, tokens, mask):
        def loss(params):
            logp = models.token_logprobs(config, params, tokens, mask)
            return -jnp.sum(logp) / jnp.sum(mask)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value, gradient

    expected = step(params, optimizer.init(params), tokens, mask)
    for sizes in ((2, 2, 2), (1, 4, 1)):
        mesh = make_mesh(*sizes)
        placed, state = shard_params((params, optimizer.init(params)), mesh)
        batch = shard_batch({"tokens": tokens, "mask": mask}, mesh)
        result = step(placed, state, batch["tokens"], batch["mask"])
        assert result[0]["layers"]["attn"]["q"]["kernel"].sharding.is_equivalent_to(
            placed["layers"]["attn"]["q"]["kernel"].sharding, 3
        )
        for name, (a, b) in _pairs(expected[2:], result[2:]).items():
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=f"{sizes} {name}")
        # Adam divides by the gradient's size: where that is all rounding, only the step's bound holds.
        for name, (a, b) in _pairs(expected[0], result[0]).items():
            np.testing.assert_allclose(a, b, atol=2.1e-2, err_msg=f"{sizes} {name}")


def _pairs(a, b):
    b = named_leaves(b)
    return {name: (leaf, b[name]) for name, leaf in named_leaves(a).items()}


def test_adapters_and_optimiser_state_follow_their_parameters():
    config, params, *_ = _setup()
    adapters = models.init_lora(config, params, jax.random.key(2), models.LoRAConfig(rank=4, alpha=config.lora_alpha))
    joined = models.join(params, adapters)
    mesh = make_mesh(2, 2, 2)
    placed = named_leaves(shardings_for(joined, mesh))
    state = named_leaves(shardings_for(optax.adamw(1e-3).init(joined), mesh))
    for name, sharding in placed.items():
        assert state[f"0/mu/{name}"] == sharding == state[f"0/nu/{name}"]
    assert state["0/count"].spec == P()
    split = [name for name, sharding in placed.items() if any(sharding.spec)]
    assert len(split) > 12 and not any("norm" in name for name in split)
    kernel = shard_params(joined, mesh)["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 8, 16)


def test_batches():
    mesh = make_mesh(2, 2, 2)
    rows = shard_batch({"a": np.arange(8), "b": np.zeros((8, 3))}, mesh)
    assert rows["a"].sharding == batch_sharding(mesh) and rows["b"].addressable_shards[0].data.shape == (2, 3)
    with pytest.raises(UserError, match=r"6 rows of a cannot be split over 4 devices \(data 2 x fsdp 2\)"):
        shard_batch({"a": np.arange(6)}, mesh)
    assert meshes.replicated(mesh).spec == P()


def test_a_mesh_must_use_the_devices_of_all_processes(monkeypatch):
    small, whole = make_mesh(2, 2), make_mesh(2, -1)
    check_spans_processes(small)  # of one process any
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    check_spans_processes(whole)
    with pytest.raises(UserError, match="2 processes with 8 devices .*--mesh.data 2, .* uses 4 of them"):
        check_spans_processes(small)
