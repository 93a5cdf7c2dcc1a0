"""Selecting the prompts that a step learns from: those that the policy sometimes solves.

Both methods of arXiv 2502.01456: sample until enough prompts pass, or draw more than needed and put the passing ones
first, which keeps shapes static. No function passes a gradient.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking

_SLACK = 1e-6  # so that 4/5 <= 0.8 holds despite the rounding of the division


def solve_rate_mask(
    outcome: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    low: float = 0.2,
    high: float = 0.8,
    mask: ArrayLike | None = None,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """Prompts whose mean outcome is in [low, high], bounds included (to 1e-6).

    Args:
      outcome: [B] any real dtype, in [0, 1]; fractions are kept.
      group_ids: [B] int in [0, num_groups), in any order; rows with other ids are left out.
      num_groups: static number of groups (prompts).
      low: smallest solve rate that passes.
      high: largest solve rate that passes.
      mask: optional [B] bool, False for rows that do not count (an unverifiable response, say).
      axis_name: mapped axis over which the batch is split (groups may span devices), or None.

    Returns:
      [num_groups] bool; False for a group without rows.

    Source: arXiv 2502.01456 (online prompt filtering).
    """
    ids, member = masking.group_members(group_ids, num_groups, mask)
    outcome = masking.as_f32(outcome)
    chex.assert_rank(ids, 1)
    chex.assert_equal_shape([outcome, ids, member])
    total = masking.group_sum(outcome, ids, num_groups, member, axis_name)
    size = masking.group_sum(member.astype(jnp.float32), ids, num_groups, member, axis_name)
    rate = total / jnp.maximum(size, 1)
    return (size > 0) & (rate >= low - _SLACK) & (rate <= high + _SLACK)


def truncation_mask(
    length: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    max_length: int,
    mask: ArrayLike | None = None,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """Prompts without truncated responses: every length is below `max_length`.

    PRIME's code tests length >= max_length, verl's recipe length >= max_length - 1; pass the bound you want.

    Args:
      length: [B] int, number of response tokens.
      group_ids: [B] int in [0, num_groups), in any order; rows with other ids are left out.
      num_groups: static number of groups (prompts).
      max_length: a response this long or longer counts as truncated.
      mask: optional [B] bool, False for rows that do not count.
      axis_name: mapped axis over which the batch is split (groups may span devices), or None.

    Returns:
      [num_groups] bool; True for a group without rows.
    """
    ids, member = masking.group_members(group_ids, num_groups, mask)
    length = jnp.asarray(length)
    chex.assert_rank(ids, 1)
    chex.assert_equal_shape([length, ids, member])
    cut = masking.group_sum((length >= max_length).astype(jnp.float32), ids, num_groups, member, axis_name)
    return cut == 0


def passing_first(passes: ArrayLike) -> jax.Array:
    """Order of the groups with the passing ones first, otherwise unchanged (stable).

    Its first n entries are a static-shape batch: passing prompts, filled up with failing ones when there are too
    few.

    Args:
      passes: [P] bool.

    Returns:
      [P] int32, a permutation.
    """
    passes = masking.as_mask(passes)
    chex.assert_rank(passes, 1)
    return jnp.argsort(~passes, stable=True).astype(jnp.int32)


def rows_of_groups(group_mask: ArrayLike, group_ids: ArrayLike) -> jax.Array:
    """[B] bool: the row's group is selected; False for rows whose id is in no group.

    Args:
      group_mask: [num_groups] bool.
      group_ids: [B] int.
    """
    group_mask = masking.as_mask(group_mask)
    chex.assert_rank(group_mask, 1)
    ids, member = masking.group_members(group_ids, group_mask.shape[0], None)
    return member & group_mask[jnp.where(member, ids, 0)]
