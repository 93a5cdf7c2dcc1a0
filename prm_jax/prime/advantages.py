"""From shaped process rewards and outcomes to advantages: credit assignment and estimators, composed by options.

Estimators: PRIME's equation 5 (arXiv 2502.01456) and its released form, GRPO, lambda-GRPO (arXiv 2509.21154),
REINFORCE, PPO. Credit: reward-to-go; the step's own reward; cumulative (SPRO, arXiv 2507.01551); minimum form (PURE,
arXiv 2504.15275); value differences (VinePPO, arXiv 2410.01679).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.prime.advantage_options import AdvantageOptions
from prm_jax.prime.batch import RewardInputs
from prm_jax.prime.checked import checked_rewards
from prm_jax.resolve import check_signature, resolve

AdvantageFn = Callable[[jax.Array, RewardInputs], jax.Array]
"""``(process rewards [B, T] after shaping, inputs) -> advantages [B, T]``, traced into the training step."""


def make_advantage(options: AdvantageOptions) -> AdvantageFn:
    """The advantage function of some options.

    Raises:
      UserError: an unknown estimator (the nearest is suggested), or a function that cannot take (rewards, inputs).
    """
    if options.estimator not in ESTIMATORS:
        function: AdvantageFn = resolve(
            options.estimator, cast(Any, ESTIMATORS), "estimator", option="advantage.estimator"
        )
        check_signature(function, ("rewards", "inputs"), f"estimator {options.estimator}")
        return checked_rewards(function, f"the estimator {options.estimator}")
    if options.estimator == "ppo":
        return lambda rewards, inputs: _ppo(options, rewards, inputs)
    if options.credit == "return":
        return lambda rewards, inputs: ESTIMATORS[options.estimator](options, rewards, inputs)
    return lambda rewards, inputs: _local(options, rewards, inputs)


def scaled_rewards(options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    """process_coef * gate * normalised rewards, [B, T]; exactly 0 in outcome-only training."""
    if options.process_coef == 0.0:
        return jnp.zeros(inputs.mask.shape, jnp.float32)
    return options.process_coef * inputs.gate * _normalized(options, rewards, inputs.counted)


def value_targets(options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    """Targets [B, T] of the critic: generalised advantages + values, before whitening."""
    assert inputs.values is not None
    return jax.lax.stop_gradient(_gae(options, rewards, inputs) + inputs.values)


def critic_rewards(options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    """Rewards [B, T] whose returns the critic predicts: shaped process rewards, penalty, and the outcome at the end."""
    outcome = rl.outcome_token_rewards(jnp.asarray(inputs.outcome, jnp.float32), inputs.counted)
    return _shaped(options, rewards, inputs) + options.outcome_coef * outcome


def _normalized(options: AdvantageOptions, rewards: jax.Array, mask: jax.Array) -> jax.Array:
    if options.normalizer == "return":
        return rl.normalize_by_return(rewards, mask)
    if options.normalizer == "deviation":
        # About 0: rewards that are all equal, such as a checker's, have no deviation about their mean.
        rewards = jnp.where(mask, rewards, 0.0)
        square = jnp.square(rewards).sum() / jnp.maximum((rewards != 0).sum(), 1)
        return rewards / (jnp.sqrt(square) + 1e-6)
    return rewards


def _shaped(options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    dense = scaled_rewards(options, rewards, inputs)
    return dense if inputs.penalty is None else dense + inputs.penalty


def _rloo(
    options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs, variant: Literal["paper", "released"]
) -> jax.Array:
    return rl.rloo_advantages(
        _shaped(options, rewards, inputs), inputs.outcome, inputs.counted, inputs.group_ids,
        num_groups=inputs.num_groups, variant=variant, outcome_coef=options.outcome_coef, discount=options.discount,
        whiten=options.whiten,
    )  # fmt: skip


def _by_parts(
    options: AdvantageOptions,
    rewards: jax.Array,
    inputs: RewardInputs,
    part: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """outcome_coef * part(0, outcome) + process_coef * gate * part(rewards, 0) + return of the penalty.

    Equation 7 adds two parts that are each divided by their own deviation, so that coefficients and the gate must be
    applied after it.
    """
    advantages = options.outcome_coef * part(jnp.zeros(inputs.mask.shape, jnp.float32), inputs.outcome)
    if options.process_coef != 0.0:
        advantages += options.process_coef * inputs.gate * part(rewards, jnp.zeros_like(inputs.outcome))
    if inputs.penalty is not None:
        advantages += rl.discounted_returns(inputs.penalty, inputs.counted, discount=options.discount)
    return advantages


def _grpo(options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    def part(dense: jax.Array, outcome: jax.Array) -> jax.Array:
        return rl.grpo_advantages(
            dense, outcome, inputs.counted, inputs.group_ids, num_groups=inputs.num_groups, discount=options.discount
        )

    return _by_parts(options, rewards, inputs, part)


def _lambda_grpo(options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    def part(dense: jax.Array, outcome: jax.Array) -> jax.Array:
        return rl.lambda_grpo_advantages(
            dense, outcome, inputs.tokens, inputs.counted, inputs.group_ids, num_groups=inputs.num_groups,
            discount=options.discount,
        )  # fmt: skip

    return _by_parts(options, rewards, inputs, part)


def _reinforce(options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    return rl.reinforce_advantages(
        _shaped(options, rewards, inputs), inputs.outcome, inputs.counted, outcome_coef=options.outcome_coef,
        discount=options.discount,
    )  # fmt: skip


def _gae(options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    assert inputs.values is not None
    total = critic_rewards(options, rewards, inputs)
    return rl.generalized_advantages(
        total, inputs.values, inputs.counted, discount=options.discount, lambda_=options.gae_lambda
    )


def _ppo(options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    advantages = _gae(options, rewards, inputs)
    return rl.whiten(advantages, inputs.counted) if options.whiten else advantages


ESTIMATORS: dict[str, Callable[[AdvantageOptions, jax.Array, RewardInputs], jax.Array]] = {
    "rloo": lambda options, rewards, inputs: _rloo(options, rewards, inputs, "paper"),
    "rloo_released": lambda options, rewards, inputs: _rloo(options, rewards, inputs, "released"),
    "grpo": _grpo,
    "lambda_grpo": _lambda_grpo,
    "reinforce": _reinforce,
    "ppo": _ppo,
}
"""Built-in name -> (options, rewards, inputs) -> advantages with reward-to-go credit."""


# ----------------------------------------------------------------------------------------- local credit


def credit_of(options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    """What each token is credited with, [B, T], uncentred: see ``prm_jax.rl`` for the forms.

    `rewards` are normalised already; with credit "value" they are values after each step.
    """
    ids, steps = inputs.step_ids, inputs.num_steps
    match options.credit:
        case "step":
            return rl.step_credit(rewards, ids, num_steps=steps)
        case "cumulative":
            return rl.cumulative_credit(rewards, ids, num_steps=steps)
        case "min":
            return rl.min_credit(rewards, ids, inputs.mask, num_steps=steps, temperature=options.min_temperature)
        case "value":
            values, _ = rl.step_rewards(rewards, ids, num_steps=steps, how="sum")
            return rl.value_credit(values, inputs.initial_value, ids, num_steps=steps)
        case "return":
            return rl.discounted_returns(rewards, inputs.counted, discount=options.discount)


def _local(options: AdvantageOptions, rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
    """Outcome advantages of the estimator + process_coef * gate * centred credit."""
    outcome_only = jnp.zeros(inputs.mask.shape, jnp.float32)
    plain = _without_process(options)
    advantages = ESTIMATORS[options.estimator](plain, outcome_only, inputs)
    if options.process_coef != 0.0:
        # Values are on the scale of the outcome, and a scale would not leave their differences what they are.
        known = rewards if options.credit == "value" else _normalized(options, rewards, inputs.counted)
        credit = credit_of(options, known, inputs)
        centred = rl.centred_credit(
            credit, inputs.step_ids, inputs.counted, inputs.group_ids, num_groups=inputs.num_groups,
            num_steps=inputs.num_steps, baseline=_baseline(options), scale=options.estimator in ("grpo", "lambda_grpo"),
        )  # fmt: skip
        advantages += options.process_coef * inputs.gate * centred
    if options.whiten and options.estimator in ("rloo", "rloo_released"):
        advantages = rl.whiten(advantages, inputs.counted)
    return advantages


def _without_process(options: AdvantageOptions) -> AdvantageOptions:
    return dataclasses.replace(options, process_coef=0.0, whiten=False)


def _baseline(options: AdvantageOptions) -> Literal["group", "leave_one_out", "step", "none"]:
    if options.credit == "value" or options.estimator == "reinforce":
        return "none"  # a difference of values is centred already
    if options.credit == "cumulative":
        return "step"
    return "group" if options.estimator in ("grpo", "lambda_grpo") else "leave_one_out"
