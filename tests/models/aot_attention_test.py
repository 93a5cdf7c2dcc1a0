"""Attention's TPU kernels compiled for TPUs without one: needs libtpu (pip install --no-deps libtpu, for jax)."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from prm_jax.models import make_mesh
from prm_jax.models.attention import attend

pytestmark = [
    pytest.mark.optional,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install --no-deps libtpu"),
]

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# (T, query heads, head size, other arguments, inside shard_map, most MiB of temporary memory per device)
CALLS = {
    "packed": (2048, 8, 128, {}, False, 64),
    "packed, window, soft cap, odd length": (1100, 8, 64, {"window": 300, "softcap": 30.0}, True, 64),
    "28 heads, 8,192 tokens": (8192, 28, 128, {}, True, 300),
}


@pytest.fixture(scope="module")
def meshes():
    """A mesh of four devices of each topology."""
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
    )
    from jax.experimental import topologies

    found = {kind: topologies.get_topology_desc(name, "tpu").devices for kind, name in TOPOLOGIES.items()}
    return {kind: make_mesh(1, 2, 2, devices=list(devices)[:4]) for kind, devices in found.items()}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_compiles_to_three_kernels_in_linear_memory(meshes, kind, call):
    """One forward and two backward kernels on each device's own rows and heads; four packed rows in bfloat16."""
    length, heads, width, given, inside, most = CALLS[call]
    split, rows = P(("data", "fsdp"), None, "tensor", None), P(("data", "fsdp"), None)

    def array(dtype, spec, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(meshes[kind], spec))

    q, k = (array(jnp.bfloat16, split, 4, length, count, width) for count in (heads, 4))
    f = lambda q, k, v, ids: attend(q, k, v, segment_ids=ids, **given)  # noqa: E731
    if inside:
        f = jax.shard_map(f, mesh=meshes[kind], in_specs=(split,) * 3 + (rows,), out_specs=split)
    gradient = jax.grad(lambda *a: f(*a).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    compiled = jax.jit(gradient).lower(q, k, k, array(jnp.int32, rows, 4, length)).compile()
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3 and "all-gather(" not in text
    assert compiled.memory_analysis().temp_size_in_bytes <= most * 2**20
