"""Products with quantised matrices compiled for a TPU without one: needs libtpu (pip install 'prm-jax[tpu]')."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax.models.quantized_product import product
from prm_jax.models.rounding import round_matrix

pytestmark = [
    pytest.mark.optional,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'prm-jax[tpu]'"),
]

INPUTS, OUTPUTS = 3584, 18944  # the feed-forward layer of a 7B model


@pytest.fixture(scope="module")
def sharding():
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
    )  # fmt: skip
    from jax.experimental import topologies

    devices = topologies.get_topology_desc("v5e:2x2", "tpu").devices[:1]
    return NamedSharding(jax.make_mesh((1,), ("data",), devices=devices), P())


@pytest.mark.parametrize(
    ("bits", "group", "scheme", "most"),
    [(8, INPUTS, "symmetric", 0), (4, 32, "symmetric", 0), (4, 32, "progressive", INPUTS * OUTPUTS)],
)
def test_matrices_are_expanded_inside_the_product(sharding, bits, group, scheme, most):
    """With zero points the compiler unpacks integers to bytes first; the matrix in bfloat16 never exists."""

    def make():
        return round_matrix(jnp.zeros((INPUTS, OUTPUTS)), bits=bits, group=group, scheme=scheme, fit="largest")

    q = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(make))
    x = jax.ShapeDtypeStruct((16, INPUTS), jnp.bfloat16, sharding=sharding)
    compiled = jax.jit(product).lower(x, q).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= most + 0.05 * INPUTS * OUTPUTS
