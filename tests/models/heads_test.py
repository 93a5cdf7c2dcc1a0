import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.models import init_value_head, value_head

from .transformer_test import LLAMA

HIDDEN = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_new_head_outputs_zero_and_has_the_documented_shapes(layers):
    head = init_value_head(LLAMA, jax.random.key(0), num_outputs=4, layers=layers)
    found = value_head(head, HIDDEN)
    assert found.shape == (2, 5, 4) and found.dtype == jnp.float32 and not found.any()
    assert [head[f"layer_{i}"]["kernel"].shape for i in range(layers)] == [(16, 16)] * (layers - 1) + [(16, 4)]


def test_values_match_explicit_layers():
    head = init_value_head(LLAMA, jax.random.key(0), num_outputs=3, layers=3)
    rng = np.random.default_rng(1)
    head = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32), head)
    x = HIDDEN.astype(np.float64)
    for i in range(3):
        layer = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), head[f"layer_{i}"])
        x = x @ layer["kernel"] + layer["bias"]
        x = x / (1 + np.exp(-x)) if i < 2 else x
    np.testing.assert_allclose(value_head(head, HIDDEN), x, rtol=2e-5, atol=2e-4)
    half = value_head(head, HIDDEN.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_array_equal(half, value_head(head, HIDDEN.astype(jnp.bfloat16).astype(np.float32)))


def test_a_new_head_learns_though_it_starts_at_zero():
    """Only the last layer gets a gradient at first; the hidden states get theirs one step later."""
    head = init_value_head(LLAMA, jax.random.key(0), layers=2)

    def loss(head, hidden):
        return ((value_head(head, hidden)[..., 0] - 1.0) ** 2).mean()

    by_head, by_hidden = jax.grad(loss, argnums=(0, 1))(head, HIDDEN)
    assert np.abs(by_head["layer_1"]["kernel"]).max() > 0 and not by_head["layer_0"]["kernel"].any()
    assert not by_hidden.any()
    for _ in range(50):
        gradient = jax.jit(jax.grad(loss))(head, HIDDEN)
        head = jax.tree.map(lambda p, g: p - 0.3 * g, head, gradient)
    assert loss(head, HIDDEN) < 0.02


@pytest.mark.parametrize("fields", [{"layers": 0}, {"num_outputs": 0}])
def test_empty_heads_are_refused(fields):
    with pytest.raises(ValueError, match="must be at least 1"):
        init_value_head(LLAMA, jax.random.key(0), **fields)
