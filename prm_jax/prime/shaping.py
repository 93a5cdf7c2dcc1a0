"""Shaping: what is done to process rewards before credit is assigned, as functions that compose in any order.

Clip and Delta: arXiv 2410.15115. Progress under a prover: arXiv 2410.08146. Minimum form: arXiv 2504.15275. Confidence:
arXiv 2410.09724. Under a verifier: arXiv 2409.12122.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.prime.batch import RewardInputs
from prm_jax.prime.checked import checked_rewards
from prm_jax.prime.options import RewardOptions
from prm_jax.resolve import check_signature, resolve

Shaping = Callable[[jax.Array, RewardInputs], jax.Array]
"""``(rewards [B, T], inputs) -> rewards [B, T]``, traced into the training step."""

RewardFn = Callable[[RewardInputs], jax.Array]
"""``inputs -> process rewards [B, T] after shaping``; starts from ``inputs.process``."""


def make_reward(options: RewardOptions) -> RewardFn:
    """The reward function of some options: granularity, then each shaping in the order given."""
    shapings = [make_shaping(name, options) for name in options.shaping]

    def reward(inputs: RewardInputs) -> jax.Array:
        rewards = inputs.process
        if options.granularity == "step":
            rewards = per_step(lambda steps, mask: steps)(rewards, inputs)
        for shaping in shapings:
            rewards = shaping(rewards, inputs)
        return rewards

    return reward


def make_shaping(name: str, options: RewardOptions) -> Shaping:
    """A shaping by name, or ``package.module:function``.

    Raises:
      UserError: an unknown name (the nearest is suggested), or a function that cannot take (rewards, inputs).
    """
    if name in SHAPINGS:
        return SHAPINGS[name](options)
    function: Shaping = resolve(name, cast(Any, SHAPINGS), "reward shaping", option="reward.shaping")
    check_signature(function, ("rewards", "inputs"), f"reward shaping {name}")
    return checked_rewards(function, f"the reward shaping {name}")


def per_step(change: Callable[[jax.Array, jax.Array], jax.Array]) -> Shaping:
    """A shaping from a function of step rewards.

    Args:
      change: ``(step rewards [B, S], step mask [B, S]) -> step rewards [B, S]``.

    Returns:
      A shaping that sums the rewards of each step, changes them, and puts each result on its step's last token.
    """

    def shaping(rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
        steps, mask = rl.step_rewards(rewards, inputs.step_ids, num_steps=inputs.num_steps, how="sum")
        return rl.token_rewards_from_steps(change(steps, mask), inputs.step_ids)

    return shaping


def clip(options: RewardOptions) -> Shaping:
    """min(r - threshold, 0): a step can only lose, so that padding a response with good steps gains nothing."""
    return per_step(lambda steps, mask: rl.clip_rewards(steps, mask, threshold=options.clip_threshold))


def delta(options: RewardOptions) -> Shaping:
    """r_k - r_{k+1}: returns telescope, so that their sum does not grow with the number of steps."""
    del options
    return per_step(rl.delta_rewards)


def progress(options: RewardOptions) -> Shaping:
    """V_k - V_{k-1}: what each step changed in the value under the prover that computed the rewards.

    With ``--reward.progress-alpha`` a, the step's own value is added: V_k + a * progress.
    """

    def shaping(rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
        steps, mask = rl.step_rewards(rewards, inputs.step_ids, num_steps=inputs.num_steps, how="sum")
        changed = rl.progress_rewards(steps, inputs.initial_value, mask)
        if options.progress_alpha is not None:
            changed = jnp.where(mask, rl.effective_rewards(steps, changed, alpha=options.progress_alpha), 0.0)
        return rl.token_rewards_from_steps(changed, inputs.step_ids)

    return shaping


def minimum(options: RewardOptions) -> Shaping:
    """Only the least step reward of a response counts, at its step; ties count once, at the first."""
    del options

    def least(steps: jax.Array, mask: jax.Array) -> jax.Array:
        place = jnp.argmin(jnp.where(mask, steps, jnp.inf), axis=-1)
        here = (jnp.arange(steps.shape[-1]) == place[:, None]) & mask
        return jnp.where(here, steps, 0.0)

    return per_step(least)


def confidence(options: RewardOptions) -> Shaping:
    """Rewards a stated confidence where the response is better than the batch's mean, and punishes it elsewhere.

    The change in the response's total reward is put on its last token.
    """

    def shaping(rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
        assert inputs.confidence is not None
        total = jnp.where(inputs.mask, rewards, 0.0).sum(-1)
        mean = jnp.where(inputs.keep, total, 0.0).sum() / jnp.maximum(inputs.keep.sum(), 1)
        adjusted = rl.confidence_adjusted_rewards(
            total, inputs.confidence, mean, weight=options.confidence_weight, kind=options.confidence_kind
        )
        return rewards + rl.outcome_token_rewards(adjusted - total, inputs.mask)

    return shaping


def verifier(options: RewardOptions) -> Shaping:
    """sigmoid(scale * r) + outcome - 1 on the last token: every right response above every wrong one (Qwen2.5-Math).

    r is the response's total process reward. The outcome is in it already, so that it needs no weight of its own.
    """

    def shaping(rewards: jax.Array, inputs: RewardInputs) -> jax.Array:
        total = jnp.where(inputs.mask, rewards, 0.0).sum(-1)
        combined = rl.verifier_rewards(total, inputs.outcome, scale=options.verifier_scale)
        return rl.outcome_token_rewards(combined, inputs.mask)

    return shaping


SHAPINGS: dict[str, Callable[[RewardOptions], Shaping]] = {
    "clip": clip,
    "delta": delta,
    "progress": progress,
    "min": minimum,
    "confidence": confidence,
    "verifier": verifier,
}
"""Built-in name -> options -> shaping."""
