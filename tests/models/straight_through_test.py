"""Rounded weights in the forward pass, and the gradient's mask, by hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models.qtensor import hadamard
from prm_jax.models.straight_through import round_through, trusted

# Root mean square 1: at two bits the levels are +-0.49783 and +-1.4935, a step is 0.99567 wide.
W = jnp.array([[0.2], [-0.9], [1.4], [-2.1], [0.6], [-0.3], [0.1], [-0.5656854]])
LEVELS = [0.4978333, -0.4978333, 1.4935, -1.4935, 0.4978333, -0.4978333, 0.4978333, -0.4978333]


def test_levels_by_hand():
    assert float(jnp.square(W).mean()) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(round_through(W, bits=2, hadamard=False)[:, 0], LEVELS, rtol=1e-5)


def test_the_gradient_stops_where_a_weight_is_clipped_by_more_than_half_a_step():
    weights = jnp.arange(1.0, 9.0)[:, None]
    gradient = jax.grad(lambda w: (weights * round_through(w, bits=2, hadamard=False)).sum())(W)
    # |-1.4935 + 2.1| = 0.6065 > 0.49783; 1.4 and the others are within half a step of their levels.
    expected = np.arange(1.0, 9.0)
    expected[3] = 0
    np.testing.assert_array_equal(gradient[:, 0], expected)
    np.testing.assert_array_equal(trusted(W, 2)[:, 0], expected > 0)


def test_rotated_blocks_are_rounded_and_rotated_back():
    w = jax.random.normal(jax.random.key(0), (8, 3))
    h = hadamard(8)
    np.testing.assert_allclose(round_through(w, bits=4), h @ round_through(h @ w, bits=4, hadamard=False), atol=1e-5)
    gradient = jax.grad(lambda w: (round_through(w, bits=4) ** 2).sum())(w)
    inner = 2 * h @ round_through(w, bits=4) * trusted(h @ w, 4)
    np.testing.assert_allclose(gradient, h @ inner, atol=1e-5)


def test_zeros_stay_and_learn():
    zeros = jnp.zeros((4, 2))
    np.testing.assert_array_equal(round_through(zeros, bits=4), zeros)
    gradient = jax.grad(lambda w: round_through(w, bits=4, hadamard=False).sum())(zeros)
    np.testing.assert_array_equal(gradient, np.ones((4, 2)))
