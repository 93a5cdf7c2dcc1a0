"""The PRIME step on a mesh: the numbers of one device, with adapters, a critic and pieces of a batch as well."""

import dataclasses

import jax
import numpy as np
import pytest

from prm_jax.models import ModelConfig, init_params
from prm_jax.models.sharding import make_mesh, shard_batch, shard_params, shardings_for
from prm_jax.prime.batch import Frozen
from prm_jax.prime.step import init_state, make_step
from tests.prime.conftest import make_batch, replaced, setup_of

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")]

CONFIG = ModelConfig(
    architecture="qwen2", attention_bias=True, vocab_size=24, hidden_size=32, intermediate_size=48, num_layers=2,
    num_heads=4, num_kv_heads=2, head_dim=8, remat="full",
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(5))


def _two_steps(options, config, params, sizes, *, lora=False):
    """Metrics and rewards of each of two steps on a mesh; None for one device."""
    batch = make_batch(prompts=8, size=2, vocab=config.vocab_size)
    if sizes is not None:
        mesh = make_mesh(*sizes[:3], expert=(*sizes, 1)[3])
        params, batch = shard_params(params, mesh), shard_batch(batch, mesh)
    setup, frozen = setup_of(options, config, params, lora=lora), Frozen(params, params)
    state, shardings = init_state(setup, frozen, jax.random.key(9)), None
    if sizes is not None:
        shardings = shardings_for(state, mesh)
        state = jax.device_put(state, shardings)
    step, found = make_step(setup, shardings=shardings), []
    for _ in range(2):
        state, metrics, rewards = step(state, frozen, batch)
        found.append((jax.device_get(metrics), np.asarray(rewards)))
    return found


@pytest.mark.parametrize(
    ("sizes", "lora", "remat", "groups"),
    [
        ((2, 2, 2), False, "full", {
            "policy": {"microbatches": 2},
            "prm": {"microbatches": 2, "replay": 24, "replay_batches": 2},
        }),
        ((1, 4, 2), True, "full", {}),
        pytest.param((2, 4, 1), False, "none", {"advantage": {"estimator": "ppo"}}, marks=pytest.mark.slow),
        pytest.param((1, 2, 1, 4), False, "none", {"prm": {"balance_coef": 0.1}}, marks=pytest.mark.slow),
    ],
)
def test_rewards_and_gradients_are_those_of_one_device(options, params, sizes, lora, remat, groups):
    changed, config = replaced(options, **groups), dataclasses.replace(CONFIG, remat=remat)
    if len(sizes) > 3:
        config = dataclasses.replace(
            config, architecture="mixtral", attention_bias=False, num_experts=4, experts_per_token=2
        )
        params = init_params(config, jax.random.key(5))
    alone, spread = (_two_steps(changed, config, params, one, lora=lora) for one in (None, sizes))
    np.testing.assert_array_equal(spread[0][1], 0.0)  # the PRM still equals its reference
    for (metrics, rewards), (expected, wanted) in zip(spread, alone, strict=True):
        norms = [name for name in expected if name.endswith(("grad_norm", "loss"))]
        assert {"prm/grad_norm", "policy/grad_norm"} <= set(norms)
        for name in norms:
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
        assert ("policy/expert_load/0" in metrics) == (config.num_experts > 0)
        np.testing.assert_allclose(rewards, wanted, rtol=0, atol=1e-5 * max(np.abs(wanted).max(), 1e-3))
    assert np.abs(alone[1][1]).max() > 0


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rewards_are_exactly_zero_at_first_in_half_precision(options, params, lora):
    half = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    (metrics, first), (_, second) = _two_steps(options, half, params, (2, 2, 2), lora=lora)
    np.testing.assert_array_equal(first, 0.0)
    assert metrics["prm/pairwise_accuracy"] == 0.5 and np.abs(second).max() > 0
