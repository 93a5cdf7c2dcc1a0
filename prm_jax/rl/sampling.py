"""Selecting and weighting rollouts: filters by reward rank, importance weights, budgets.

Filters: PF-PPO (arXiv 2409.06957). Statistical confidence of a majority answer: Divide and Conquer (arXiv 2401.05190).
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


def filter_weights(
    rewards: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    kind: Literal["none", "best_of_n", "best_random", "best_worst", "power"] = "best_worst",
    power: float = 2.0,
    mask: ArrayLike | None = None,
) -> jax.Array:
    """Share of a prompt's training signal that each of its samples gets, by the rank of its reward.

    "none": equal shares. "best_of_n": only the best. "best_random": half to the best, half spread over the others.
    "best_worst": half to the best, half to the worst. "power": proportional to |r|^power. Samples tied for best (or
    worst) divide its share, so the order of samples does not matter. Multiply a loss by the weights times the group
    size, or draw indices from them.

    The authors rank within a prompt. verl takes the best and worst of the whole batch instead: pass one group.

    Args:
      rewards: [B] float.
      group_ids: [B] int in [0, num_groups), any order. Under `shard_map` a group must be on one device.
      num_groups: number of prompts.
      kind: see above.
      power: for "power".
      mask: [B] bool, or None.

    Returns:
      [B] float32, >= 0, summing to 1 over each group with a sample (one alone gets 1). No gradient.

    Source: arXiv 2409.06957.
    """
    masking.check_option("kind", kind, ("none", "best_of_n", "best_random", "best_worst", "power"))
    ids, member = masking.group_members(group_ids, num_groups, mask)
    chex.assert_rank(ids, 1)
    chex.assert_equal_shape([jnp.asarray(rewards), ids])
    r = jax.lax.stop_gradient(masking.masked(rewards, member))

    def shares(raw: jax.Array) -> jax.Array:
        total = masking.of_group(masking.group_sum(raw, ids, num_groups, member), ids, member)
        return jnp.where(member, masking.safe_divide(raw, total), 0.0)

    even = shares(jnp.ones_like(r))
    if kind == "none":
        return even
    if kind == "power":
        # Relative to the largest, so that no power overflows; all-zero rewards give equal shares.
        top = masking.of_group(_group_max(jnp.abs(r), ids, num_groups, member), ids, member)
        raw = jnp.where(top > 0, masking.safe_divide(jnp.abs(r), top) ** power, 1.0)
        return shares(raw)
    is_best = member & (r == masking.of_group(_group_max(r, ids, num_groups, member), ids, member))
    best = shares(is_best.astype(jnp.float32))
    if kind == "best_of_n":
        return best
    if kind == "best_worst":
        is_worst = member & (r == -masking.of_group(_group_max(-r, ids, num_groups, member), ids, member))
        return 0.5 * best + 0.5 * shares(is_worst.astype(jnp.float32))
    # Half to the best sample and half to the others; of b tied for best, each is the best with probability 1 / b.
    size = masking.of_group(masking.group_sum(jnp.ones_like(r), ids, num_groups, member), ids, member)
    others = (1.0 - best) / jnp.maximum(size - 1, 1)
    return jnp.where(size > 1, 0.5 * best + 0.5 * others, even)


def importance_weights(
    logp: ArrayLike,
    behaviour_logp: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    kind: Literal["plain", "snis", "clip"] = "plain",
    clip: float = 2.0,
    axis_name: masking.AxisName = None,
) -> tuple[jax.Array, jax.Array]:
    """Weights that make samples of one distribution estimate expectations under another.

    The estimate of E[f] is the mean of `weights * f` for every kind. "plain": p / q, unbiased. "snis": self-normalised
    to mean 1; biased, bounded, invariant to constants in either log-probability. "clip": min(p / q, clip).

    Args:
      logp: [...] float, under the distribution of interest. Receives gradients.
      behaviour_logp: [...] float, under the one sampled from. No gradient.
      mask: [...] bool, or None.
      kind: see above.
      clip: for "clip".
      axis_name: mapped axis or axes over which the batch is split.

    Returns:
      `(weights [...] f32, ess [] f32)`: 0 outside the mask; ess = (sum w)^2 / sum w^2, the effective number of
      samples, 0 for an empty mask.
    """
    masking.check_option("kind", kind, ("plain", "snis", "clip"))
    logp = jnp.asarray(logp)
    mask = jnp.ones(logp.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([logp, jnp.asarray(behaviour_logp), mask])
    log_ratio = masking.masked(logp, mask) - jax.lax.stop_gradient(masking.masked(behaviour_logp, mask))
    top = jnp.where(mask, jax.lax.stop_gradient(log_ratio), -jnp.inf).max(initial=-jnp.inf)
    top = masking.pmax(top, axis_name)
    scaled = jnp.where(mask, jnp.exp(log_ratio - jnp.where(jnp.isfinite(top), top, 0.0)), 0.0)
    if kind == "snis":
        count = masking.psum(mask.sum().astype(jnp.float32), axis_name)
        weights = masking.safe_divide(scaled * count, masking.psum(scaled.sum(), axis_name))
    else:
        weights = jnp.where(mask, jnp.exp(log_ratio), 0.0)
        weights = jnp.minimum(weights, clip) if kind == "clip" else weights
    used = weights if kind == "clip" else scaled  # the size of a sample does not depend on the scale
    ess = masking.safe_divide(masking.psum(used.sum(), axis_name) ** 2, masking.psum((used**2).sum(), axis_name))
    return weights, jax.lax.stop_gradient(ess)


def budget_allocation(
    solve_rate: ArrayLike, mask: ArrayLike | None = None, *, total: int, minimum: int = 0
) -> jax.Array:
    """Splits `total` samples over prompts in proportion to sqrt(p (1 - p)), Neyman's rule for binary outcomes.

    Args:
      solve_rate: [P] float in [0, 1], estimates of p.
      mask: [P] bool, True on prompts that may get samples, or None.
      total: static number of samples.
      minimum: samples that every prompt gets first; lowered to what `total` allows.

    Returns:
      [P] int32 summing to `total` (all 0 for an empty mask): shares are rounded by largest remainders, ties to the
      lowest index. Equal shares where every prompt is solved always or never. No gradient.
    """
    p = jnp.clip(jax.lax.stop_gradient(masking.as_f32(solve_rate)), 0.0, 1.0)
    chex.assert_rank(p, 1)
    mask = jnp.ones(p.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([p, mask])
    count = jnp.maximum(mask.sum(), 1)
    spread = jnp.where(mask, masking.safe_sqrt(p * (1 - p)), 0.0)
    spread = jnp.where(spread.sum() > 0, spread, mask.astype(jnp.float32))
    first = jnp.where(mask, jnp.minimum(minimum, total // count), 0).astype(jnp.int32)
    rest = jnp.where(mask.any(), total, 0) - first.sum()
    share = rest * masking.safe_divide(spread, spread.sum())
    whole = jnp.floor(share).astype(jnp.int32)
    order = jnp.argsort(jnp.where(mask & (spread > 0), whole - share, jnp.inf), stable=True)
    place = jnp.zeros(p.shape, jnp.int32).at[order].set(jnp.arange(p.shape[0], dtype=jnp.int32))
    return first + whole + (place < rest - whole.sum()).astype(jnp.int32)


def answer_confidence(
    answer_ids: ArrayLike, group_ids: ArrayLike, *, num_groups: int, mask: ArrayLike | None = None
) -> jax.Array:
    """Statistical confidence of each prompt: how many of its samples give the most frequent answer.

    A proxy for the solve rate where there are no labels: low values indicate hard prompts.

    Args:
      answer_ids: [B] int; equal ids are equal answers; negative for no answer (counts as a sample, not as an
        answer).
      group_ids: [B] int in [0, num_groups), any order. Under `shard_map` a group must be on one device.
      num_groups: number of prompts.
      mask: [B] bool, or None.

    Returns:
      [num_groups] float32 in [0, 1]; 0 for a prompt without samples. No gradient. Memory O(B^2).

    Source: arXiv 2401.05190.
    """
    ids, member = masking.group_members(group_ids, num_groups, mask)
    answers = jnp.asarray(answer_ids)
    chex.assert_rank(ids, 1)
    chex.assert_equal_shape([answers, ids])
    answered = member & (answers >= 0)
    same = masking.same_group(ids, member) & (answers[:, None] == answers[None, :]) & answered[:, None]
    frequency = same.sum(-1).astype(jnp.float32)
    size = masking.group_sum(jnp.ones(ids.shape), ids, num_groups, member)
    return masking.safe_divide(jnp.maximum(_group_max(frequency, ids, num_groups, member), 0.0), size)


def _group_max(x: jax.Array, ids: jax.Array, num_groups: int, member: jax.Array) -> jax.Array:
    """[num_groups] maxima over members; -inf for empty groups."""
    return jax.ops.segment_max(jnp.where(member, x, -jnp.inf), jnp.where(member, ids, num_groups), num_groups)
