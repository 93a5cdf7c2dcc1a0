"""Step labels from judges, and corrections to step values.

Ensembles of judges: AURORA (arXiv 2502.11520). Look-back correction and hard labels: MedS3 (arXiv 2501.12051). Balance
over prefix lengths: GLoRe (arXiv 2402.10963). Labels from rollouts are `mc_targets`.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


def judge_labels(
    votes: ArrayLike,
    present: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
    threshold: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
    """Weighted majority of E judges on each step.

    Args:
      votes: [E, ...] float in [0, 1], 1 for "right".
      present: [E, ...] bool, False where a judge gave no verdict (or the step does not exist), or None.
      weights: [E] float, from `judge_weights`, or None for ones. A negative weight counts a vote the other way.
      threshold: label is True where the weighted mean vote exceeds it; a tie is False.

    Returns:
      `(label [...] bool, confidence [...] f32)`: confidence is the weighted share of "right", 1/2 where no judge
      voted. No gradient. With equal weights M judges of accuracy a are right as often as a binomial majority.

    Source: arXiv 2502.11520.
    """
    votes = jax.lax.stop_gradient(masking.as_f32(votes))
    present = jnp.ones(votes.shape, bool) if present is None else masking.as_mask(present)
    chex.assert_equal_shape([votes, present])
    w = jnp.ones(votes.shape[0]) if weights is None else masking.as_f32(weights)
    chex.assert_shape(w, votes.shape[:1])
    w = w.reshape(-1, *(1,) * (votes.ndim - 1))
    votes = jnp.where(w < 0, 1 - votes, votes)
    share = masking.masked(jnp.broadcast_to(jnp.abs(w), votes.shape), present)
    total = share.sum(0)
    mean = jnp.where(total > 0, (share * masking.masked(votes, present)).sum(0) / jnp.where(total > 0, total, 1.0), 0.5)
    return mean > threshold, mean


def judge_weights(
    votes: ArrayLike,
    reference: ArrayLike,
    present: ArrayLike | None = None,
    *,
    limit: float = 0.99,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """Weights of judges from items with known answers: the log-odds of their accuracies.

    These are the optimal weights of a vote of independent judges. A judge that is wrong more often than right gets a
    negative weight, a coin flip 0. Accuracies are smoothed by one right and one wrong item.

    Args:
      votes: [E, ...] float in [0, 1].
      reference: [...] in [0, 1], right where > 1/2.
      present: [E, ...] bool, or None.
      limit: accuracies are clipped to [1 - limit, limit].
      axis_name: mapped axis over which the items are split, or None.

    Returns:
      [E] float32; 0 for a judge without items. No gradient.
    """
    votes = jax.lax.stop_gradient(masking.as_f32(votes))
    present = jnp.ones(votes.shape, bool) if present is None else masking.as_mask(present)
    chex.assert_equal_shape([votes, present])
    chex.assert_shape(jnp.asarray(reference), votes.shape[1:])
    right = present & ((votes > 0.5) == (masking.as_f32(reference) > 0.5))
    axes = tuple(range(1, votes.ndim))
    hits, items = (masking.psum(x.sum(axes), axis_name) for x in (right, present))
    accuracy = jnp.clip((hits + 1) / (items + 2), 1 - limit, limit)
    return jnp.log(accuracy) - jnp.log1p(-accuracy)


def look_back_penalty(values: ArrayLike, mask: ArrayLike, *, coefficient: float) -> jax.Array:
    """Lowers the value of steps that fall below the step before them.

    A step below both neighbours loses `coefficient * (v_{i-1} - v_{i+1})`, a step that is only below the one before
    loses `coefficient * (v_{i-1} - v_i)`; the others, the first among them, keep their value. The result is clipped
    to [0, 1].

    Args:
      values: [..., S] float in [0, 1]. Receives gradients.
      mask: [..., S] bool, True on steps that exist, a prefix of each row.
      coefficient: f, >= 0.

    Returns:
      [..., S] float32; 0 outside the mask.

    Source: released code of arXiv 2501.12051 (soft labels).
    """
    mask = masking.as_mask(mask)
    v = masking.masked(values, mask)
    chex.assert_equal_shape([v, mask])
    before = masking.previous_valid(v, mask)
    after = masking.next_valid(v, mask)
    has_before = mask & ~(jnp.cumsum(mask, -1) == 1)
    has_after = mask & ~masking.is_last(mask)
    falls = has_before & (v < before)
    valley = falls & has_after & (v < after)
    loss = jnp.where(valley, before - after, jnp.where(falls, before - v, 0.0))
    return jnp.where(mask, jnp.clip(v - coefficient * loss, 0.0, 1.0), 0.0)


def hard_step_labels(
    values: ArrayLike, mask: ArrayLike, *, threshold: float = 0.5, rising: bool = False
) -> jax.Array:
    """Right or wrong from step values: 1 where the value exceeds `threshold`, else 0.

    With `rising` the value must also be at least that of the step before, so that a step which loses ground is
    wrong even where success is still likely; for the first step only the threshold counts.

    Args:
      values: [..., S] float, soft labels or node values; no gradient.
      mask: [..., S] bool, True on steps that exist.
      threshold: see above.
      rising: see above.

    Returns:
      [..., S] float32 in {0, 1}, 0 outside the mask.

    Source: released code of arXiv 2501.12051 (hard labels, and their hierarchical form).
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(values), mask])
    v = jax.lax.stop_gradient(masking.masked(values, mask))
    right = mask & (v > threshold)
    if rising:
        first = jnp.cumsum(mask, -1) == 1
        right &= first | (v >= masking.previous_valid(v, mask))
    return right.astype(jnp.float32)


def balanced_step_weights(labels: ArrayLike, mask: ArrayLike, *, axis_name: masking.AxisName = None) -> jax.Array:
    """Weights that balance right and wrong labels at every step index.

    Without them a model learns that early steps are right and late ones wrong. Where only one kind occurs, the weight
    is 0.

    Args:
      labels: [B, S], right where > 1/2.
      mask: [B, S] bool, True on labelled steps.
      axis_name: mapped axis over which the batch is split, or None; the counts are those of the whole batch.

    Returns:
      [B, S] float32, >= 0, mean 1 over the labelled steps of every index that has both kinds. No gradient.

    Source: arXiv 2402.10963 (balanced prefixes).
    """
    mask = masking.as_mask(mask)
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([jnp.asarray(labels), mask])
    right = mask & (masking.as_f32(labels) > 0.5)
    num_right, total = (masking.psum(x.sum(0), axis_name) for x in (right, mask))
    num_wrong = total - num_right
    both = (num_right > 0) & (num_wrong > 0)
    own = jnp.where(right, num_right, num_wrong)
    return jnp.where(mask & both, total / (2 * jnp.maximum(own, 1)), 0.0)
