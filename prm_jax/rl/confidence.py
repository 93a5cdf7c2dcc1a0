"""Rewards for stated confidence: the running mean that PPO-C uses as its baseline.

Taming Overconfidence in LLMs: Reward Calibration in RLHF (arXiv 2410.09724). PPO-C's reward is
`confidence_adjusted_rewards`. PPO-M's loss of the reward model is two terms of `pairwise_loss`: the chosen answer
should score higher with high than with low confidence, the rejected one lower:
`pairwise_loss(chosen_high, chosen_low)` plus `pairwise_loss(rejected_low, rejected_high)`.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


def update_reward_mean(
    mean: ArrayLike,
    rewards: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    rate: float = 0.1,
    clip: float | None = 10.0,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """Moves the running mean towards this batch's: `rate * mean(clip(r)) + (1 - rate) * mean_old`.

    PPO-C updates it before it is used; start it at the reward model's mean.

    Args:
      mean: [] float, the old value.
      rewards: [...] float, scores of answers without their statement of confidence.
      mask: [...] bool, or None.
      rate: in [0, 1] (0.1 in the released scripts).
      clip: rewards are clamped to +- this, as released; None for no clamp.
      axis_name: mapped axis or axes over which the batch is split.

    Returns:
      [] float32; the old mean for an empty mask. No gradient.

    Source: arXiv 2410.09724.
    """
    rewards = jax.lax.stop_gradient(masking.as_f32(rewards))
    mask = jnp.ones(rewards.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([rewards, mask])
    mean = jax.lax.stop_gradient(masking.as_f32(mean))
    chex.assert_shape(mean, ())
    rewards = masking.masked(rewards, mask)
    if clip is not None:
        rewards = jnp.clip(rewards, -clip, clip)
    count = masking.psum(mask.sum().astype(jnp.float32), axis_name)
    batch_mean = masking.psum(rewards.sum(), axis_name) / jnp.maximum(count, 1.0)
    return jnp.where(count > 0, rate * batch_mean + (1 - rate) * mean, mean)
