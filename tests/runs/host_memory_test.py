"""Optimiser states in host memory, and states that are made where they stay."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import LoRAConfig, make_mesh, shardings_for
from prm_jax.runs.checkpoint import Checkpointer
from prm_jax.runs.host_memory import Places, check_host_memory, in_host_memory, offloaded, on_device, on_host
from prm_jax.runs.learner import Learner, guarded_update, make_optimizer
from prm_jax.runs.update_in_turn import owners_of


def kinds(tree) -> set[str]:
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def arrays(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same_bits(a, b) -> None:
    for x, y in zip(arrays(a), arrays(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_backend_without_host_memory_is_refused_by_name():
    device = types.SimpleNamespace(platform="tin", addressable_memories=lambda: [types.SimpleNamespace(kind="device")])
    with pytest.raises(UserError, match=r"--prm.offload: .*'tin' does not have \(it has device\).*int8"):
        check_host_memory({"--prm.offload": "float32"}, device)
    check_host_memory({}, device)
    check_host_memory({"--prm.offload": "int8"}, jax.devices()[0])
    tpu = types.SimpleNamespace(
        platform="tpu", addressable_memories=lambda: [types.SimpleNamespace(kind="pinned_host")]
    )
    check_host_memory({"--prm.offload": "bfloat16", "--model.offload-reference": ""}, tpu)
    with pytest.raises(UserError, match=r"^--prm.offload: the TPU compiler cannot copy 8-bit arrays"):
        check_host_memory({"--policy.offload": "bfloat16", "--prm.offload": "int8"}, tpu)


@pytest.fixture(scope="module")
def small_params():
    kernel = jnp.sin(jnp.arange(2 * 32 * 64.0)).reshape(2, 32, 64)
    return {"layers": {"mlp": {"up": {"kernel": kernel}}}, "final_norm": {"scale": jnp.ones(64)}}


@pytest.mark.parametrize(
    ("moments", "mesh_sizes"), [("bfloat16", None), ("int8", None), ("float32", (1, 2, 2)), ("int8", (1, 2, 2))]
)
def test_updates_of_an_offloaded_state_are_those_of_another_and_of_a_restored_one_bit_for_bit(
    tiny_config, small_params, tmp_path, moments, mesh_sizes
):
    mesh = None if mesh_sizes is None else make_mesh(*mesh_sizes)
    base = small_params if mesh is None else jax.device_put(small_params, shardings_for(small_params, mesh))
    found = {}
    for offload in (False, True):
        learner = Learner(tiny_config, make_optimizer(1e-2, moments=moments), offload=offload)
        params, opt = learner.init(base, jax.random.key(0))
        assert kinds(params) == {"device"}
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(opt) if leaf.ndim} == {
            "pinned_host" if offload else "device"
        }
        if mesh is not None:  # made in shards, like the parameters
            assert [x.sharding.spec for x in jax.tree.leaves(opt)] == [
                s.spec for s in jax.tree.leaves(shardings_for(opt, mesh))
            ]

        @jax.jit
        def step(params, opt, scale, learner=learner):
            grads = jax.tree.map(lambda p: scale * jnp.cos(7 * p), params)
            return guarded_update(learner.optimizer, grads, opt, params)

        params, opt, _ = step(params, opt, 1.0)
        places = Places(mesh).shardings(jax.eval_shape(lambda o: o, opt))
        places = offloaded(places, opt) if offload else places
        with Checkpointer(tmp_path / str(offload)) as checkpointer:
            checkpointer.save(1, {"params": params, "opt": opt}, wait=True)
            target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), opt, places)
            restored = checkpointer.restore({"params": params, "opt": target}).state
        assert kinds(restored["opt"]) == kinds(opt)
        after = step(params, opt, 0.5)
        assert_same_bits(after, step(restored["params"], restored["opt"], 0.5))
        assert kinds(after[1]) == kinds(opt)
        found[offload] = after
    for x, y in zip(arrays(found[False]), arrays(found[True]), strict=True):
        assert x.dtype == y.dtype
        if x.dtype in (np.int8, np.uint8):  # rounding of the last bit decides between two codes
            assert np.mean(x == y) > 0.99
        else:
            np.testing.assert_allclose(x.astype(np.float32), y.astype(np.float32), rtol=1e-5, atol=1e-7)


def test_which_parameter_each_array_of_a_state_belongs_to():
    names = ["head/kernel", "kernel", "bias"]
    state = ["1/0/count", "1/0/mu/head/kernel", "1/0/mu/kernel", "1/0/nu/bias", "kernel"]
    assert owners_of(state, names) == [None, 0, 1, 2, 1]


def test_a_skipped_update_leaves_an_offloaded_state_as_it_is(tiny_config, small_params):
    learner = Learner(tiny_config, make_optimizer(1e-2, moments="int8"), offload=True)
    params, opt = learner.init(small_params, jax.random.key(0))
    grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    update = jax.jit(lambda *args: guarded_update(learner.optimizer, *args))
    after, after_opt, health = update(grads, opt, params)
    assert float(health["skipped"]) == 1.0
    assert_same_bits((params, opt), (after, after_opt))


def test_adapters_start_from_a_base_in_host_memory(tiny_config, tiny_params):
    learner = Learner(tiny_config, make_optimizer(1e-2), LoRAConfig(rank=2, alpha=16.0))
    base = on_host(tiny_params)
    assert all(map(in_host_memory, jax.tree.leaves(base)))
    assert_same_bits(on_device(base), tiny_params)
    trainable, opt = learner.init(base, jax.random.key(3))
    assert kinds((trainable, opt)) == {"device"}
    assert_same_bits(trainable, jax.jit(lambda b: learner.init(b, jax.random.key(3))[0])(tiny_params))
