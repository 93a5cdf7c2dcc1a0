"""Responses that share a prefix: GRPO counts a shared token once per response, lambda-GRPO once.

Michael Sullivan, Alexander Koller: GRPO is Secretly a Process Reward Model (arXiv 2509.21154).
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.advantages import grpo_advantages


def shared_prefix_counts(
    tokens: ArrayLike,
    mask: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """At each token, how many responses of the group agree with this one up to and including it.

    The response itself counts, so that the number is at least 1. Memory O(B^2), time O(B^2 T).

    Args:
      tokens: [B, T] int.
      mask: [B, T] bool, True on response tokens; every response starts in the same column. A row without tokens is
        not a member of its group.
      group_ids: [B] int in [0, num_groups), in any order; rows with other ids belong to no group.
      num_groups: static number of groups.
      axis_name: mapped axis over which the batch is split (groups may span devices; the tokens are gathered),
        or None.

    Returns:
      [B, T] float32, 0 outside the mask and for rows of no group. No gradient.

    Source: arXiv 2509.21154, the size of the process set of a token.
    """
    mask = masking.as_mask(mask)
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([jnp.asarray(tokens), mask])
    ids, member = masking.group_members(group_ids, num_groups, jnp.any(mask, -1))
    chex.assert_shape(ids, mask.shape[:1])
    own = jnp.where(mask, jnp.asarray(tokens), -1).astype(jnp.int32)
    others, other_ids, other_member = (masking.gather(x, axis_name) for x in (own, ids, member))
    together = (ids[:, None] == other_ids[None, :]) & member[:, None] & other_member[None, :]

    def column(agree: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        agree = agree & (at[0][:, None] == at[1][None, :])
        return agree, agree.sum(-1).astype(jnp.float32)

    _, counts = jax.lax.scan(column, together, (own.T, others.T))
    return jnp.where(mask, counts.T, 0.0)


def lambda_grpo_advantages(
    token_rewards: ArrayLike,
    outcome: ArrayLike,
    tokens: ArrayLike,
    mask: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    discount: float = 1.0,
    eps: float | None = 1e-6,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """GRPO's advantage divided by the number of responses that share the token's prefix.

    `A_t = grpo_advantages(...)_t / |lambda_t|`, with lambda_t the responses of the group that agree up to and
    including token t (`shared_prefix_counts`). The gradients of these responses at t are equal up to their
    advantages, so that GRPO weighs a step by how often it was sampled; the division leaves the mean of their
    advantages. The paper divides the KL term as well: pass `1 / shared_prefix_counts` as its weights. Without shared
    prefixes this is GRPO.

    Args:
      token_rewards: [B, T] float, process rewards; zeros for the paper's outcome-only form; no gradient.
      outcome: [B] any real dtype; fractions are kept.
      tokens: [B, T] int.
      mask: [B, T] bool, True on response tokens.
      group_ids: [B] int in [0, num_groups), in any order.
      num_groups: static number of groups.
      discount: of the process rewards, in [0, 1].
      eps: of `grpo_advantages`.
      axis_name: mapped axis over which the batch is split (groups may span devices), or None.

    Returns:
      [B, T] float32, 0 outside the mask.

    Source: arXiv 2509.21154.
    """
    advantages = grpo_advantages(
        token_rewards,
        outcome,
        mask,
        group_ids,
        num_groups=num_groups,
        discount=discount,
        eps=eps,
        axis_name=axis_name,
    )
    counts = shared_prefix_counts(tokens, mask, group_ids, num_groups=num_groups, axis_name=axis_name)
    return advantages / jnp.maximum(counts, 1.0)
