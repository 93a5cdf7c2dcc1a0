"""The Hopper kernel compiled to machine code without a GPU, and its registers looked at.

Needs, with --no-deps and of jax's version, jax-cuda13-plugin and jax-cuda13-pjrt, and nvidia-cuda-nvcc,
nvidia-nvvm and nvidia-cuda-crt.
"""

import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import pytest

from prm_jax.pallas import Target, linear_logprob_loss, linear_lse_and_target
from tests.pallas.backend_contract import call

pytestmark = [
    pytest.mark.optional,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda13_plugin") is None,
        reason="no CUDA compiler: pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc nvidia-nvvm",
    ),
]

# What the compiler asks about a device; sizes of NVIDIA's H100 SXM data sheet and compute capability 9.0a.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
CALLS = {
    "7B": ((8192, 3584, 152064), {}),
    "7B, vocabulary last": ((8192, 3584, 152064), {"head_layout": "dv"}),
    "compacted, with entropy": ((8192, 2048, 151936), {"compact": True, "entropy": True}),
    "everything": ((1000, 896, 151936), {"compact": True, "softcap": 30.0, "temperature": 0.7, "entropy": True}),
    "table, 4096": ((16384, 4096, 151936), {}),
}


@pytest.fixture(scope="module")
def sharding():
    """A single H100's."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    return jax.sharding.SingleDeviceSharding(topology.devices[0])


def arguments(shape, sharding, layout="vd"):
    count, width, vocab = shape
    head = (vocab, width) if layout == "vd" else (width, vocab)
    shapes = ((count, width), jnp.bfloat16), (head, jnp.bfloat16), ((count,), jnp.int32), ((count,), jnp.bool_)
    return [jax.ShapeDtypeStruct(*s, sharding=sharding) for s in shapes]


@pytest.mark.parametrize("call", CALLS)
def test_compiles_without_spills(sharding, call, tmp_path, monkeypatch):
    shape, options = CALLS[call]
    monkeypatch.setitem(os.environ, "MOSAIC_GPU_DUMP_TO", str(tmp_path))
    monkeypatch.setitem(os.environ, "MOSAIC_GPU_DUMP_PTXAS", "1")

    def f(hidden, head, tokens, mask):
        return linear_lse_and_target(
            hidden,
            head,
            tokens,
            **call(mask=mask, implementation="mosaic_gpu", target=Target("gpu", "NVIDIA H100"), **options),
        )

    jax.jit(f).lower(*arguments(shape, sharding, options.get("head_layout", "vd"))).compile()
    report = "".join(path.read_text() for path in tmp_path.glob("*.ptxas"))
    registers, spills = re.findall(r"Used (\d+) registers", report), re.findall(r"(\d+) bytes spill", report)
    print(f"{call}: {registers} registers, {spills} bytes spilled")
    assert registers and not any(int(n) for n in spills)


@pytest.mark.parametrize("implementation", ["xla_token", "mosaic_gpu"])
def test_temporaries_of_a_training_pass(sharding, implementation):
    """Of hidden's and head's gradient at (8192, 3584, 152064): 2.2 GB of it is the head's, summed in float32."""

    def loss(hidden, head, tokens, mask):
        lse, target = linear_lse_and_target(
            hidden, head, tokens, **call(mask=mask, implementation=implementation, target=Target("gpu", "NVIDIA H100"))
        )
        return jnp.sum(target - lse)

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments((8192, 3584, 152064), sharding)).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(f"{implementation}: {temporary / 2**30:.2f} GiB of temporaries")
    assert temporary < 4 * 2**30


def test_temporaries_of_a_closed_loss(sharding):
    """The update of a reward model at the same size, eight sequences, stays below 3 GB."""
    shape = 8192, 3584, 152064

    def loss(hidden, head, tokens, mask):
        sequences = [x.reshape(8, 1024, *x.shape[1:]) for x in (hidden, tokens, mask)]

        def cross_entropy(statistics, mask):
            score = jnp.sum(jnp.where(mask, statistics.logp, 0.0), axis=1)
            return jnp.sum(jnp.logaddexp(0.0, -0.05 * score))

        hidden, tokens, mask = sequences
        return linear_logprob_loss(
            hidden, head, tokens, cross_entropy, mask, **call(mask=mask, target=Target("gpu", "NVIDIA H100"))
        )[0]

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments(shape, sharding)).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(f"closed loss: {temporary / 1e9:.2f} GB of temporaries")
    assert temporary < 3e9
