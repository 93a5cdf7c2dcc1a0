"""A run's step on abstract arrays: what its arguments are for each kind of source, on one device and on a mesh."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from prm_jax.models.sharding import make_mesh
from prm_jax.prime.abstract import abstract_step
from tests.prime.conftest import replaced


@pytest.mark.parametrize(
    ("source", "given"), [("implicit", False), ("policy", False), ("critic", False), ("checker", True), ("model", True)]
)
def test_sources_outside_the_step_are_an_input(options, tiny_config, source, given):
    step, (state, frozen, batch) = abstract_step(replaced(options, reward={"source": source}), tiny_config)
    assert (batch.process is not None) == given and (state.source is None) == given
    new, metrics, rewards = jax.eval_shape(step, state, frozen, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert rewards.shape == batch.mask.shape == (16, 12) and all(x.shape == () for x in metrics.values())


def test_outcome_only_training_has_no_process_rewards(options, tiny_config):
    _, (state, _, batch) = abstract_step(replaced(options, advantage={"process_coef": 0.0}), tiny_config)
    assert state.source is None and batch.process is None


@pytest.mark.skipif(len(jax.devices()) < 4, reason="needs 4 devices")
def test_on_a_mesh_every_argument_has_its_place(options, tiny_config):
    mesh = make_mesh(2, 2, 1, devices=jax.devices()[:4])
    _, (state, frozen, batch) = abstract_step(options, tiny_config, mesh=mesh)
    assert batch.tokens.sharding.spec == P(("data", "fsdp")) and batch.tokens.dtype == jnp.int32
    kernel = state.policy["layers"]["attn"]["q"]["kernel"]
    assert kernel.dtype == jnp.float32 and "fsdp" in kernel.sharding.spec
    assert frozen.constants["layers"]["attn"]["q"]["kernel"].sharding.spec == kernel.sharding.spec
