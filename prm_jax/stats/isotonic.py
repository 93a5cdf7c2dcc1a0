"""Isotonic regression: the best non-decreasing fit, by pooling adjacent violators.

It is the core of isotonic calibration and of Venn-ABERS intervals (applied in arXiv 2412.19511) and one of the ways to
keep quantiles from crossing (arXiv 2103.00083).
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


class IsotonicFit(NamedTuple):
    """A fitted non-decreasing map.

    Attributes:
      scores: [N] f32, finite non-decreasing knots; masked entries repeat the last valid knot.
      values: [N] f32, non-decreasing fitted values at the knots.
    """

    scores: jax.Array
    values: jax.Array


def isotonic_regression(values: ArrayLike, weights: ArrayLike | None = None, *, increasing: bool = True) -> jax.Array:
    """The monotone sequence closest to `values` in weighted squared error.

    `argmin_u sum_i w_i (u_i - v_i)^2` subject to `u_1 <= u_2 <= ...`. Every entry of the answer is the
    weighted mean of its block; blocks are found by pooling adjacent violators in at most 2N sequential steps.

    Args:
      values: [..., N], float.
      weights: [..., N], >= 0, or None for ones. Entries of weight 0 (even NaN)
        change nothing and take the value of the block on their left (the first block where there is none).
      increasing: False for the best non-increasing sequence.

    Returns:
      [..., N] f32. Gradients flow to `values` as block averages (the Jacobian of the projection, wherever
      it exists) and to `weights`; the blocks themselves are constants. All weights 0 gives zeros.
    """
    values = masking.as_f32(values)
    weights = jnp.ones_like(values) if weights is None else masking.as_f32(weights)
    chex.assert_equal_shape([values, weights])
    values = masking.masked(values, weights > 0)
    sign = 1.0 if increasing else -1.0
    fit = jnp.vectorize(_fit_sorted, signature="(n),(n)->(n)")
    return sign * fit(sign * values, weights)


def fit_isotonic(scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> IsotonicFit:
    """Isotonic calibration: the non-decreasing map from score to label that is best in squared error.

    Labels of tied scores are averaged first, so the fit does not depend on the order of the data.

    Args:
      scores: [N], float, any range.
      labels: [N], in [0, 1]; fractions are allowed.
      mask: [N] bool, True on entries to use; None for all.

    Returns:
      `IsotonicFit`. No gradient. An empty mask gives the constant 0.
    """
    scores, labels = jax.lax.stop_gradient((masking.as_f32(scores), masking.as_f32(labels)))
    mask = jnp.ones(scores.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_rank(scores, 1)
    chex.assert_equal_shape([scores, labels, mask])
    order = jnp.argsort(jnp.where(mask, scores, jnp.inf), stable=True)
    scores, labels, mask = scores[order], masking.masked(labels, mask)[order], mask[order]
    last = jnp.maximum(mask.sum() - 1, 0)
    top = jnp.where(mask.any(), scores[last], 0.0)
    scores = jnp.where(mask, scores, top)
    group = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), (jnp.diff(scores) > 0).astype(jnp.int32)]))
    num = scores.shape[0]
    weight = jax.ops.segment_sum(mask.astype(jnp.float32), group, num)
    mean = jax.ops.segment_sum(labels, group, num) / jnp.maximum(weight, 1.0)
    return IsotonicFit(scores, isotonic_regression(mean, weight)[group])


def apply_isotonic(fit: IsotonicFit, scores: ArrayLike) -> jax.Array:
    """Reads a fitted map, linearly between knots and constant outside them.

    Args:
      fit: from `fit_isotonic`.
      scores: [...], float.

    Returns:
      [...] f32, non-decreasing in `scores`. Gradients flow to the scores and the fitted values.
    """
    return jnp.interp(masking.as_f32(scores), fit.scores, fit.values)


def venn_abers(
    scores: ArrayLike, labels: ArrayLike, test_scores: ArrayLike, mask: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """Venn-ABERS probability intervals: isotonic regression twice for each test point.

    The point joins the calibration data once with label 0 and once with label 1; its two fitted values bound
    the probability of a positive label, and one of them is perfectly calibrated under exchangeability.

    Args:
      scores: [N] calibration scores.
      labels: [N] in {0, 1}.
      test_scores: [M].
      mask: [N] bool over the calibration data, or None.

    Returns:
      `(lower [M], upper [M])` f32, `0 <= lower <= upper <= 1`. An empty mask gives (0, 1).
      No gradient. Costs M sorts and fits of length N + 1.
    """
    scores, labels, test_scores = jax.lax.stop_gradient([masking.as_f32(x) for x in (scores, labels, test_scores)])
    chex.assert_rank([scores, labels, test_scores], 1)
    mask = jnp.append(jnp.ones(scores.shape, bool) if mask is None else masking.as_mask(mask), True)

    def probability(score: jax.Array, label: float) -> jax.Array:
        fit = fit_isotonic(jnp.append(scores, score), jnp.append(labels, label), mask)
        return apply_isotonic(fit, score)

    lower = jax.vmap(lambda s: probability(s, 0.0))(test_scores)
    return lower, jax.vmap(lambda s: probability(s, 1.0))(test_scores)


def _fit_sorted(values: jax.Array, weights: jax.Array) -> jax.Array:
    block = _blocks(jax.lax.stop_gradient(values), jax.lax.stop_gradient(weights))
    num = values.shape[0]
    total = jax.ops.segment_sum(weights, block, num)
    mean = jax.ops.segment_sum(values * weights, block, num) / jnp.where(total > 0, total, 1.0)
    return mean[block]


class _Stack(NamedTuple):
    read: jax.Array  # [] i32, entries consumed
    top: jax.Array  # [] i32, blocks on the stack
    sums: jax.Array  # [N] f32, weighted sum of a block
    weights: jax.Array  # [N] f32
    starts: jax.Array  # [N] i32, first entry of a block


@jax.jit  # retracing the loop at each eager call would cost more than running it
def _blocks(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Block number of every entry: one push or merge per iteration, so that the loop is efficient under vmap."""
    num = values.shape[0]

    def violated(s: _Stack) -> jax.Array:
        left, right = jnp.maximum(s.top - 2, 0), jnp.maximum(s.top - 1, 0)
        # Cross-multiplied means: no division; equal means stay apart, which gives the same fit.
        return (s.top >= 2) & (s.sums[left] * s.weights[right] > s.sums[right] * s.weights[left])

    def step(s: _Stack) -> _Stack:
        merge = violated(s)
        left, right = jnp.maximum(s.top - 2, 0), jnp.maximum(s.top - 1, 0)
        entry = jnp.minimum(s.read, num - 1)
        push = ~merge & (weights[entry] > 0)
        # One scatter for both cases keeps the update in place; slot `num` is out of range and dropped.
        slot = jnp.where(merge, left, jnp.where(push, s.top, num))
        weight = jnp.where(merge, s.weights[left] + s.weights[right], weights[entry])
        total = jnp.where(merge, s.sums[left] + s.sums[right], values[entry] * weights[entry])
        return _Stack(
            read=s.read + ~merge,
            top=s.top + jnp.where(merge, -1, push),
            sums=s.sums.at[slot].set(total, mode="drop"),
            weights=s.weights.at[slot].set(weight, mode="drop"),
            starts=s.starts.at[jnp.where(push, s.top, num)].set(entry, mode="drop"),
        )

    # Zeros "like" the data vary over mapped axes as the data do, as shard_map requires of a loop's carry.
    blank = jnp.zeros_like(values + weights)
    empty = jnp.zeros_like(blank, jnp.int32)
    stack = _Stack(empty[0], empty[0], blank, blank, empty)
    stack = jax.lax.while_loop(lambda s: (s.read < num) | violated(s), step, stack)
    slot = jnp.where(jnp.arange(num) < stack.top, stack.starts, num)
    starts = jnp.zeros(num, jnp.int32).at[slot].set(1, mode="drop")
    return jnp.maximum(jnp.cumsum(starts) - 1, 0)
