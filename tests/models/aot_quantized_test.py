"""Products with quantised matrices compiled for a TPU without one: needs libtpu (pip install 'prm-jax[tpu]')."""

import importlib.util
import os
import re

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
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "7x": "tpu7x:2x2x1"}


@pytest.fixture(scope="module")
def shardings():
    """One device of each topology."""
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
    )  # fmt: skip
    from jax.experimental import topologies

    devices = {kind: topologies.get_topology_desc(name, "tpu").devices[:1] for kind, name in TOPOLOGIES.items()}
    return {kind: NamedSharding(jax.make_mesh((1,), ("data",), devices=one), P()) for kind, one in devices.items()}


def compiled(sharding, rows, *, gradient=False, **form):
    """The product of `rows` rows with a matrix in some form, or its gradient with respect to the rows."""

    def make():
        return round_matrix(jnp.zeros((INPUTS, OUTPUTS)), fit="largest", **form)

    q = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(make))
    x = jax.ShapeDtypeStruct((rows, INPUTS), jnp.bfloat16, sharding=sharding)
    function = jax.grad(lambda x, q: product(x, q).astype(jnp.float32).sum()) if gradient else product
    return jax.jit(function).lower(x, q).compile()


def test_one_scale_per_output_needs_no_kernel(shardings):
    found = compiled(shardings["v5e"], 16, bits=8, group=INPUTS, scheme="symmetric")
    assert "tpu_custom_call" not in found.as_text()
    assert found.memory_analysis().temp_size_in_bytes < 0.05 * INPUTS * OUTPUTS


@pytest.mark.parametrize(
    ("kind", "rows", "scheme", "gradient"),
    [("v5e", 16, "symmetric", False), ("v5e", 16, "progressive", False), ("v5e", 1024, "symmetric", True),
     ("v5p", 16, "symmetric", False), ("v6e", 16, "symmetric", False), ("7x", 16, "symmetric", False)],
    ids=str,
)  # fmt: skip
def test_groups_are_expanded_in_the_kernel(shardings, kind, rows, scheme, gradient):
    """By itself, XLA writes the scales and zeros of groups out for every input, which takes as much as the matrix."""
    found = compiled(shardings[kind], rows, bits=4, group=32, scheme=scheme, gradient=gradient)
    text = found.as_text()
    assert "packed_product" in text
    assert not re.search(rf"(?<!u8)\[({INPUTS}|{INPUTS // 2}),{OUTPUTS}\]", text)
    activations, scales = 4 * rows * (INPUTS + OUTPUTS), 4 * INPUTS // 32 * OUTPUTS  # whose layouts change
    assert found.memory_analysis().temp_size_in_bytes < 2 * scales + 2 * activations
