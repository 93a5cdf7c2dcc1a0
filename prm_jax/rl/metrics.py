"""How well a reward orders responses and finds the first wrong step, and how far to trust it.

First-error F1: ProcessBench, arXiv 2412.06559. Metrics pass no gradient.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking

NO_ERROR = -1


def pairwise_accuracy(
    scores: ArrayLike,
    outcome: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    mask: ArrayLike | None = None,
    average: Literal["groups", "pairs", "released", "none"] = "groups",
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """How often the score orders two responses to one prompt as their outcomes do.

    Pairs with different outcomes count, each with weight |a_i - a_j|; equal scores count one half, so that constant
    scores get 0.5. (verl counts a tie as right if the better response comes second and as wrong if it comes first.)
    "groups" takes the mean over groups that have a pair, "pairs" the mean over all pairs, "released" (verl) the
    mean over groups with 0.5 for those without a pair, which pulls towards 0.5; "none" takes no mean.

    Args:
      scores: [B] float.
      outcome: [B] any real dtype.
      group_ids: [B] int in [0, num_groups), in any order; rows with other ids are left out.
      num_groups: static number of groups.
      mask: optional [B] bool, False for rows that do not count.
      average: see above.
      axis_name: mapped axis over which the batch is split, or None. Pairs across devices are not counted: each
        group must be on one device.

    Returns:
      float32 scalar in [0, 1], [num_groups] with average="none"; 0.5 where there is no pair. No gradient.
    """
    masking.check_option("average", average, ("groups", "pairs", "released", "none"))
    ids, member = masking.group_members(group_ids, num_groups, mask)
    chex.assert_rank(ids, 1)
    chex.assert_equal_shape([jnp.asarray(scores), jnp.asarray(outcome), ids, member])
    s, a = masking.masked(scores, member), masking.masked(outcome, member)
    better = jnp.where(masking.same_group(ids, member), jnp.maximum(a[:, None] - a[None, :], 0.0), 0.0)
    right = 0.5 * (jnp.sign(s[:, None] - s[None, :]) + 1)
    hits = masking.group_sum(jnp.sum(better * right, 1), ids, num_groups, member, axis_name)
    pairs = masking.group_sum(jnp.sum(better, 1), ids, num_groups, member, axis_name)
    size = masking.group_sum(member.astype(jnp.float32), ids, num_groups, member, axis_name)
    if average == "pairs":
        hits, pairs, size = jnp.sum(hits), jnp.sum(pairs), jnp.sum(size)
    counted = (size > 0) if average == "released" else (pairs > 0)
    accuracy = jnp.where(pairs > 0, hits / jnp.where(pairs > 0, pairs, 1.0), 0.5)
    if average == "none":
        return jax.lax.stop_gradient(accuracy)
    number = jnp.sum(counted)
    mean = jnp.sum(jnp.where(counted, accuracy, 0.0)) / jnp.maximum(number, 1)
    return jax.lax.stop_gradient(jnp.where(number > 0, mean, 0.5))


def trust_gate(accuracy: ArrayLike, *, count: ArrayLike | None = None, z: float = 1.0) -> jax.Array:
    """How far to trust a reward model of this `pairwise_accuracy`: max(0, 2 * accuracy - 1).

    0 at chance and below, 1 when every pair is right; a factor for the process coefficient. An accuracy estimated from
    few groups exceeds one half by chance half of the time, so that the gate opens for a useless model; with `count` the
    gate uses the accuracy's lower confidence bound (Wilson), which few groups cannot lift above one half.

    Args:
      accuracy: [...] float in [0, 1].
      count: [...] number of independent comparisons that it averages (the groups that have a pair, say), or None
        to use the accuracy itself. With a count of 0 the gate is 0.
      z: half width of the interval in standard errors, not negative.

    Returns:
      [...] float32 in [0, 1]. Gradients are those of the formula, but are not meant to be used.

    Source: the gate is this project's own; the interval is Wilson's (1927).
    """
    a = masking.as_f32(accuracy)
    if count is not None:
        n = jnp.maximum(masking.as_f32(count), 1e-6)
        middle, spread = a + z * z / (2 * n), z * jnp.sqrt(a * (1 - a) / n + z * z / (4 * n * n))
        a = jnp.where(masking.as_f32(count) > 0, (middle - spread) / (1 + z * z / n), 0.5)
    return jnp.maximum(0.0, 2 * a - 1)


def first_error(scores: ArrayLike, mask: ArrayLike, *, threshold: ArrayLike) -> jax.Array:
    """Index of the first step whose score is below the threshold, -1 when there is none.

    Args:
      scores: [B, S] float.
      mask: [B, S] bool, True on steps that exist.
      threshold: scalar, or [B].

    Returns:
      [B] int32, positions along S; -1 for a response without steps.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(scores), mask])
    threshold = jnp.broadcast_to(masking.as_f32(threshold), mask.shape[:-1])[..., None]
    below = mask & (masking.masked(scores, mask) < threshold)
    return jnp.where(jnp.any(below, -1), jnp.argmax(below, -1), NO_ERROR).astype(jnp.int32)


def outcome_threshold(scores: ArrayLike, mask: ArrayLike, outcome: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The threshold of `first_error` that flags as many responses as have failed; it needs no step label.

    With the least step score of each response in ascending order and k failures (the rounded sum of 1 - outcome), it
    is the middle between the k-th and the next.

    Args:
      scores: [B, S] float; no gradient.
      mask: [B, S] bool, True on steps that exist. A response without steps is not counted.
      outcome: [B] float in [0, 1].

    Returns:
      (threshold, known), float32 and bool scalars; without a failure, or without anything else, the threshold is 0 and
      not known.
    """
    mask = masking.as_mask(mask)
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([jnp.asarray(scores), mask])
    chex.assert_shape(jnp.asarray(outcome), mask.shape[:1])
    rows = jnp.any(mask, -1)
    scores = jax.lax.stop_gradient(jnp.where(mask, masking.as_f32(scores), jnp.inf))
    least = jnp.sort(jnp.where(rows, scores.min(-1), jnp.inf))
    failed = jnp.round(masking.masked(1 - masking.as_f32(outcome), rows).sum()).astype(jnp.int32)
    known = (failed > 0) & (failed < rows.sum())
    place = jnp.where(known, failed, 1)
    middle = (least[place - 1] + least[jnp.minimum(place, least.shape[0] - 1)]) / 2
    return jnp.where(known, middle, 0.0), known


def first_error_f1(
    predicted: ArrayLike, label: ArrayLike, mask: ArrayLike | None = None, *, axis_name: masking.AxisName = None
) -> dict[str, jax.Array]:
    """ProcessBench's score: harmonic mean of the accuracies on faulty and on correct responses.

    Args:
      predicted: [B] int, index of the first wrong step, -1 for none; any other number (-2, say, for no answer)
        is wrong wherever it differs from the label.
      label: [B] int, the true index, -1 for none.
      mask: optional [B] bool, False for rows that do not count.
      axis_name: mapped axis over which the batch is split, or None.

    Returns:
      dict of float32 scalars in [0, 1]: error_acc (exact index, where there is an error), correct_acc (where
      there is none), f1. An accuracy over no rows is 0, and f1 is 0 when both are 0 (the official script gives
      NaN).

    Source: arXiv 2412.06559.
    """
    predicted, label = jnp.asarray(predicted), jnp.asarray(label)
    chex.assert_equal_shape([predicted, label])
    mask = jnp.ones(label.shape, bool) if mask is None else masking.as_mask(mask)
    hit = predicted == label
    error_acc = masking.share(hit, mask & (label != NO_ERROR), axis_name)
    correct_acc = masking.share(hit, mask & (label == NO_ERROR), axis_name)
    return {"error_acc": error_acc, "correct_acc": correct_acc, "f1": _harmonic(error_acc, correct_acc)}


def best_threshold(
    scores: ArrayLike,
    mask: ArrayLike,
    label: ArrayLike,
    *,
    candidates: ArrayLike | None = None,
    axis_name: masking.AxisName = None,
) -> tuple[jax.Array, jax.Array]:
    """The threshold of `first_error` with the highest first-error F1, and that F1.

    Exact and in O(B (S + log B)): a response's prediction is right on one interval of thresholds (above the true
    first wrong step's score and up to the smallest score before it; up to the smallest score of all when nothing
    is wrong), so the F1 changes only at the ends of intervals. Without `candidates` every such piece is tried
    and the middle of the best is returned.

    Args:
      scores: [B, S] float.
      mask: [B, S] bool, True on steps that exist. A response without steps is not counted.
      label: [B] int, position along S of the first wrong step, -1 for none.
      candidates: optional [N] float, the thresholds to choose from.
      axis_name: mapped axis over which the batch is split, or None; the intervals of all responses are gathered.

    Returns:
      (threshold, f1), float32 scalars; of equal F1s the lowest threshold (the first candidate).
    """
    mask, label = masking.as_mask(mask), jnp.asarray(label)
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([jnp.asarray(scores), mask])
    chex.assert_shape(label, mask.shape[:1])
    low, high, right = _threshold_intervals(masking.masked(scores, mask), mask, label)
    rows = jnp.any(mask, -1)
    faulty, correct = rows & (label != NO_ERROR), rows & (label == NO_ERROR)
    low, high, right, faulty, correct = (masking.gather(x, axis_name) for x in (low, high, right, faulty, correct))
    if candidates is None:
        tried = _piece_middles(jnp.concatenate([jnp.where(right, low, jnp.inf), jnp.where(right, high, jnp.inf)]))
    else:
        tried = masking.as_f32(candidates)
        chex.assert_rank(tried, 1)

    def accuracy(kind: jax.Array) -> jax.Array:
        def below(ends: jax.Array) -> jax.Array:
            return jnp.searchsorted(jnp.sort(jnp.where(kind & right, ends, jnp.inf)), tried, side="left")

        return (below(low) - below(high)) / jnp.maximum(jnp.sum(kind), 1)

    f1 = _harmonic(accuracy(faulty), accuracy(correct))
    best = jnp.argmax(f1)
    return tried[best], f1[best]


def _harmonic(a: jax.Array, b: jax.Array) -> jax.Array:
    """2ab / (a + b), 0 when both are 0."""
    return masking.safe_divide(2 * a * b, a + b)


def _threshold_intervals(s: jax.Array, mask: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[B] (low, high, right): the prediction is right for low < threshold <= high, if `right`, else never."""
    size = s.shape[-1]
    ahead = jax.lax.cummin(jnp.where(mask, s, jnp.inf), axis=1)
    before = jnp.concatenate([jnp.full_like(ahead[:, :1], jnp.inf), ahead], 1)  # [B, S + 1]: minimum of steps < k
    exists = (label >= 0) & (label < size)
    at = jnp.where(exists, label, 0)[:, None]
    exists &= jnp.take_along_axis(mask, at, 1)[:, 0]
    clean = label == NO_ERROR
    low = jnp.where(clean, -jnp.inf, jnp.take_along_axis(s, at, 1)[:, 0])
    high = jnp.where(clean, before[:, -1], jnp.take_along_axis(before, at, 1)[:, 0])
    return low, high, jnp.any(mask, -1) & (clean | exists) & (low < high)


def _piece_middles(ends: jax.Array) -> jax.Array:
    """One threshold inside each piece (a, b] between neighbouring ends, and one above all of them."""
    b = jnp.sort(ends)
    a = jnp.concatenate([jnp.full((1,), -jnp.inf), b[:-1]])
    beyond = jnp.where(jnp.isfinite(a), a + 1e-3 * jnp.maximum(jnp.abs(a), 1.0), 0.0)
    middle = jnp.where(jnp.isfinite(a) & jnp.isfinite(b), a + 0.5 * (b - a), jnp.where(jnp.isfinite(b), b, beyond))
    return jnp.where(jnp.isfinite(b) & (middle <= a), b, middle)
