"""The device that a program is traced for, from its arrays' mesh, from shard_map, and by default."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax.models.attention import attend
from prm_jax.pallas.linear_logprob.dispatch import this_machine
from prm_jax.target_device import platform_and_kind


@pytest.fixture(scope="module")
def elsewhere():
    """Two TPUs that this machine does not have."""
    device = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    return AbstractMesh((2, 1), ("data", "fsdp"), (AxisType.Auto,) * 2, abstract_device=device)


def test_without_a_mesh_it_is_the_default_device():
    kind = jax.devices()[0].device_kind
    assert platform_and_kind() == platform_and_kind(jnp.ones(2), {"x": None}) == ("cpu", kind)


def test_on_a_mesh_it_is_the_meshs_device(elsewhere):
    found = []

    def f(x):
        found.append(platform_and_kind({"x": x}))

        def local(x):
            found.append((this_machine().platform, this_machine().device_kind))
            return x

        return jax.shard_map(local, mesh=elsewhere, in_specs=P("data"), out_specs=P("data"))(x)

    shape = jax.ShapeDtypeStruct((4, 2), jnp.float32, sharding=NamedSharding(elsewhere, P("data")))
    jax.jit(f).trace(shape)
    assert found == [("tpu", "TPU v5 lite")] * 2


def test_attention_is_chosen_for_the_meshs_device(elsewhere):
    """On a CPU rows of 512 tokens are computed in blocks, whose loops are in the program."""
    shape = jax.ShapeDtypeStruct((2, 512, 2, 8), jnp.float32, sharding=NamedSharding(elsewhere, P("data")))
    there = str(jax.jit(attend).trace(shape, shape, shape).jaxpr)
    here = str(jax.jit(attend).trace(*[jax.ShapeDtypeStruct(shape.shape, shape.dtype)] * 3).jaxpr)
    assert there != here
    assert "while" in here or "scan" in here
