"""Shaping of step rewards, so that a policy trained on them cannot exploit them.

Clip and Delta: arXiv 2410.15115. Progress under a prover policy: arXiv 2410.08146. Confidence: arXiv 2410.09724.
Pessimism over an ensemble: arXiv 2110.04135. All functions pass gradients; the advantages stop them.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


def clip_rewards(step_rewards: ArrayLike, mask: ArrayLike, *, threshold: float) -> jax.Array:
    """Clip: min(p_k - threshold, 0), so that a step can only lose reward.

    Steps at or above the threshold get 0, so that adding good steps gains nothing.

    Args:
      step_rewards: [B, S] float, step scores.
      mask: [B, S] bool, True on steps that exist.
      threshold: scores at or above it get 0.

    Returns:
      [B, S] float32, <= 0; 0 outside the mask.

    Source: arXiv 2410.15115, "Clip"; apply `delta_rewards` to the result for "Clip-Delta".
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(step_rewards), mask])
    return jnp.where(mask, jnp.minimum(masking.masked(step_rewards, mask) - threshold, 0.0), 0.0)


def delta_rewards(step_rewards: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Delta: p_k - p_{k+1} for k < K - 1, p_{K-1} for k = K - 1, and 0 for the last step K (k from 1).

    Returns telescope: the return from step k < K is p_k, that of the last step 0, so the sum is p_1 however
    many steps are added. Note the sign, current score minus next score, the opposite of `progress_rewards`. It
    bounds the gain from padding with steps but is not potential-based shaping: a better *first* step pays.

    Args:
      step_rewards: [B, S] float, step scores (or clipped ones).
      mask: [B, S] bool, True on steps that exist.

    Returns:
      [B, S] float32, 0 outside the mask; a response of one step gets 0.

    Source: arXiv 2410.15115, "Delta".
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(step_rewards), mask])
    p = jnp.where(masking.is_last(mask), 0.0, masking.masked(step_rewards, mask))
    return jnp.where(mask, p - masking.next_valid(p, mask), 0.0)


def progress_rewards(q_values: ArrayLike, initial_value: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Progress made by each step under a prover policy: A_h = Q(s_h) - Q(s_{h-1}), with Q(s_0) the initial value.

    Args:
      q_values: [B, S] float, the prover's value after each step.
      initial_value: [B] float, its value before the first step.
      mask: [B, S] bool, True on steps that exist.

    Returns:
      [B, S] float32, 0 outside the mask; each row sums to its last value minus the initial one.

    Source: arXiv 2410.08146 (process advantage verifiers).
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(q_values), mask])
    chex.assert_shape(jnp.asarray(initial_value), mask.shape[:-1])
    q = masking.masked(q_values, mask)
    start = jnp.where(jnp.any(mask, -1), masking.as_f32(initial_value), 0.0)
    return jnp.where(mask, q - masking.previous_valid(q, mask, start=start), 0.0)


def best_of_k_value(value: ArrayLike, k: int) -> jax.Array:
    """Success rate of best-of-k when one sample succeeds with probability `value`: 1 - (1 - value)^k.

    Args:
      value: any shape, in [0, 1].
      k: number of samples, >= 1.

    Returns:
      float32 of the same shape, in [0, 1].

    Source: arXiv 2410.08146, the prover Best-of-K.
    """
    return 1.0 - (1.0 - masking.as_f32(value)) ** k


def effective_rewards(q_values: ArrayLike, progress: ArrayLike, *, alpha: float) -> jax.Array:
    """The policy's own value plus `alpha` times the prover's progress, used to rank or reward steps.

    Args:
      q_values: any shape, the policy's value after each step.
      progress: same shape, from `progress_rewards`.
      alpha: weight of the progress, >= 0 (0.2 to 0.5 in search, 3 to 5 in training, in the paper).

    Returns:
      float32 of the same shape.

    Source: arXiv 2410.08146 (effective reward).
    """
    chex.assert_equal_shape([jnp.asarray(q_values), jnp.asarray(progress)])
    return masking.as_f32(q_values) + alpha * masking.as_f32(progress)


def confidence_adjusted_rewards(
    reward: ArrayLike,
    confidence: ArrayLike,
    mean: ArrayLike,
    *,
    weight: float,
    kind: Literal["difference", "threshold"] = "difference",
) -> jax.Array:
    """Rewards stated confidence when the answer is better than average, and punishes it when it is worse.

    "difference": r + weight * (r - mean) * (c - 1/2).
    "threshold": r + weight * |r| * (c - 1/2) where r >= mean, r - weight * |r| * (c - 1/2) below.

    Args:
      reward: any shape, the reward of the answer without its confidence statement.
      confidence: same shape, in [0, 1]; 1/2 (no statement) changes nothing.
      mean: scalar (or broadcastable), the running mean of rewards, kept by the caller.
      weight: strength, >= 0.
      kind: see above.

    Returns:
      float32 of the shape of `reward`.

    Source: arXiv 2410.09724 (PPO-C); its scripts use the difference form with weight 2.
    """
    masking.check_option("kind", kind, ("difference", "threshold"))
    chex.assert_equal_shape([jnp.asarray(reward), jnp.asarray(confidence)])
    r, surplus, mean = masking.as_f32(reward), masking.as_f32(confidence) - 0.5, masking.as_f32(mean)
    if kind == "difference":
        return r + weight * (r - mean) * surplus
    return r + weight * jnp.where(r >= mean, 1.0, -1.0) * jnp.abs(r) * surplus


def pessimistic_rewards(
    predictions: ArrayLike, *, coefficient: float, kind: Literal["lcb", "min", "mean"] = "lcb"
) -> tuple[jax.Array, jax.Array]:
    """One cautious reward from an ensemble's predictions.

    "lcb" is mean - coefficient * standard deviation, "min" the smallest, "mean" the mean (for comparison).

    Args:
      predictions: [E, ...] float, one prediction per member.
      coefficient: of the standard deviation in "lcb", >= 0; the other kinds do not use it.
      kind: see above.

    Returns:
      (reward [...], epistemic [...]) float32: `epistemic` is the members' standard deviation (over E, not
      E - 1, as in the law of total variance), 0 for one member and then with gradient 0.

    Source: arXiv 2110.04135 compares the penalties; the ensemble's standard deviation is the most stable.
    """
    masking.check_option("kind", kind, ("lcb", "min", "mean"))
    x = masking.as_f32(predictions)
    chex.assert_axis_dimension_gt(x, 0, 0)
    mean = jnp.mean(x, 0)
    epistemic = masking.safe_sqrt(jnp.mean(jnp.square(x - mean), 0))
    if kind == "lcb":
        return mean - coefficient * epistemic, epistemic
    return (jnp.min(x, 0) if kind == "min" else mean), epistemic
