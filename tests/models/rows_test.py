"""Activations on a mesh: which mesh, which rows, the embedding's lookup, attention with few key heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from prm_jax import models
from prm_jax.models.rows import embed, mesh_of, row_axes, split_over_rows
from prm_jax.models.sharding import make_mesh, shard_batch, shard_params

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")


def test_the_mesh_is_that_of_the_arrays():
    mesh = make_mesh(2, 2, 2)
    spread, alone = shard_batch(np.zeros(8), mesh), jnp.zeros(8)
    assert mesh_of(alone, {"a": spread}).shape == mesh.shape
    assert mesh_of(alone) is None and mesh_of(shard_batch(np.zeros(8), make_mesh(1))) is None
    found = []
    jax.jit(lambda x: found.append(mesh_of(x * 2)))(spread)
    jax.shard_map(lambda x: found.append(mesh_of(x)) or x, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(spread)
    assert found[0].shape == mesh.shape and found[1] is None


def test_rows_are_split_as_far_as_they_divide():
    mesh = make_mesh(2, 4, 1)
    assert row_axes(mesh, 16) == ("data", "fsdp") and row_axes(mesh, 4) == ("data",) and row_axes(mesh, 3) == ()
    assert row_axes(make_mesh(1, 4, 2), 4) == ("fsdp",)
    assert row_axes(jax.make_mesh((8,), ("x",)), 8) == ()
    placed = jax.device_put(jnp.zeros((16, 3)), models.sharding.replicated(mesh))
    assert split_over_rows(placed).addressable_shards[0].data.shape == (2, 3)


def test_one_device_gets_no_constraint(tiny_config, tiny_params):
    tokens = jnp.ones((2, 5), jnp.int32)
    traced = str(jax.make_jaxpr(lambda p: models.token_logprobs(tiny_config, p, tokens))(tiny_params))
    assert "sharding_constraint" not in traced and "shard_map" not in traced


@pytest.mark.parametrize("vocab", [10, 9])  # "tensor" divides the first
def test_lookup_in_a_split_table_and_its_gradient(vocab):
    mesh = make_mesh(2, 2, 2)
    table = jax.random.normal(jax.random.key(0), (vocab, 4))
    tokens = jax.random.randint(jax.random.key(1), (8, 3), 0, vocab)
    scale = jnp.arange(96.0).reshape(8, 3, 4)
    run = jax.jit(jax.value_and_grad(lambda table, tokens: (embed(table, tokens) * scale).sum()))
    expected = run(table, tokens)
    placed = shard_params({"embed": {"embedding": table}}, mesh)["embed"]["embedding"]
    found = run(placed, shard_batch(tokens, mesh))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    outside = embed(placed, shard_batch(tokens.at[3, 1].set(vocab), mesh))
    assert np.isnan(outside[3, 1]).all() and np.isnan(outside).sum() == 4


@pytest.mark.parametrize("sizes", [(1, 1, 8), (1, 4, 2)])
def test_packed_rows_and_fewer_key_heads_than_devices(sizes):
    config = models.ModelConfig(
        vocab_size=24, hidden_size=32, intermediate_size=16, num_layers=1, num_heads=8, num_kv_heads=2, head_dim=8
    )
    params = models.init_params(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 10), 0, 24)
    segments = jnp.broadcast_to((jnp.arange(10) >= 4).astype(jnp.int32), (8, 10))

    def loss(params, tokens, segments):
        return models.token_logprobs(config, params, tokens, segment_ids=segments, temperature=0.7).sum()

    expected = jax.jit(jax.value_and_grad(loss))(params, tokens, segments)
    mesh = make_mesh(*sizes)
    placed, rows = shard_params(params, mesh), shard_batch((tokens, segments), mesh)
    found = jax.jit(jax.value_and_grad(loss))(placed, *rows)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))
    # Without jit, and with tokens that are on no mesh.
    np.testing.assert_allclose(loss(placed, np.asarray(tokens), np.asarray(segments)), expected[0], rtol=1e-5)
