"""Adam's moments in 8 bits: errors of the code, rounding without bias, learning curves, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prm_jax.models import make_mesh, shardings_for
from prm_jax.runs.eight_bit_adam import FIRST_STEPS, SECOND_STEPS, decode, encode, is_coded, scale_by_adam_8bit
from prm_jax.runs.learner import make_optimizer

CODES = {True: FIRST_STEPS, False: SECOND_STEPS}


def numbers(signed: bool) -> jax.Array:
    """[16, 64] over six orders of magnitude, with zeros."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(-12, 0, (16, 64))) * np.exp(rng.normal(size=(16, 1)))
    size[3, :5] = 0.0
    return jnp.asarray(size * (rng.choice([-1, 1], size.shape) if signed else 1), jnp.float32)


@pytest.mark.parametrize("signed", [True, False])
class TestCode:
    def test_relative_error_and_mean(self, signed):
        x, steps = numbers(signed), CODES[signed]
        uniform = (jnp.arange(256, dtype=jnp.float32)[:, None, None] + 0.5) / 256
        code, scale = jax.vmap(lambda u: encode(x, jnp.broadcast_to(u, x.shape), steps=steps, signed=signed))(uniform)
        assert code.dtype == (jnp.int8 if signed else jnp.uint8) and scale.shape == (256, 16, 1)
        found = np.asarray(decode(code, scale, steps=steps, signed=signed))
        exact = np.asarray(x)
        assert (found[:, exact == 0] == 0).all() and (np.sign(found) == np.sign(exact)).all()
        error = np.abs(found - exact)[:, exact != 0] / np.abs(exact[exact != 0])
        assert error.max() < 2 ** (1 / steps) - 1 + 1e-4
        np.testing.assert_allclose(found.mean(axis=0), exact, rtol=2e-3)

    def test_what_is_on_the_grid_stays(self, signed):
        steps = CODES[signed]
        first = decode(*encode(numbers(signed), jnp.full((16, 64), 0.3), steps=steps, signed=signed),
                       steps=steps, signed=signed)  # fmt: skip
        for uniform in (0.001, 0.999):
            again = encode(first, jnp.full((16, 64), uniform), steps=steps, signed=signed)
            np.testing.assert_allclose(decode(*again, steps=steps, signed=signed), first, rtol=1e-4)

    def test_rows_of_zeros_and_very_small_numbers(self, signed):
        steps = CODES[signed]
        x = jnp.zeros((2, 16)).at[1].set(1e-12).at[1, 0].set(1.0)
        for uniform in (0.2, 0.99):
            code, scale = encode(x, jnp.full(x.shape, uniform), steps=steps, signed=signed)
            found = np.asarray(decode(code, scale, steps=steps, signed=signed))
            np.testing.assert_array_equal(found[0], 0.0)
            assert np.isfinite(found).all() and found[1, 0] == 1.0
            # A second moment that came out as 0 would make an update of any size.
            assert (found[1, 1:] == 0).all() if signed else (found[1, 1:] > 0).all()


def test_bytes_of_the_state_and_what_stays_in_float32():
    shapes = {"kernel": (64, 128), "bias": (5000,), "small": (8, 16), "thin": (4096, 2)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    state = scale_by_adam_8bit().init(params)
    assert [is_coded(x) for x in params.values()] == [True, False, False, False]
    moments = {name: sum(part[name].nbytes for part in state[1:]) for name in params}
    assert moments["kernel"] == 64 * 128 * 2 + 64 * 2 * 4
    assert moments["bias"] == 8 * 5000 + 8 and state.mu["thin"].dtype == jnp.float32


def curve(moments: str, *, steps: int = 150) -> np.ndarray:
    """Losses of a small regression."""
    key = jax.random.key(0)
    target = jax.random.normal(key, (32, 128))
    optimizer = make_optimizer(3e-3, beta2=0.95, moments=moments)
    params = {"a": 0.1 * jax.random.normal(key, (32, 128)), "b": 0.1 * jax.random.normal(key, (128, 128))}

    def loss(params, x):
        return jnp.square(jnp.tanh(x @ params["a"]) @ params["b"] - jnp.tanh(x @ target)).mean()

    def step(carry, index):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, jax.random.normal(jax.random.fold_in(key, index), (64, 32)))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    return np.asarray(jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps)))((params, optimizer.init(params)))[1])


@pytest.mark.parametrize("moments", ["bfloat16", "int8"])
def test_the_curve_is_that_of_float32_moments_within_two_percent(moments):
    exact, found = curve("float32"), curve(moments)
    assert exact[-20:].mean() < 0.5 * exact[0]
    np.testing.assert_allclose(found[-20:].mean(), exact[-20:].mean(), rtol=0.02)
    assert not np.array_equal(found, exact)


def test_a_state_over_a_mesh_is_split_like_the_parameters_and_gives_the_same_updates():
    mesh = make_mesh(1, 2, 2)
    rng = np.random.default_rng(1)
    shape = (2, 32, 64)
    params = {"layers": {"mlp": {"up": {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}}}}
    grads = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params) for _ in range(3)]
    optimizer = make_optimizer(1e-2, moments="int8")

    def run(params, grads, shardings=None):
        update = jax.jit(optimizer.update, out_shardings=shardings)
        state = optimizer.init(params)
        for grad in grads:
            updates, state = update(grad, state, params)
        return updates, state

    alone = run(params, grads)
    places = shardings_for(alone, mesh)
    over = run(jax.device_put(params, shardings_for(params, mesh)), grads, places)
    state = over[1][1][0]
    specs = [jax.tree.leaves(part)[0].sharding.spec for part in (state.mu, state.nu)]
    assert specs == [jax.sharding.PartitionSpec(None, "fsdp", "tensor")] * 2
    np.testing.assert_allclose(*(jax.tree.leaves(x[0])[0] for x in (alone, over)), rtol=1e-4, atol=1e-7)
    codes = [np.asarray(jax.tree.leaves(x[1][1][0].mu)[0]) for x in (alone, over)]
    assert np.mean(codes[0] == codes[1]) > 0.99
