"""Credit assignment: from process rewards to one number per step, placed on all tokens of the step.

A process reward is already a difference of values, the change that a step made; summing it again to a reward-to-go
charges correct steps for later errors. The forms below differ in what a step is credited with; `centred_credit` then
subtracts a baseline. Results are advantages: constants to the optimiser, no function passes a gradient.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.rewards import step_rewards

Baseline = Literal["group", "leave_one_out", "step", "none"]

_ROUNDING = 1e-6  # a spread below this share of the mean magnitude is float32 rounding, not a signal


def step_credit(token_rewards: ArrayLike, step_ids: ArrayLike, *, num_steps: int) -> jax.Array:
    """Each step's own reward, the sum over its tokens, on all of its tokens; later steps do not count.

    Args:
      token_rewards: [B, T] float, process rewards after shaping; no gradient.
      step_ids: [B, T] int in [0, num_steps), -1 outside the response.
      num_steps: static number of step slots S.

    Returns:
      [B, T] float32, 0 outside the response.

    Source: step-level advantages of arXiv 2509.19199 (iStar), before its normalisation.
    """
    rewards, _ = _step_sums(token_rewards, step_ids, num_steps)
    return _on_tokens(rewards, step_ids)


def cumulative_credit(token_rewards: ArrayLike, step_ids: ArrayLike, *, num_steps: int) -> jax.Array:
    """The sum of step rewards up to and including a token's step, on all tokens of the step.

    With one step per token and implicit rewards of the policy itself this is SPRO's cumulative process reward; its
    masked step advantage is `centred_credit(..., baseline="step")`.

    Args:
      token_rewards: [B, T] float, process rewards after shaping; no gradient.
      step_ids: [B, T] int in [0, num_steps), -1 outside the response.
      num_steps: static number of step slots S.

    Returns:
      [B, T] float32, 0 outside the response.

    Source: arXiv 2507.01551 (SPRO).
    """
    rewards, _ = _step_sums(token_rewards, step_ids, num_steps)
    return _on_tokens(jnp.cumsum(rewards, -1), step_ids)


def min_credit(
    token_rewards: ArrayLike, step_ids: ArrayLike, mask: ArrayLike, *, num_steps: int, temperature: float = 0.1
) -> jax.Array:
    """Min-form credit: the value of a step is the smallest reward from it on, instead of the sum.

    With step rewards r_k and weights w_k = softmax_k(-r_k / temperature) over the steps of a response, the credit of
    step s is `sum_{k >= s} w_k r_k`. At temperature 0 the weight is 1 on the first of the lowest steps: steps up
    to it get its reward, later ones 0.

    Args:
      token_rewards: [B, T] float, process rewards after shaping; no gradient. The published temperature supposes
        step rewards in [-1, 1].
      step_ids: [B, T] int in [0, num_steps), -1 outside the response.
      mask: [B, T] bool, True on tokens that count; a step without such tokens is ignored.
      num_steps: static number of step slots S.
      temperature: static, >= 0; 0.1 in the paper.

    Returns:
      [B, T] float32, 0 outside the mask.

    Source: arXiv 2504.15275 (PURE).
    """
    if temperature < 0:
        raise ValueError(f"temperature={temperature}; expected a number >= 0 (0 takes the strict minimum)")
    ids = _masked_ids(step_ids, mask)
    rewards, present = _step_sums(token_rewards, ids, num_steps)
    if temperature == 0:
        lowest = jnp.argmin(jnp.where(present, rewards, jnp.inf), -1, keepdims=True)
        weights = (jnp.arange(num_steps) == lowest).astype(jnp.float32)
    else:
        weights = jax.nn.softmax(jnp.where(present, -rewards / temperature, -1e30), -1)
    weighted = jnp.where(present, weights * rewards, 0.0)
    return _on_tokens(masking.reverse_cumsum(weighted), ids)


def value_credit(
    values: ArrayLike, initial_value: ArrayLike, step_ids: ArrayLike, *, num_steps: int
) -> jax.Array:
    """The change of value that a step makes, `V_s - V_{s-1}`, on all tokens of the step.

    The values may be Monte-Carlo estimates from rollouts of each prefix (VinePPO, SPO), those of a critic, or the
    scores of a value model.

    Args:
      values: [B, S] float, value of the prefix that ends with each step; entries of steps without tokens are not
        read; no gradient.
      initial_value: [B] float, value of the prompt alone; not read for a response without tokens; no gradient.
      step_ids: [B, T] int in [0, num_steps), -1 outside the response.
      num_steps: static number of step slots S.

    Returns:
      [B, T] float32, 0 outside the response.

    Source: arXiv 2410.01679 (VinePPO); arXiv 2505.23564 (SPO).
    """
    ids = jnp.asarray(step_ids)
    chex.assert_shape(jnp.asarray(values), (*ids.shape[:-1], num_steps))
    chex.assert_shape(jnp.asarray(initial_value), ids.shape[:-1])
    _, present = _step_sums(jnp.zeros(ids.shape), ids, num_steps)
    v = jax.lax.stop_gradient(masking.masked(values, present))
    start = jax.lax.stop_gradient(masking.masked(initial_value, present.any(-1)))
    return _on_tokens(jnp.where(present, v - masking.previous_valid(v, present, start=start), 0.0), ids)


def centred_credit(
    credit: ArrayLike,
    step_ids: ArrayLike,
    mask: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    num_steps: int,
    baseline: Baseline = "group",
    scale: bool = False,
    eps: float = 1e-6,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """Credit minus a baseline from the other responses to the same prompt; every step counts once.

    "group": the mean over all steps of the group's responses. "leave_one_out": over the steps of the group's other
    responses (0 when there are none). "step": over the group's steps with the same number, the response's own
    included (SPRO's masked step advantage). "none": no baseline. `scale` divides by the standard deviation (over
    n - 1) of all the group's steps, plus eps, as GRPO does; a group whose steps are all equal, to float32 rounding,
    then gets 0.

    Args:
      credit: [B, T] float, from one of the functions above: equal on all tokens of a step; no gradient.
      step_ids: [B, T] int in [0, num_steps), -1 outside the response.
      mask: [B, T] bool, True on tokens that count. A row without tokens is not a member of its group.
      group_ids: [B] int in [0, num_groups), in any order; rows with other ids get 0.
      num_groups: static number of groups.
      num_steps: static number of step slots S.
      baseline: see above.
      scale: see above.
      eps: added to the standard deviation.
      axis_name: mapped axis over which the batch is split (groups may span devices), or None.

    Returns:
      [B, T] float32, 0 outside the mask.

    Source: arXiv 2402.03300 (process supervision of GRPO); arXiv 2507.01551 (SPRO), for "step".
    """
    masking.check_option("baseline", baseline, Baseline.__args__)  # type: ignore[attr-defined]
    ids = _masked_ids(step_ids, mask)
    chex.assert_rank(ids, 2)
    chex.assert_equal_shape([jnp.asarray(credit), ids])
    values, present = step_rewards(jax.lax.stop_gradient(masking.as_f32(credit)), ids, num_steps=num_steps, how="mean")
    group, member = masking.group_members(group_ids, num_groups, present.any(-1))
    chex.assert_shape(group, ids.shape[:1])
    steps = _GroupSteps(values, present & member[:, None], group, member, num_groups, axis_name)
    centred = jax.lax.stop_gradient(masking.masked(credit, ids >= 0)) - _on_tokens(_baseline(steps, baseline), ids)
    if scale:
        centred = centred * _inverse_spread(steps, eps)[:, None]
    return jnp.where((ids >= 0) & (ids < num_steps) & member[:, None], centred, 0.0)


class _GroupSteps(NamedTuple):
    """Step values with their groups.

    Attributes:
      values: [B, S] f32, 0 where not present.
      present: [B, S] bool, steps of members that have a token.
      ids: [B] group ids.
      member: [B] bool.
      num_groups: static number of groups.
      axis_name: of the groups' sums.
    """

    values: jax.Array
    present: jax.Array
    ids: jax.Array
    member: jax.Array
    num_groups: int
    axis_name: masking.AxisName

    def total(self, x: jax.Array) -> jax.Array:
        """[B] sums of `x` [B, S] over all present steps of each row's group."""
        rows = jnp.where(self.present, x, 0.0).sum(-1)
        sums = masking.group_sum(rows, self.ids, self.num_groups, self.member, self.axis_name)
        return masking.of_group(sums, self.ids, self.member)

    def total_by_step(self, x: jax.Array) -> jax.Array:
        """[B, S] sums of `x` [B, S] over the group's present steps of the same number."""

        def column(x: jax.Array) -> jax.Array:
            sums = masking.group_sum(x, self.ids, self.num_groups, self.member, self.axis_name)
            return masking.of_group(sums, self.ids, self.member)

        return jax.vmap(column, 1, 1)(jnp.where(self.present, x, 0.0))


def _baseline(steps: _GroupSteps, kind: Baseline) -> jax.Array:
    """[B, S] what is subtracted from each step's value."""
    ones = jnp.ones_like(steps.values)
    if kind == "none":
        return jnp.zeros_like(steps.values)
    if kind == "step":
        return steps.total_by_step(steps.values) / jnp.maximum(steps.total_by_step(ones), 1)
    total, count = steps.total(steps.values), steps.total(ones)
    if kind == "leave_one_out":
        own = steps.present.sum(-1).astype(jnp.float32)
        # Exactly 0 without other steps, where the difference of the sums might be rounding.
        total = jnp.where(count > own, total - jnp.where(steps.present, steps.values, 0.0).sum(-1), 0.0)
        count = count - own
    return jnp.broadcast_to((total / jnp.maximum(count, 1))[:, None], steps.values.shape)


def _inverse_spread(steps: _GroupSteps, eps: float) -> jax.Array:
    """[B] 1 / (standard deviation of the group's steps + eps); 0 for a group without spread."""
    count = steps.total(jnp.ones_like(steps.values))
    mean = steps.total(steps.values) / jnp.maximum(count, 1)
    std = jnp.sqrt(steps.total(jnp.square(steps.values - mean[:, None])) / jnp.maximum(count - 1, 1))
    magnitude = steps.total(jnp.abs(steps.values)) / jnp.maximum(count, 1)
    return jnp.where((count > 1) & (std > _ROUNDING * magnitude), 1 / (std + eps), 0.0)


def _masked_ids(step_ids: ArrayLike, mask: ArrayLike) -> jax.Array:
    """[B, T] step ids, -1 outside the mask."""
    ids, mask = jnp.asarray(step_ids), masking.as_mask(mask)
    chex.assert_equal_shape([ids, mask])
    return jnp.where(mask, ids, -1)


def _step_sums(token_rewards: ArrayLike, step_ids: ArrayLike, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """([B, S] sums of the rewards over each step's tokens, [B, S] whether the step has a token); no gradient."""
    return step_rewards(jax.lax.stop_gradient(masking.as_f32(token_rewards)), step_ids, num_steps=num_steps)


def _on_tokens(values: jax.Array, step_ids: ArrayLike) -> jax.Array:
    """[B, T]: the value [B, S] of each token's step; 0 for tokens of no step."""
    ids = jnp.asarray(step_ids)
    inside = (ids >= 0) & (ids < values.shape[-1])
    return jnp.where(inside, jnp.take_along_axis(values, jnp.where(inside, ids, 0), axis=-1), 0.0)
