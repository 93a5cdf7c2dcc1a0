"""The TPU kernels compiled for TPUs without one: needs libtpu (pip install --no-deps libtpu, of jax's version)."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest

from prm_jax.pallas import Target, linear_lse_and_target

pytestmark = [
    pytest.mark.optional,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install --no-deps libtpu"),
]

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "7x": "tpu7x:2x2x1"}
CALLS = {
    "7B": ((8192, 3584, 152064), (0, 1), {}),
    "7B, vocabulary last": ((8192, 3584, 152064), (0, 1), {"head_layout": "dv"}),
    "7B, frozen head": ((8192, 3584, 152064), (0,), {}),
    "odd sizes, everything": ((1000, 896, 151936), (0, 1), {"compact": True, "softcap": 30.0, "entropy": True}),
    "table, 2048": ((16384, 2048, 151936), (0, 1), {}),
    "table, 4096": ((16384, 4096, 151936), (0, 1), {}),
}


@pytest.fixture(scope="module")
def devices():
    """The first device of each topology."""
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
    )
    from jax.experimental import topologies

    return {kind: topologies.get_topology_desc(name, "tpu").devices[0] for kind, name in TOPOLOGIES.items()}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_compiles(devices, kind, call):
    (count, width, vocab), wanted, options = CALLS[call]
    sharding = jax.sharding.SingleDeviceSharding(devices[kind])
    head = (vocab, width) if options.get("head_layout", "vd") == "vd" else (width, vocab)
    shapes = ((count, width), jnp.bfloat16), (head, jnp.bfloat16), ((count,), jnp.int32), ((count,), jnp.bool_)
    arguments = [jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes]
    target = Target("tpu", devices[kind].device_kind)

    def loss(hidden, head, tokens, mask):
        out = linear_lse_and_target(
            hidden, head, tokens, **call(mask=mask, implementation="mosaic_tpu", target=target, **options)
        )
        return sum(jnp.sum(x) for x in out)

    compiled = jax.jit(jax.grad(loss, wanted)).lower(*arguments).compile()
    # Hidden's gradient in float32, its padded copies, and columns padded to whole lanes; no logits.
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(f"{kind}, {call}: {temporary / 2**20:.0f} MiB of temporaries")
    assert temporary < 4 * (4 * count * width + 8 * 128 * count) < count * vocab
