"""Learners: exact accumulation, guarded updates, LoRA that starts without effect."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prm_jax import rl
from prm_jax.runs.learner import (
    Learner,
    accumulate_gradients,
    guarded_update,
    make_optimizer,
    merge_rows,
    split_rows,
)


def _loss(params, piece):
    x, weight = piece
    return rl.Loss((weight * jnp.square(x @ params)).sum(), weight.sum()), x[:, 0]


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_accumulated_gradient_equals_the_large_batch_when_pieces_have_different_weights(pieces):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 3)).astype(np.float32)
    weight = np.array([1, 0, 0, 0, 3, 2, 5, 1], np.float32)
    params = jnp.asarray(rng.normal(size=3), jnp.float32)
    grads, loss, aux = jax.jit(lambda p: accumulate_gradients(_loss, p, (x, weight), pieces=pieces))(params)
    oracle = sum(2 * w * row * (row @ np.asarray(params)) for w, row in zip(weight, x, strict=True)) / weight.sum()
    np.testing.assert_allclose(grads, oracle, rtol=1e-5)
    np.testing.assert_allclose(loss.mean(), (weight * (x @ np.asarray(params)) ** 2).sum() / weight.sum(), rtol=1e-5)
    np.testing.assert_array_equal(aux, x[:, 0])


def test_averaging_the_means_of_pieces_gives_another_gradient():
    x, weight = np.ones((4, 1), np.float32), np.array([1, 1, 5, 5], np.float32)
    x[2:] = 3.0
    params = jnp.ones(1)
    whole, _, _ = accumulate_gradients(_loss, params, (x, weight), pieces=2)
    halves = [accumulate_gradients(_loss, params, (x[i : i + 2], weight[i : i + 2]))[0] for i in (0, 2)]
    assert abs(float(whole[0]) - float(sum(halves)[0] / 2)) > 1.0


def test_a_batch_without_weight_has_a_zero_gradient():
    grads, loss, _ = accumulate_gradients(_loss, jnp.ones(3), (np.ones((4, 3), np.float32), np.zeros(4, np.float32)))
    np.testing.assert_array_equal(grads, 0.0)
    assert float(loss.mean()) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_non_finite_element_leaves_parameters_and_moments_unchanged(bad):
    optimizer = make_optimizer(0.1)
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    state = optimizer.init(params)
    good = jax.tree.map(jnp.ones_like, params)
    params, state, health = guarded_update(optimizer, good, state, params)
    assert float(health["skipped"]) == 0.0
    grads = {"a": good["a"].at[1].set(bad), "b": good["b"]}
    after, after_state, health = jax.jit(lambda g, s, p: guarded_update(optimizer, g, s, p))(grads, state, params)
    assert float(health["skipped"]) == 1.0
    for old, new in zip(jax.tree.leaves((params, state)), jax.tree.leaves((after, after_state)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_gradient_norm_is_reported_before_clipping():
    optimizer = make_optimizer(0.1, grad_clip=1.0)
    params = jnp.zeros(4)
    _, _, health = guarded_update(optimizer, jnp.full(4, 5.0), optimizer.init(params), params)
    np.testing.assert_allclose(health["grad_norm"], 10.0)


def test_warm_up_starts_above_zero_and_reaches_the_peak():
    optimizer = make_optimizer(1.0, warmup_steps=4, grad_clip=1e9)
    params, sizes = jnp.zeros(1), []
    state = optimizer.init(params)
    for _ in range(6):
        updates, state = optimizer.update(jnp.ones(1), state, params)
        sizes.append(-float(updates[0]))
    np.testing.assert_allclose(sizes, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0], rtol=1e-4)


def test_weight_decay_excludes_norm_scales_and_biases():
    optimizer = make_optimizer(0.1, weight_decay=0.5)
    params = {"norm": {"scale": jnp.ones(2)}, "q": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(new["norm"]["scale"], 1.0)
    np.testing.assert_array_equal(new["q"]["bias"], 1.0)
    np.testing.assert_allclose(new["q"]["kernel"], 0.95)


def test_a_learner_without_adapters_copies_its_start(tiny_config, tiny_params):
    learner = Learner(tiny_config, make_optimizer(1e-3))
    trainable, _ = learner.init(tiny_params, jax.random.key(0))
    for a, b in zip(jax.tree.leaves(trainable), jax.tree.leaves(tiny_params), strict=True):
        assert a.dtype == jnp.float32 and a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("pieces", "ways"), [(1, 1), (3, 1), (2, 4), (3, 2)])
def test_pieces_take_an_equal_share_of_the_rows_of_every_device(pieces, ways):
    rows = jnp.arange(24)
    split = split_rows({"x": rows, "y": rows[:, None] * jnp.ones(2)}, pieces, ways)
    assert split["y"].shape == (pieces, 24 // pieces, 2)
    blocks = np.arange(24).reshape(ways, -1)  # rows on each device
    for piece in np.asarray(split["x"]):
        for block in blocks:
            assert np.isin(piece, block).sum() == 24 // pieces // ways
    np.testing.assert_array_equal(merge_rows(split, ways)["x"], rows)
