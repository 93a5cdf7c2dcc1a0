"""Rewards on tokens, on steps and on whole responses, and conversions between them.

Process Reinforcement through Implicit Rewards (PRIME), arXiv 2502.01456; Free Process Rewards without Process
Labels, arXiv 2412.01981.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking

Reduction = Literal["sum", "last", "mean"]
Aggregation = Literal["last", "min", "prod", "mean", "max", "sum", "gmean", "mean_logit", "mean_odds", "softmin"]

_PROBABILITY_FLOOR = 1e-6  # keeps log, logit and odds of a score finite; in float32, 1 - 1e-8 is 1


def implicit_token_rewards(
    logp: ArrayLike,
    ref_logp: ArrayLike,
    mask: ArrayLike,
    *,
    beta: float = 0.05,
    include_last: bool = True,
    token_weights: ArrayLike | None = None,
) -> jax.Array:
    r"""Implicit process reward of every token: beta times the log-ratio of the reward model to its reference.

    r_t = beta * (log pi_phi(y_t | y_<t) - log pi_ref(y_t | y_<t)).

    The sum over the response is the outcome score that `outcome_ce_loss` fits; the partial sums are step values,
    beta * log E_ref[exp(r(y) / beta) | y_<=t]. The published PRIME code leaves beta out of the reward
    (`beta=1.0` here), which makes no difference after `normalize_by_return`; verl's recipe keeps beta and gives
    the last token no reward (`include_last=False`).

    Args:
      logp: [B, T] float, log-probabilities under the reward model; receives gradients.
      ref_logp: [B, T] float, log-probabilities under the reference; no gradient.
      mask: [B, T] bool, True on response tokens, the first end-of-sequence token included.
      beta: scale of the reward, > 0.
      include_last: False gives the last response token the reward 0.
      token_weights: optional [B, T] float, multiplies the rewards (0 removes a token from the reward).

    Returns:
      [B, T] float32, 0 outside the mask. Any leading axes; an empty row gives zeros.

    Raises:
      AssertionError: the shapes differ.

    Source: arXiv 2502.01456, Eq. 3; arXiv 2412.01981, Prop. 3.1.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(logp), jnp.asarray(ref_logp), mask])
    rewards = beta * (masking.masked(logp, mask) - jax.lax.stop_gradient(masking.masked(ref_logp, mask)))
    if token_weights is not None:
        chex.assert_equal_shape([jnp.asarray(token_weights), mask])
        rewards = rewards * masking.masked(token_weights, mask)
    return rewards if include_last else jnp.where(masking.is_last(mask), 0.0, rewards)


def outcome_token_rewards(outcome: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Places the outcome of each response on its last valid token.

    Args:
      outcome: [B] any real dtype, usually in [0, 1]; fractions are kept. Receives gradients.
      mask: [B, T] bool, True on response tokens.

    Returns:
      [B, T] float32, 0 elsewhere. A row with an empty mask is all zeros.
    """
    mask = masking.as_mask(mask)
    outcome = masking.as_f32(outcome)
    chex.assert_shape(outcome, mask.shape[:-1])
    return jnp.where(masking.is_last(mask), outcome[..., None], 0.0)


def whole_token_rewards(token_rewards: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Moves the sum of each response's token rewards to its last valid token (PRIME's granularity "whole").

    Args:
      token_rewards: [B, T] float. Receives gradients.
      mask: [B, T] bool, True on response tokens.

    Returns:
      [B, T] float32, 0 elsewhere; an empty row gives zeros.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(token_rewards), mask])
    return outcome_token_rewards(jnp.sum(masking.masked(token_rewards, mask), -1), mask)


def lambda_token_rewards(
    token_rewards: ArrayLike,
    mask: ArrayLike,
    *,
    lambda_: float,
    outcome: ArrayLike | None = None,
    include_last: bool = True,
) -> jax.Array:
    """Discounted sums of this and later rewards, the `lambda` option of verl's PRIME recipe.

    r'_t = r_t + lambda * r'_{t+1}. With `outcome`, the last valid token's reward is first replaced by
    outcome - sum of the earlier ones, so that every response sums to its true outcome (`prime_use_gt`).
    `lambda_=0` returns the rewards unchanged, without the replacement, as released.

    Args:
      token_rewards: [B, T] float. Receives gradients.
      mask: [B, T] bool, True on response tokens.
      lambda_: decay in [0, 1].
      outcome: optional [B] float in [0, 1].
      include_last: False clears the last token's reward after the sums, as released.

    Returns:
      [B, T] float32, 0 outside the mask.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(token_rewards), mask])
    rewards, last = masking.masked(token_rewards, mask), masking.is_last(mask)
    kept = mask if include_last else mask & ~last
    if lambda_ == 0:
        return jnp.where(kept, rewards, 0.0)
    if outcome is not None:
        before = jnp.sum(jnp.where(last, 0.0, rewards), -1)
        chex.assert_shape(jnp.asarray(outcome), mask.shape[:-1])
        rewards = jnp.where(last, (masking.as_f32(outcome) - before)[..., None], rewards)
    decay = jnp.where(mask, lambda_, 1.0)
    return jnp.where(kept, masking.reverse_recurrence(decay, rewards), 0.0)


def step_rewards(
    token_rewards: ArrayLike, step_ids: ArrayLike, *, num_steps: int, how: Reduction = "sum"
) -> tuple[jax.Array, jax.Array]:
    """Reduces token values to one value per step.

    With the implicit token rewards, "sum" gives the step reward q^k - q^{k-1} of arXiv 2412.01981; "last" reads
    a score at the last token of each step.

    Args:
      token_rewards: [B, T] float. Receives gradients.
      step_ids: [B, T] int, the step of each token in [0, num_steps), -1 outside the response. Ids need not be
        sorted. Tokens of steps beyond `num_steps` are left out.
      num_steps: static number of step slots S.
      how: "sum", "last" or "mean" over the tokens of a step.

    Returns:
      (values [B, S] float32, mask [B, S] bool): the mask is True for steps that have a token; values are 0 for
      the others.
    """
    masking.check_option("how", how, ("sum", "last", "mean"))
    ids = jnp.asarray(step_ids)
    chex.assert_equal_shape([jnp.asarray(token_rewards), ids])
    chex.assert_type(ids, int)
    inside = (ids >= 0) & (ids < num_steps)
    values = masking.masked(token_rewards, inside)
    if how == "last":
        values = jnp.where(_is_last_of_step(ids, inside, num_steps), values, 0.0)
    sums = _per_step(values, ids, inside, num_steps)
    counts = _per_step(inside.astype(jnp.float32), ids, inside, num_steps)
    return (sums / jnp.maximum(counts, 1) if how == "mean" else sums), counts > 0


def token_rewards_from_steps(step_rewards: ArrayLike, step_ids: ArrayLike) -> jax.Array:
    """Places each step's reward on the last token of the step.

    Args:
      step_rewards: [B, S] float; entries of steps that have no token are not read. Receives gradients.
      step_ids: [B, T] int in [0, S), -1 outside the response.

    Returns:
      [B, T] float32, 0 on all other tokens.
    """
    ids, rewards = jnp.asarray(step_ids), masking.as_f32(step_rewards)
    chex.assert_type(ids, int)
    chex.assert_equal(ids.ndim, rewards.ndim)
    num_steps = rewards.shape[-1]
    inside = (ids >= 0) & (ids < num_steps)
    here = jnp.take_along_axis(rewards, jnp.where(inside, ids, 0), axis=-1)
    return jnp.where(_is_last_of_step(ids, inside, num_steps), here, 0.0)


def aggregate_steps(
    scores: ArrayLike, mask: ArrayLike, *, how: Aggregation = "last", temperature: float = 0.1
) -> jax.Array:
    """Aggregates the scores of a response's steps to one score.

    "last", "min", "prod", "mean", "max" and "sum" are self-explanatory; "gmean" is the geometric mean, "mean_logit"
    the mean of log(p / (1 - p)), "mean_odds" the mean of p / (1 - p), and "softmin" the mean of the scores under
    weights softmax(-score / temperature), between the minimum (temperature -> 0) and the mean (-> infinity).
    Scores trained on Monte-Carlo labels are best aggregated by "last", those trained on judged or human labels
    by "prod" or "min" (arXiv 2501.07301).

    Args:
      scores: [B, S] float; probabilities in [0, 1] for gmean, mean_logit and mean_odds, which clip to
        [1e-6, 1 - 1e-6]; any real number for the others. Receives gradients.
      mask: [B, S] bool, True on steps that exist.
      how: see above.
      temperature: of "softmin", > 0.

    Returns:
      [B] float32. A response without steps scores 0 for every `how`.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(scores), mask])
    x = masking.masked(scores, mask)
    some = jnp.any(mask, -1)
    if how == "last":
        return jnp.sum(jnp.where(masking.is_last(mask), x, 0.0), -1)
    if how == "sum":
        return jnp.sum(x, -1)
    if how == "mean":
        return masking.mean_last(x, mask)
    if how in ("min", "max"):
        bound = jnp.inf if how == "min" else -jnp.inf
        reduced = getattr(jnp, how)(jnp.where(mask, x, bound), axis=-1)
        return jnp.where(some, reduced, 0.0)
    if how == "prod":
        return jnp.where(some, jnp.prod(jnp.where(mask, x, 1.0), -1), 0.0)
    if how == "softmin":
        weights = jax.nn.softmax(jnp.where(mask, -x / temperature, -1e30), axis=-1)
        return jnp.sum(jnp.where(mask, weights * x, 0.0), -1)
    masking.check_option("how", how, Aggregation.__args__)  # type: ignore[attr-defined]
    p = jnp.clip(x, _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)
    if how == "gmean":
        return jnp.where(some, jnp.exp(masking.mean_last(jnp.where(mask, jnp.log(p), 0.0), mask)), 0.0)
    terms = p / (1 - p) if how == "mean_odds" else jnp.log(p) - jnp.log1p(-p)
    return masking.mean_last(jnp.where(mask, terms, 0.0), mask)


def normalize_by_return(
    rewards: ArrayLike, mask: ArrayLike, *, eps: float = 1e-6, axis_name: masking.AxisName = None
) -> jax.Array:
    """Divides all rewards by the largest absolute undiscounted return-to-go of the batch.

    r / (max_{i,t} |sum_{s>=t} r_{i,s}| + eps): afterwards no return exceeds 1 in magnitude, and the scale of the
    reward (beta) cancels. The released codes take the maximum per device; here it is that of the whole batch over
    `axis_name`.

    Args:
      rewards: [B, T] float; no gradient.
      mask: [B, T] bool, True on response tokens.
      eps: added to the maximum. It keeps zeros at 0 and halves returns of its own size, but a larger signal that is
        nothing but noise is scaled to 1 like any other: log-probs whose differences are rewards must be rounded alike,
        see ``models.compiler_options``.
      axis_name: mapped axis over which the batch is split, or None.

    Returns:
      [B, T] float32, 0 outside the mask; an empty batch gives zeros.

    Source: `prime_norm=batch_norm` of the code of arXiv 2502.01456.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(rewards), mask])
    rewards = jax.lax.stop_gradient(masking.masked(rewards, mask))
    largest = masking.pmax(jnp.max(jnp.abs(masking.reverse_cumsum(rewards)), initial=0.0), axis_name)
    return rewards / (largest + eps)


def _per_step(x: jax.Array, ids: jax.Array, inside: jax.Array, num_steps: int) -> jax.Array:
    """[..., S] sums of `x` [..., T] over the tokens of each step."""
    rows = jnp.where(inside, ids, num_steps).reshape(-1, ids.shape[-1])
    sums = jax.vmap(lambda r, i: jax.ops.segment_sum(r, i, num_steps))(x.reshape(rows.shape), rows)
    return sums.reshape(*ids.shape[:-1], num_steps)


def _is_last_of_step(ids: jax.Array, inside: jax.Array, num_steps: int) -> jax.Array:
    """[..., T] bool: no later token belongs to the same step."""
    position = jnp.broadcast_to(jnp.arange(ids.shape[-1]), ids.shape)
    rows = jnp.where(inside, ids, num_steps).reshape(-1, ids.shape[-1])
    last = jax.vmap(lambda p, i: jax.ops.segment_max(p, i, num_steps))(position.reshape(rows.shape), rows)
    last = last.reshape(*ids.shape[:-1], num_steps)
    return inside & (jnp.take_along_axis(last, jnp.where(inside, ids, 0), axis=-1) == position)
