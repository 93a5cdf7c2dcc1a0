"""Rewards, groups and values at the edges: equal rewards, minibatches, failed verdicts, cut responses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import rl
from prm_jax.prime.batch import Frozen
from prm_jax.prime.collect import to_batch
from prm_jax.prime.shaping import make_reward
from prm_jax.prime.sources import PrefixValues
from prm_jax.prime.step import advantage_phase, init_state, make_step
from tests.prime.conftest import advantages_of, inputs_of, replaced, setup_of
from tests.prime.parts_test import fake_responses


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_the_deviation_normalizer_does_not_blow_up_rewards_that_are_all_equal(options, batch, scale):
    """A checker gives -1 to the first wrong step of some responses, so that all rewards other than 0 are equal."""
    rewards = np.zeros(batch.mask.shape, np.float32)
    rewards[::3, 3] = -scale
    advantage = dataclasses.replace(options.advantage, normalizer="deviation", estimator="reinforce", outcome_coef=0.0)
    found = np.asarray(advantages_of(advantage, batch, rewards))
    np.testing.assert_allclose(found[::3, 3], -1.0, rtol=2e-2)


def test_a_policy_loss_of_groups_sees_all_groups_in_a_minibatch(options, tiny_config, tiny_frozen, batch):
    """Two prompts with two samples each leave a minibatch of 2 rows whose group is number 3."""
    seen = []

    def loss(logp, old_logp, advantages, inputs):
        seen.append((inputs.mask.shape[0], inputs.num_groups))
        mean = jax.ops.segment_sum(inputs.outcome, inputs.group_ids, inputs.num_groups)[inputs.group_ids]
        total = jnp.where(inputs.counted, logp * mean[:, None], 0.0).sum()
        return rl.Loss(total, inputs.counted.sum().astype(jnp.float32), {})

    few = jax.tree.map(lambda x: x[:8], batch)
    few = dataclasses.replace(few, group_ids=np.repeat(np.arange(4, dtype=np.int32), 2), outcome=np.ones(8, np.float32))
    changed = replaced(options, policy={"minibatches": 4}, advantage={"process_coef": 0.0})
    setup = setup_of(changed, tiny_config, tiny_frozen.reference)
    setup = dataclasses.replace(setup, policy=dataclasses.replace(setup.policy, loss=loss))
    state = init_state(setup, tiny_frozen, jax.random.key(0))
    _, metrics, _ = make_step(setup)(state, Frozen(tiny_frozen.reference), few)
    assert set(seen) == {(2, 8)} and metrics["policy/grad_norm"] > 0


def test_without_process_rewards_a_function_from_outside_gets_zeros_whatever_the_shaping(options, batch):
    changed = replaced(
        options, advantage={"process_coef": 0.0}, reward={"shaping": ("clip",), "clip_threshold": 0.1}
    )
    seen = []
    setup = setup_of(changed, None, None)
    setup = dataclasses.replace(setup, advantage=lambda rewards, inputs: seen.append(rewards) or rewards)
    rewards, _, _ = advantage_phase(setup, inputs_of(batch, np.zeros(batch.mask.shape, np.float32)))
    np.testing.assert_array_equal(rewards, 0.0)
    np.testing.assert_array_equal(seen[0], 0.0)
    assert np.abs(make_reward(changed.reward)(inputs_of(batch, rewards))).max() > 0, "the shaping alone makes some"


def test_failed_verdicts_do_not_lower_a_solve_rate():
    responses = fake_responses([[1, 1, 0, 0], [0, 0, 0, 0]])
    usable = np.array([True, True, True, False, False, False, False, False])
    responses = dataclasses.replace(responses, usable=usable)
    np.testing.assert_allclose(responses.solve_rates(), [2 / 3, 0.0])
    assert responses.solve_rates().dtype == np.float32


def test_a_response_that_was_cut_off_is_worth_its_outcome_and_needs_no_rollouts():
    """Nothing can follow it: a completion would be the same response."""
    responses = dataclasses.replace(fake_responses([[0.0, 0.0]]), finished=np.array([False, False]))
    responses = dataclasses.replace(responses, outcome=np.array([0.0, 1.0], np.float32))
    found = PrefixValues(rollouts=4).observe(responses, None, None, jax.random.key(0))
    assert found.sampled == 0
    np.testing.assert_array_equal(found.process, [[0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(found.initial_value, 0.5)
    assert to_batch(responses, np.ones(1, bool), process=found.process).process is found.process
