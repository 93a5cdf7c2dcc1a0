"""The TPU kernel for packed matrices, interpreted on the CPU, against a loop over entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models.qtensor import QTensor
from prm_jax.models.quantized_product import kernel_product, uses_kernel
from prm_jax.models.rounding import round_matrix
from prm_jax.pallas import PackedMatrix, packed_product
from prm_jax.pallas.packed_product import tile
from tests.models.qtensor_test import loop_values


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles of tokens, rows and columns, and two pieces in each tile of rows."""
    for name, size in {"_TOKENS": 32, "_TOKEN_PIECE": 16, "_PACKED": 256, "_PIECE": 128, "_COLUMNS": 128}.items():
        monkeypatch.setattr(tile, name, size)


@pytest.mark.parametrize(
    ("inputs", "bits", "group", "scheme"),
    [
        (64, 8, 16, "symmetric"),
        (1024, 4, 32, "symmetric"),
        (64, 4, 16, "progressive"),
        (64, 2, 32, "centred"),
    ],
    ids=str,
)
def test_product_and_gradient_are_those_of_a_loop(inputs, bits, group, scheme):
    columns = 256 if inputs > 512 else 24
    w = jax.random.normal(jax.random.key(0), (inputs, columns))
    q = round_matrix(w, bits=bits, group=group, scheme=scheme, fit="largest")
    x = jax.random.normal(jax.random.key(1), (35, inputs))
    g = jax.random.normal(jax.random.key(2), (35, columns))

    @jax.jit
    def both(x, q):
        y, pull = jax.vjp(lambda x: kernel_product(x, q, interpret=True), x)
        return y, *pull(g)

    exact = loop_values(q)
    y, dx = both(x, q)
    np.testing.assert_allclose(y, np.asarray(x, np.float64) @ exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx, np.asarray(g, np.float64) @ exact.T, rtol=1e-4, atol=1e-4)


def test_lows_in_float16_and_activations_in_bfloat16():
    """The form of Q4_1: an integer 0 stands for a number of its group."""
    values = jax.random.randint(jax.random.key(0), (32, 24), 0, 256).astype(jnp.uint8)
    scales, lows = jax.random.normal(jax.random.key(1), (2, 2, 24)).astype(jnp.float16)
    q = QTensor(values, scales, lows=lows, bits=4)
    x = jax.random.normal(jax.random.key(2), (3, 64)).astype(jnp.bfloat16)
    y = kernel_product(x, q, interpret=True)
    stored = np.stack([np.asarray(values) & 15, np.asarray(values) >> 4], 1).reshape(64, 24)
    scale, low = (np.repeat(np.asarray(part, np.float64), 32, 0) for part in (scales, lows))
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64) @ (stored * scale + low)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=0.02, atol=0.5)


def test_matrices_that_cannot_be_divided_are_refused():
    x = jnp.ones((2, 80))
    with pytest.raises(ValueError, match="groups of 4 bytes"):
        packed_product(x, PackedMatrix(jnp.zeros((40, 8), jnp.uint8), jnp.ones((10, 8)), bits=4))
    with pytest.raises(ValueError, match="no block"):
        packed_product(jnp.ones((2, 1000)), PackedMatrix(jnp.zeros((1000, 8), jnp.int8)))


def test_a_cpu_never_uses_it():
    q = round_matrix(jnp.ones((64, 8)), bits=4, group=32, scheme="symmetric", fit="largest")
    assert not uses_kernel(jnp.ones((2, 64)), q)
