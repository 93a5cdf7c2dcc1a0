"""Packed integers, products with them, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models import qtensor
from prm_jax.models.qtensor import QTensor, dequantize, rotate, take
from prm_jax.models.quantization_options import Fit, Scheme
from prm_jax.models.quantized_product import product, table_product
from prm_jax.models.rounding import round_matrix, round_table

KEY = jax.random.key(0)

FORMS: list[tuple[int, int, Scheme, Fit]] = [
    (8, 24, "symmetric", "largest"),
    (8, 8, "asymmetric", "largest"),
    (4, 8, "symmetric", "mse"),
    (4, 24, "asymmetric", "mse"),
    (4, 8, "progressive", "largest"),
    (4, 24, "centred", "normal"),
    (2, 8, "centred", "largest"),
    (2, 8, "balanced", "mse"),
    (2, 24, "symmetric", "largest"),
]


def loop_values(q: QTensor) -> np.ndarray:
    """The matrix [in, out] of integers, scales and zeros by a loop over entries, without low rank and rotation."""
    values, scales = np.asarray(q.values), np.asarray(q.scales, np.float64)
    rows, columns = q.shape
    count = qtensor.integers_per_byte(q.bits, q.grid)
    base = 5 if q.grid == "five" else 2**q.bits
    found = np.zeros((rows, columns))
    for i in range(rows):
        group = i // (rows // scales.shape[0])
        for j in range(columns):
            stored = int(values[i // count, j])
            integer = stored if count == 1 else stored // base ** (i % count) % base
            zero: float = qtensor.offset(q.bits, q.grid)
            if q.zeros is not None:
                zero = int(q.zeros[group, j])
            step = scales[group, j] * (1.0 if q.coarse is None else float(q.coarse[0, j]))
            found[i, j] = (integer - zero) * step
    return found


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_expansion_is_that_of_a_loop_and_the_product_uses_it(form):
    bits, group, scheme, fit = form
    w = jax.random.normal(KEY, (24, 5))
    q = round_matrix(w, bits=bits, group=group, scheme=scheme, fit=fit)
    assert q.shape == (24, 5)
    np.testing.assert_allclose(dequantize(q), loop_values(q), rtol=1e-6, atol=1e-7)
    x = jax.random.normal(jax.random.key(1), (3, 24))
    np.testing.assert_allclose(product(x, q), x @ dequantize(q), rtol=1e-5, atol=1e-5)
    half = product(x.astype(jnp.bfloat16), q)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), x @ dequantize(q), rtol=0.05, atol=0.2)


@pytest.mark.parametrize("form", [
    {"bits": 8, "group": 512, "scheme": "symmetric"}, {"bits": 8, "group": 512, "scheme": "asymmetric"},
    {"bits": 4, "group": 32, "scheme": "symmetric"}, {"bits": 4, "group": 32, "scheme": "progressive"},
    {"bits": 2, "group": 64, "scheme": "centred"}, {"bits": 2, "group": 64, "scheme": "balanced"},
], ids=str)  # fmt: skip
def test_parts_give_the_whole_product(form):
    q = round_matrix(jax.random.normal(KEY, (512, 307)), fit="largest", **form)  # 2 parts of 154 outputs
    x = jax.random.normal(jax.random.key(1), (3, 512))
    lowered = jax.jit(product).lower(x, q)
    assert "f32[512,307]" not in lowered.compile().as_text()  # no expanded matrix
    np.testing.assert_allclose(lowered.compile()(x, q), x @ dequantize(q), rtol=1e-4, atol=1e-4)


def test_parts_of_a_table_cover_all_of_its_rows():
    table = jax.random.normal(KEY, (1023, 128))
    q, x = round_table(table), jax.random.normal(jax.random.key(1), (128, 2))
    np.testing.assert_allclose(jax.jit(table_product)(q, x), dequantize(q) @ x, rtol=1e-4, atol=1e-4)
    grouped = QTensor(q.values, jnp.repeat(q.scales, 4, 1) * jnp.arange(1.0, 5.0))
    np.testing.assert_allclose(table_product(grouped, x), dequantize(grouped) @ x, rtol=1e-4, atol=1e-3)
    assert dequantize(grouped)[5, 127] == pytest.approx(4 * float(dequantize(q)[5, 127]))


@pytest.mark.parametrize(("bits", "grid"), [(4, "integer"), (2, "centred"), (2, "five")])
def test_packing_is_undone(bits, grid):
    top = 5 if grid == "five" else 2**bits
    integers = jax.random.randint(KEY, (2, 12, 3), 0, top).astype(jnp.uint8)
    packed = qtensor.pack(integers, bits, grid)
    assert packed.dtype == jnp.uint8
    assert packed.shape == (2, 12 // qtensor.integers_per_byte(bits, grid), 3)
    np.testing.assert_array_equal(qtensor.unpack(packed, bits, grid), integers)


def test_neighbours_share_a_byte():
    packed = qtensor.pack(jnp.array([[1], [2], [15], [0]], jnp.uint8), 4)
    np.testing.assert_array_equal(packed, [[1 + 16 * 2], [15]])


def test_five_levels_fill_up_the_last_byte():
    w = jnp.array([[-2.0], [2.0], [1.0], [0.0]])
    q = round_matrix(w, bits=2, group=4, scheme="balanced", fit="largest")
    assert q.values.shape == (2, 1) and q.shape == (4, 1)
    np.testing.assert_allclose(dequantize(q), w)


def test_low_rank_and_rotation_are_part_of_matrix_and_product():
    w = jax.random.normal(KEY, (16, 6))
    plain = round_matrix(w, bits=4, group=16, scheme="symmetric", fit="largest")
    left = jax.random.normal(jax.random.key(1), (16, 2)).astype(jnp.bfloat16)
    right = jax.random.normal(jax.random.key(2), (2, 6)).astype(jnp.bfloat16)
    q = QTensor(plain.values, plain.scales, left=left, right=right, bits=4, block=8)
    inner = loop_values(plain) + np.asarray(left, np.float64) @ np.asarray(right, np.float64)
    turned = np.kron(np.eye(2), qtensor.hadamard(8)) @ inner
    np.testing.assert_allclose(dequantize(q), turned, rtol=1e-5, atol=1e-5)
    x = jax.random.normal(jax.random.key(3), (4, 16))
    np.testing.assert_allclose(product(x, q), x @ turned, rtol=1e-4, atol=1e-4)


def test_hadamard_matrices_are_orthonormal_and_symmetric():
    for size in (1, 2, 64, 128):
        matrix = qtensor.hadamard(size)
        np.testing.assert_allclose(matrix @ matrix, np.eye(size), atol=1e-6)
        np.testing.assert_array_equal(matrix, matrix.T)
    assert [qtensor.hadamard_block(width) for width in (576, 1536, 96, 7)] == [64, 128, 32, 1]
    with pytest.raises(ValueError, match="blocks of 8 do not divide 12"):
        rotate(jnp.ones((1, 12)), 8)


def test_gradient_reaches_the_activations_alone():
    w = jax.random.normal(KEY, (8, 3))
    q = round_matrix(w, bits=4, group=4, scheme="asymmetric", fit="largest")
    x = jax.random.normal(jax.random.key(1), (2, 8))
    gradient = jax.grad(lambda x: (product(x, q) ** 2).sum())(x)
    matrix = dequantize(q)
    np.testing.assert_allclose(gradient, 2 * (x @ matrix) @ matrix.T, rtol=1e-5, atol=1e-5)


def test_expanded_matrices_are_not_kept_for_the_backward_pass():
    q = round_matrix(jax.random.normal(KEY, (64, 48)), bits=4, group=64, scheme="symmetric", fit="largest")

    def pullback(x):
        return jax.vjp(lambda x: product(x, q), x)[1]

    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(pullback, jnp.ones((2, 64))))]
    assert (64, 48) not in shapes


def test_rows_of_a_table():
    table = QTensor(jnp.array([[127, -127], [64, 0]], jnp.int8), jnp.array([[0.5], [2.0]]))
    assert table.is_table and table.shape == (2, 2)
    rows = take(table, jnp.array([[1, 0]]), jnp.float32)
    np.testing.assert_allclose(rows, [[[128.0, 0.0], [63.5, -63.5]]])
    np.testing.assert_allclose(dequantize(table), rows[0, ::-1])
    assert np.isnan(take(table, jnp.array([2]), jnp.float32)).all()
