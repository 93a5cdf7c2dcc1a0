"""How often a score is right: about outcomes, about steps, and about the answer that a vote elects.

Implicit rewards as logits of the outcome: PRIME, arXiv 2502.01456. Metrics pass no gradient, except
for `vote_totals` to its weights.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


def outcome_accuracy(
    scores: ArrayLike, outcome: ArrayLike, mask: ArrayLike | None = None, *, axis_name: masking.AxisName = None
) -> jax.Array:
    """Share of responses whose score has the sign of 2 * outcome - 1.

    Args:
      scores: [B] float, sums of implicit rewards (logits of the outcome).
      outcome: [B] any real dtype, in [0, 1].
      mask: optional [B] bool, False for rows that do not count.
      axis_name: mapped axis over which the batch is split, or None.

    Returns:
      float32 scalar in [0, 1], 0 for an empty batch. No gradient.
    """
    s, a = jnp.asarray(scores), jnp.asarray(outcome)
    chex.assert_equal_shape([s, a])
    mask = jnp.ones(s.shape, bool) if mask is None else masking.as_mask(mask)
    right = jnp.sign(masking.masked(s, mask)) == jnp.sign(2 * masking.masked(a, mask) - 1)
    return masking.share(right, mask, axis_name)


def roc_auc(
    scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, axis_name: masking.AxisName = None
) -> jax.Array:
    """Probability that a positive entry scores above a negative one, ties one half; over all valid entries.

    Args:
      scores: any shape, float (step scores, say).
      labels: same shape, bool or 0/1.
      mask: optional bool of the same shape.
      axis_name: mapped axis over which the entries are split, or None; the negative entries' scores are gathered.

    Returns:
      float32 scalar in [0, 1]; 0.5 when either kind is missing. No gradient.
    """
    s, positive = jnp.asarray(scores), masking.as_mask(labels)
    chex.assert_equal_shape([s, positive])
    mask = jnp.ones(s.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([s, mask])
    s = masking.masked(s, mask).reshape(-1)
    positive, negative = (positive & mask).reshape(-1), (~positive & mask).reshape(-1)
    ranked = jnp.sort(masking.gather(jnp.where(negative, s, jnp.inf), axis_name))
    below, upto = (jnp.searchsorted(ranked, s, side=side) for side in ("left", "right"))
    total = masking.psum(jnp.sum(negative), axis_name)
    wins = masking.psum(jnp.sum(jnp.where(positive, 0.5 * (below + jnp.minimum(upto, total)), 0.0)), axis_name)
    pairs = masking.psum(jnp.sum(positive).astype(jnp.float32), axis_name) * total
    return jnp.where(pairs > 0, wins / jnp.maximum(pairs, 1), 0.5)


def min_at_last_rate(scores: ArrayLike, mask: ArrayLike, *, axis_name: masking.AxisName = None) -> jax.Array:
    """Share of responses whose lowest step score is that of the last step.

    A high share means that a process reward model has turned into an outcome model (arXiv 2501.07301 finds over
    40 % for several open ones).

    Args:
      scores: [B, S] float.
      mask: [B, S] bool, True on steps that exist. Responses of fewer than two steps are not counted.
      axis_name: mapped axis over which the batch is split, or None.

    Returns:
      float32 scalar in [0, 1]; 0 for an empty batch. Of equal lowest scores the first is taken.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(scores), mask])
    lowest = jnp.argmin(jnp.where(mask, masking.masked(scores, mask), jnp.inf), -1)
    at_last = jnp.take_along_axis(masking.is_last(mask), lowest[..., None], -1)[..., 0]
    return masking.share(at_last, jnp.sum(mask, -1) >= 2, axis_name)


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, *, k: int) -> jax.Array:
    """Unbiased estimate of the chance that one of k samples is correct: 1 - C(n - c, k) / C(n, k).

    Args:
      num_samples: any shape, int n >= k.
      num_correct: same shape, int c in [0, n].
      k: static, >= 1.

    Returns:
      float32 of the same shape, in [0, 1].

    Source: arXiv 2107.03374, Eq. 1.
    """
    n, c = masking.as_f32(num_samples), masking.as_f32(num_correct)
    chex.assert_equal_shape([n, c])
    drawn = jnp.arange(k, dtype=jnp.float32)
    # prod_i (n - c - i) / (n - i): the chance that all k draws without replacement are wrong.
    wrong = jnp.maximum(n[..., None] - c[..., None] - drawn, 0.0) / jnp.maximum(n[..., None] - drawn, 1.0)
    return 1.0 - jnp.prod(wrong, -1)


def vote_totals(
    weights: ArrayLike,
    answer_ids: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    reduce: Literal["sum", "mean", "max"] = "sum",
) -> jax.Array:
    """For every response, the summed (mean, largest) weight of all responses with the same answer.

    Its argmax is a weighted vote, ties to the answer seen first. With "sum": weights 1 give the majority, sigmoids of
    scores give ImplicitPRM's vote. "mean" is the other vote of MedS3, and "max" is best-of-n.

    Args:
      weights: [..., N] float, one per response.
      answer_ids: [..., N] int, equal where answers are equivalent; a negative id is no answer and gets 0.
      mask: optional [..., N] bool.
      reduce: see above.

    Returns:
      [..., N] float32; 0 for responses without an answer or outside the mask (keep them out of an argmax where
      weights may be negative). Gradients flow to the weights.

    Source: arXiv 2412.01981; arXiv 2501.12051.
    """
    masking.check_option("reduce", reduce, ("sum", "mean", "max"))
    w, ids = jnp.asarray(weights), jnp.asarray(answer_ids)
    chex.assert_equal_shape([w, ids])
    valid = ids >= 0 if mask is None else (ids >= 0) & masking.as_mask(mask)
    same = (ids[..., :, None] == ids[..., None, :]) & valid[..., :, None] & valid[..., None, :]
    w = masking.masked(w, valid)[..., None, :]
    if reduce == "max":
        return jnp.where(valid, jnp.max(jnp.where(same, w, -jnp.inf), -1, initial=-jnp.inf), 0.0)
    total = jnp.sum(jnp.where(same, w, 0.0), -1)
    return total if reduce == "sum" else total / jnp.maximum(jnp.sum(same, -1), 1)
