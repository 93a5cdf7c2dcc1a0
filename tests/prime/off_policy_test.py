"""Corrections for the sampler in the policy's update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import rl
from prm_jax.errors import UserError
from prm_jax.prime.batch import State
from prm_jax.prime.checks import check_options
from prm_jax.prime.off_policy import resolved
from prm_jax.prime.options import OffPolicyOptions, Options
from tests.compiled import token_logprobs
from tests.prime.conftest import inputs_of, make_batch, replaced, setup_of


def update(options, off_policy, config, params, frozen, batch, advantages):
    """(new policy, metrics) of one update."""
    setup = setup_of(replaced(options, advantage={"process_coef": 0.0}), config, params, source=None)
    phase = dataclasses.replace(setup.policy, off_policy=off_policy)
    state = phase.learner.init(params, jax.random.key(0))
    inputs = dataclasses.replace(inputs_of(batch, jnp.zeros(batch.mask.shape)), behaviour_logp=batch.behaviour_logp)

    def run(policy, opt):
        whole = State(policy, opt, None, None, None, jnp.zeros((), jnp.int32))
        old = phase.old_logp(whole, frozen, batch)
        return phase.update(whole, frozen, batch, advantages, inputs, old)

    policy, _, metrics = jax.jit(run)(*state)
    return policy, metrics


@pytest.fixture(scope="module")
def case(tiny_config, tiny_params):
    batch = make_batch(prompts=2)
    logp = token_logprobs(tiny_config, tiny_params, batch.tokens, batch.mask)
    noise = np.where(batch.mask, np.random.default_rng(3).normal(size=batch.mask.shape), 0.0)
    advantages = jnp.asarray(np.random.default_rng(4).normal(size=batch.mask.shape), jnp.float32)
    return batch, np.asarray(logp), np.asarray(logp + noise, np.float32), advantages


def test_a_sampler_that_is_the_trainer_changes_nothing(options, tiny_config, tiny_params, tiny_frozen, case):
    batch, logp, _, advantages = case
    given = dataclasses.replace(batch, behaviour_logp=logp)
    arguments = (tiny_config, tiny_params, tiny_frozen)
    plain, before = update(options, OffPolicyOptions(weights="none"), *arguments, batch, advantages)
    assert "policy/mismatch_kl" not in before
    for off_policy in (OffPolicyOptions(weights="token"), OffPolicyOptions("bypass", "none")):
        policy, metrics = update(options, off_policy, *arguments, given, advantages)
        for a, b in zip(jax.tree.leaves(policy), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
        assert metrics["policy/mismatch_kl"] < 1e-6 and metrics["policy/effective_samples"] == pytest.approx(1.0)


@pytest.mark.heavy
def test_decoupled_weights_and_bypass_are_the_losses_that_they_name(
    options, tiny_config, tiny_params, tiny_frozen, case
):
    batch, logp, behaviour, advantages = case
    given = dataclasses.replace(batch, behaviour_logp=behaviour)
    arguments = (tiny_config, tiny_params, tiny_frozen, given, advantages)
    halves = replaced(options, policy={"microbatches": 2})
    for level, action in (("token", "truncate"), ("sequence", "mask"), ("geometric", "truncate")):
        off_policy = OffPolicyOptions(weights=level, action=action, high=1.5)
        weights, _, sums = rl.sampler_weights(logp, behaviour, batch.mask, level=level, action=action, high=1.5)
        expected = rl.clipped_surrogate(logp, logp, advantages, batch.mask, token_weights=weights).mean()
        for chosen in (options, halves):
            _, metrics = update(chosen, off_policy, *arguments)
            np.testing.assert_allclose(metrics["policy/loss"], expected, rtol=1e-4, atol=1e-6)
            for name, value in rl.mismatch_metrics(sums).items():
                np.testing.assert_allclose(metrics[f"policy/{name}"], value, rtol=1e-3, atol=1e-6)
    _, metrics = update(options, OffPolicyOptions("bypass", "none"), *arguments)
    expected = rl.clipped_surrogate(logp, behaviour, advantages, batch.mask)
    np.testing.assert_allclose(metrics["policy/loss"], expected.mean(), rtol=1e-4)
    assert metrics["policy/clip_fraction"] > 0.1


def test_rows_that_do_not_count_have_no_weight_and_unknown_log_probabilities_weigh_one(
    options, tiny_config, tiny_params, tiny_frozen, case
):
    batch, _, behaviour, advantages = case
    nothing = dataclasses.replace(batch, behaviour_logp=behaviour, keep=np.zeros(len(batch.keep), bool))
    arguments = (tiny_config, tiny_params, tiny_frozen)
    policy, metrics = update(options, OffPolicyOptions(weights="token"), *arguments, nothing, advantages)
    assert metrics["policy/loss"] == 0.0 and metrics["policy/mismatch_kl"] == 0.0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(policy))
    unknown = dataclasses.replace(batch, behaviour_logp=np.full_like(behaviour, np.nan))
    _, metrics = update(options, OffPolicyOptions(weights="token"), *arguments, unknown, advantages)
    _, plain = update(options, OffPolicyOptions(weights="none"), *arguments, batch, advantages)
    np.testing.assert_allclose(metrics["policy/loss"], plain["policy/loss"], rtol=1e-6)


def test_auto_weights_a_sampler_that_computes_something_else():
    exact = Options()
    assert resolved(exact).weights == "none"
    changes = ({"rollout": {"top_p": 0.9}}, {"rollout": {"max_lag": 1}}, {"model": {"compute_dtype": "bfloat16"}})
    assert all(resolved(replaced(exact, **change)).weights == "token" for change in changes)
    chosen = replaced(exact, rollout={"top_k": 5}, off_policy={"weights": "none"})
    assert resolved(chosen).weights == "none"


def test_options_that_contradict_each_other():
    options = replaced(Options(), off_policy={"low": 3.0, "objective": "bypass", "weights": "token"})
    with pytest.raises(UserError) as error:
        check_options(options)
    assert "--off-policy.low 3.0 is greater" in str(error.value) and "leave the weights out" in str(error.value)
