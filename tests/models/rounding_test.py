"""Scales and integers of every scheme against hand-computed values and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models.qtensor import dequantize, offset, unpack
from prm_jax.models.rounding import NORMAL_CLIP, round_matrix, round_table


def stored(q):
    return np.asarray(unpack(q.values, q.bits, q.grid))


def column(*values):
    return jnp.array(values, jnp.float32)[:, None]


def test_symmetric_by_hand():
    q = round_matrix(column(7.0, -3.4, 0.6, 0.0), bits=4, group=4, scheme="symmetric", fit="largest")
    np.testing.assert_array_equal(stored(q)[:, 0] - offset(4, "integer"), [7, -3, 1, 0])
    np.testing.assert_array_equal(q.scales, [[1.0]])
    assert q.zeros is None and q.scales.dtype == jnp.float32


def test_asymmetric_by_hand():
    # From -1 to 2 in 15 steps of 0.2: zero is the fifth integer.
    q = round_matrix(column(-1.0, 2.0, 0.5, 0.0), bits=4, group=4, scheme="asymmetric", fit="largest")
    np.testing.assert_array_equal(q.zeros, [[5]])
    np.testing.assert_array_equal(stored(q)[:, 0], [0, 15, 7, 5])  # 2.5 rounds to even
    np.testing.assert_allclose(dequantize(q)[:, 0], [-1.0, 2.0, 0.4, 0.0], atol=1e-6)


def test_centred_levels_by_hand():
    q = round_matrix(column(3.0, -3.0, 0.9, -1.1), bits=2, group=4, scheme="centred", fit="largest")
    np.testing.assert_allclose(dequantize(q)[:, 0], [3.0, -3.0, 1.0, -1.0])


def test_normal_fit_is_the_table_times_the_deviation():
    w = jax.random.normal(jax.random.key(0), (8, 3))
    q = round_matrix(w, bits=4, group=8, scheme="centred", fit="normal")
    step = 2 * NORMAL_CLIP[4] * np.sqrt(np.mean(np.asarray(w) ** 2, axis=0)) / 15
    np.testing.assert_allclose(q.scales[0], step, rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_normal_clip_has_the_least_error_on_normal_numbers(bits):
    x = np.sort(np.random.default_rng(0).normal(size=200_000))

    def error(clip):
        step = 2 * clip / (2**bits - 1)
        levels = np.clip(np.floor(x / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + 0.5
        return np.mean((x - levels * step) ** 2)

    best = min(error(clip) for clip in np.linspace(0.9, 1.1, 21) * NORMAL_CLIP[bits])
    assert error(NORMAL_CLIP[bits]) <= best * 1.002


def test_progressive_is_two_roundings_of_a_loop():
    w = np.asarray(jax.random.normal(jax.random.key(0), (8, 2)))
    q = round_matrix(jnp.asarray(w), bits=4, group=4, scheme="progressive", fit="largest")
    assert q.scales.dtype == q.zeros.dtype == jnp.uint8
    for j in range(2):
        coarse = np.abs(w[:, j]).max() / 119
        np.testing.assert_allclose(q.coarse[0, j], coarse, rtol=1e-6)
        first = np.round(w[:, j] / coarse)
        for group in range(2):
            part = first[4 * group : 4 * group + 4]
            low, high = min(part.min(), 0), max(part.max(), 0)
            scale = max(np.round((high - low) / 15), 1)
            zero = np.clip(np.round(-low / scale), 0, 15)
            integers = np.clip(np.round(part / scale) + zero, 0, 15)
            np.testing.assert_array_equal(stored(q)[4 * group : 4 * group + 4, j], integers)
            assert np.abs((integers - zero) * scale).max() <= 127  # the second level stays within 8 bits


def test_balanced_has_five_levels_and_the_symmetric_form_three():
    w = column(*np.linspace(-1, 1, 12))
    five = round_matrix(w, bits=2, group=12, scheme="balanced", fit="largest")
    three = round_matrix(w, bits=2, group=12, scheme="symmetric", fit="largest")
    np.testing.assert_allclose(np.unique(dequantize(five)), [-1, -0.5, 0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(np.unique(dequantize(three)), [-1, 0, 1], atol=1e-6)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "centred"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_error_is_at_most_half_a_step(scheme, bits):
    w = jax.random.normal(jax.random.key(0), (32, 4))
    q = round_matrix(w, bits=bits, group=8, scheme=scheme, fit="largest")
    step = np.repeat(np.asarray(q.scales, np.float32), 8, axis=0)
    # Scales are stored in bfloat16, so that the largest weight may lie a little above the largest level.
    most = 0.5 * step + np.abs(w) * 2.0**-8
    assert (np.abs(dequantize(q) - w) <= most).all()


def test_clipping_lowers_the_squared_error_where_there_is_an_outlier():
    w = jnp.concatenate([jax.random.normal(jax.random.key(0), (63, 1)), jnp.full((1, 1), 6.0)])
    errors = {}
    for fit in ("largest", "mse"):
        q = round_matrix(w, bits=4, group=64, scheme="symmetric", fit=fit)
        errors[fit] = float(jnp.square(dequantize(q) - w).sum())
    assert errors["mse"] < errors["largest"]


def test_zeros_stay_zeros():
    for scheme in ("symmetric", "asymmetric", "progressive"):
        q = round_matrix(jnp.zeros((8, 2)), bits=4, group=4, scheme=scheme, fit="largest")
        np.testing.assert_array_equal(dequantize(q), np.zeros((8, 2)))


def test_table_has_one_scale_per_row():
    table = jnp.array([[1.27, -0.5], [0.0, 0.0]])
    q = round_table(table)
    np.testing.assert_allclose(q.scales, [[0.01], [0.0]])
    np.testing.assert_array_equal(q.values, [[127, -50], [0, 0]])
