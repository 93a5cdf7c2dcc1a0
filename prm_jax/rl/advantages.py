"""Advantages of responses and tokens within groups. Constants to the optimiser: no function passes a gradient.

PRIME's own estimators are those of arXiv 2502.01456, Eqs. 5, 7 and 8. Tokens outside the mask are skipped, as in
`returns.py`.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.returns import discounted_returns

_ROUNDING = 1e-6  # a spread below this share of the largest magnitude is float32 rounding, not a signal


def leave_one_out(
    values: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    mask: ArrayLike | None = None,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """Each value minus the mean of the others in its group: x_i - sum_{j != i} x_j / (K - 1).

    A group of one has nothing to compare with: its baseline is 0 and the value is returned unchanged, which keeps
    the policy gradient unbiased (plain REINFORCE).

    Args:
      values: [B] any real dtype, no gradient.
      group_ids: [B] int in [0, num_groups), in any order; rows with other ids belong to no group.
      num_groups: static number of groups.
      mask: optional [B] bool, False for rows that do not count.
      axis_name: mapped axis over which the batch is split (groups may span devices), or None.

    Returns:
      [B] float32, 0 for rows in no group or outside the mask.

    Source: arXiv 2402.14740 (RLOO).
    """
    ids, member = masking.group_members(group_ids, num_groups, mask)
    x = jax.lax.stop_gradient(masking.as_f32(values))
    chex.assert_rank([x, ids], 1)
    chex.assert_equal_shape([x, ids, member])
    x = jnp.where(member, x, 0.0)
    others, size = _group_others(x, ids, member, num_groups, axis_name)
    return jnp.where(member, x - others / jnp.maximum(size - 1, 1), 0.0)


def rloo_advantages(
    token_rewards: ArrayLike,
    outcome: ArrayLike,
    mask: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    variant: Literal["paper", "released"] = "paper",
    dense_coef: float = 1.0,
    outcome_coef: float = 1.0,
    discount: float = 1.0,
    whiten: bool = True,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """PRIME's advantage: leave-one-out on process rewards and on outcomes, each with its own baseline.

    With rbar_j the mean token reward of response j, and K responses in the group of i:

      "paper":    dense_t = r_t - sum_{j != i} rbar_j / (K - 1)
      "released": dense_t = r_t * K / (K - 1) - sum_j rbar_j / (K - 1)
      A_t = dense_coef * sum_{s >= t} discount^(s - t) * dense_s
            + outcome_coef * (a_i - sum_{j != i} a_j / (K - 1))

    The released form differs by (r_t - rbar_i) / (K - 1) on each token; the outcome term is the same in both and
    is not discounted. The baseline is subtracted from every token, so the return carries -(tokens left) * baseline
    in both forms. `whiten` (in the released codes, not in the paper's equation) then centres and scales over all
    valid tokens of the batch.

    Args:
      token_rewards: [B, T] float, process rewards; no gradient.
      outcome: [B] any real dtype, in [0, 1]; fractions are kept.
      mask: [B, T] bool, True on response tokens. A row without tokens is not a member of its group.
      group_ids: [B] int in [0, num_groups), in any order. Groups may be of different sizes; a group of one has
        baseline 0 (and factor 1 in the released form).
      num_groups: static number of groups.
      variant: see above.
      dense_coef: weight of the process rewards (0: outcome only).
      outcome_coef: weight of the outcome.
      discount: of the process rewards, in [0, 1].
      whiten: apply `whiten` to the result.
      axis_name: mapped axis over which the batch is split (groups may span devices), or None.

    Returns:
      [B, T] float32, 0 outside the mask.

    Source: arXiv 2502.01456, Eq. 5, and its released code.
    """
    masking.check_option("variant", variant, ("paper", "released"))
    rewards, mean_reward, mask, ids, member = _prime_inputs(token_rewards, outcome, mask, group_ids, num_groups)
    others, size = _group_others(mean_reward, ids, member, num_groups, axis_name)
    rest = jnp.maximum(size - 1, 1)
    if variant == "paper":
        dense = rewards - (others / rest)[:, None]
    else:
        alone = size <= 1
        scale, baseline = jnp.where(alone, 1.0, size / rest), jnp.where(alone, 0.0, (others + mean_reward) / rest)
        dense = rewards * scale[:, None] - baseline[:, None]
    sparse = leave_one_out(outcome, ids, num_groups=num_groups, mask=member, axis_name=axis_name)
    return _combine(dense, sparse, mask, dense_coef, outcome_coef, discount, whiten, axis_name)


def grpo_advantages(
    token_rewards: ArrayLike,
    outcome: ArrayLike,
    mask: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    eps: float | None = 1e-6,
    dense_coef: float = 1.0,
    outcome_coef: float = 1.0,
    discount: float = 1.0,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """Group-relative advantage with process rewards.

    A_t = outcome_coef * (a_i - mean a) / (std a + eps)
          + dense_coef * sum_{s >= t} discount^(s - t) * (r_s - mean_j rbar_j) / (std_j rbar_j + eps)

    with mean and standard deviation (over K - 1) of the group, rbar_j the mean token reward of response j.
    A group whose values are all equal (to float32 rounding), or that has one member, carries no signal: that
    term is 0 there, instead of rounding noise divided by eps.

    Args:
      token_rewards: [B, T] float, process rewards; zeros for outcome-only GRPO; no gradient.
      outcome: [B] any real dtype; fractions are kept.
      mask: [B, T] bool, True on response tokens. A row without tokens is not a member of its group.
      group_ids: [B] int in [0, num_groups), in any order.
      num_groups: static number of groups.
      eps: added to the standard deviations; None omits the division (Dr. GRPO, arXiv 2503.20783).
      dense_coef: weight of the process rewards.
      outcome_coef: weight of the outcome.
      discount: of the process rewards, in [0, 1].
      axis_name: mapped axis over which the batch is split (groups may span devices), or None.

    Returns:
      [B, T] float32, 0 outside the mask.

    Source: arXiv 2502.01456, Eq. 7; arXiv 2402.03300.
    """
    rewards, mean_reward, mask, ids, member = _prime_inputs(token_rewards, outcome, mask, group_ids, num_groups)
    a = jax.lax.stop_gradient(jnp.where(member, masking.as_f32(outcome), 0.0))

    def centre_and_scale(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        centre, std, signal = _group_spread(x, ids, member, num_groups, axis_name)
        scale = jnp.where(signal, 1.0 if eps is None else 1.0 / (std + eps), 0.0)
        return centre, scale

    centre, scale = centre_and_scale(a)
    sparse = (a - centre) * scale
    centre, scale = centre_and_scale(mean_reward)
    dense = (rewards - centre[:, None]) * scale[:, None]
    return _combine(dense, sparse, mask, dense_coef, outcome_coef, discount, False, axis_name)


def reinforce_advantages(
    token_rewards: ArrayLike,
    outcome: ArrayLike,
    mask: ArrayLike,
    *,
    dense_coef: float = 1.0,
    outcome_coef: float = 1.0,
    discount: float = 1.0,
) -> jax.Array:
    """REINFORCE with process rewards, no baseline: A_t = a_i + sum_{s >= t} discount^(s - t) * r_s.

    Args:
      token_rewards: [B, T] float, process rewards; no gradient.
      outcome: [B] any real dtype; fractions are kept.
      mask: [B, T] bool, True on response tokens.
      dense_coef: weight of the process rewards.
      outcome_coef: weight of the outcome.
      discount: of the process rewards, in [0, 1].

    Returns:
      [B, T] float32, 0 outside the mask.

    Source: arXiv 2502.01456, Eq. 8.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(token_rewards), mask])
    chex.assert_shape(jnp.asarray(outcome), mask.shape[:-1])
    dense = discounted_returns(token_rewards, mask, discount=discount)
    sparse = jax.lax.stop_gradient(masking.as_f32(outcome))[..., None]
    return jnp.where(mask, dense_coef * dense + outcome_coef * sparse, 0.0)


def implicit_value_advantages(token_rewards: ArrayLike, outcome: ArrayLike, mask: ArrayLike) -> jax.Array:
    """The implicit reward model as a value function instead of a reward: A_t = a_i - v(y_<t).

    v(y_<t) is the sum of the implicit rewards of the tokens before t, the model's soft value of the prefix. The paper
    finds this weaker than using the same numbers as rewards.

    Args:
      token_rewards: [B, T] float, `implicit_token_rewards`, beta included; no gradient.
      outcome: [B] any real dtype; fractions are kept.
      mask: [B, T] bool, True on response tokens.

    Returns:
      [B, T] float32, 0 outside the mask.

    Source: arXiv 2502.01456, appendix (value or reward).
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(token_rewards), mask])
    chex.assert_shape(jnp.asarray(outcome), mask.shape[:-1])
    rewards = jax.lax.stop_gradient(masking.masked(token_rewards, mask))
    before = jax.lax.cumsum(rewards, axis=rewards.ndim - 1) - rewards
    return jnp.where(mask, jax.lax.stop_gradient(masking.as_f32(outcome))[..., None] - before, 0.0)


def whiten(x: ArrayLike, mask: ArrayLike, *, eps: float = 1e-8, axis_name: masking.AxisName = None) -> jax.Array:
    """(x - mean) / sqrt(var + eps), with the mean and the unbiased variance of all valid entries of the batch.

    Args:
      x: any shape, float; no gradient.
      mask: bool of the same shape.
      eps: added to the variance.
      axis_name: mapped axis over which the batch is split, or None; the statistics are global either way.

    Returns:
      float32 of the same shape, 0 outside the mask; 0 everywhere when fewer than two entries are valid.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(x), mask])
    x = jax.lax.stop_gradient(masking.masked(x, mask))
    count = masking.psum(jnp.sum(mask.astype(jnp.float32)), axis_name)
    mean = masking.psum(jnp.sum(x), axis_name) / jnp.maximum(count, 1)
    centred = jnp.where(mask, x - mean, 0.0)
    variance = masking.psum(jnp.sum(jnp.square(centred)), axis_name) / jnp.maximum(count - 1, 1)
    return centred / jnp.sqrt(variance + eps)


def _prime_inputs(
    token_rewards: ArrayLike, outcome: ArrayLike, mask: ArrayLike, group_ids: ArrayLike, num_groups: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Checked (rewards [B, T], their row means [B], mask, ids [B], member [B])."""
    mask = masking.as_mask(mask)
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([jnp.asarray(token_rewards), mask])
    ids, member = masking.group_members(group_ids, num_groups, jnp.any(mask, -1))
    chex.assert_shape([jnp.asarray(outcome), ids], mask.shape[:1])
    rewards = jax.lax.stop_gradient(masking.masked(token_rewards, mask))
    return rewards, masking.mean_last(rewards, mask), mask & member[:, None], ids, member


def _group_others(
    x: jax.Array, ids: jax.Array, member: jax.Array, num_groups: int, axis_name: masking.AxisName
) -> tuple[jax.Array, jax.Array]:
    """([B] sum of `x` over the other members of each row's group, [B] size of the group)."""
    total = masking.group_sum(x, ids, num_groups, member, axis_name)
    size = masking.group_sum(member.astype(jnp.float32), ids, num_groups, member, axis_name)
    size = masking.of_group(size, ids, member)
    # Exactly 0 for a group of one, where total - x might be rounding.
    return jnp.where(size > 1, masking.of_group(total, ids, member) - x, 0.0), size


def _group_spread(
    x: jax.Array, ids: jax.Array, member: jax.Array, num_groups: int, axis_name: masking.AxisName
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[B] mean and standard deviation (over K - 1) of each row's group, and whether it has any spread."""
    size = masking.group_sum(member.astype(jnp.float32), ids, num_groups, member, axis_name)
    size = masking.of_group(size, ids, member)
    total = masking.group_sum(x, ids, num_groups, member, axis_name)
    mean = masking.of_group(total, ids, member) / jnp.maximum(size, 1)
    squares = masking.group_sum(jnp.square(x - mean), ids, num_groups, member, axis_name)
    std = jnp.sqrt(masking.of_group(squares, ids, member) / jnp.maximum(size - 1, 1))
    magnitude = masking.of_group(masking.group_sum(jnp.abs(x), ids, num_groups, member, axis_name), ids, member)
    return mean, std, (size > 1) & (std > _ROUNDING * magnitude / jnp.maximum(size, 1))


def _combine(
    dense: jax.Array,
    sparse: jax.Array,
    mask: jax.Array,
    dense_coef: float,
    outcome_coef: float,
    discount: float,
    whitened: bool,
    axis_name: masking.AxisName,
) -> jax.Array:
    """[B, T] advantages from centred token rewards [B, T] and centred outcomes [B]."""
    returns = dense_coef * discounted_returns(dense, mask, discount=discount) + outcome_coef * sparse[:, None]
    return whiten(returns, mask, axis_name=axis_name) if whitened else jnp.where(mask, returns, 0.0)
