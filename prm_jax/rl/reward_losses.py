"""Losses that train process reward models on outcomes, unpaired judgements and step labels.

Scores here are already multiplied by beta: `score_i = sum_t implicit_token_rewards(...)`. Sources: PRIME, arXiv
2502.01456; Free Process Rewards without Process Labels, arXiv 2412.01981, and the works named at each function.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss, TokenAggregation, aggregate_tokens, mean_over


def outcome_ce_loss(
    token_rewards: ArrayLike,
    outcome: ArrayLike,
    mask: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    label_smoothing: float = 0.0,
) -> Loss:
    """PRIME's online loss: cross-entropy of sigmoid(sum of the token rewards) with the outcome.

    -(a * log sigmoid(s) + (1 - a) * log sigmoid(-s)), s_i = sum_t r_{i,t}: a sum over tokens, a mean over
    responses. Computed with softplus, so that neither it nor its gradient saturates. It is log 2 when the reward model
    equals its reference.

    Args:
      token_rewards: [B, T] float, `implicit_token_rewards`, beta included; receives gradients.
      outcome: [B] any real dtype, in [0, 1]; fractions are soft labels. No gradient.
      mask: [B, T] bool, True on response tokens. Responses without tokens are not counted.
      weights: [B] float >= 0, factors of the responses' losses, such as `class_weights`; None: ones. No gradient.
      label_smoothing: in [0, 0.5), the share of outcomes that are believed to be wrong: a becomes
        (1 - label_smoothing) a + label_smoothing (1 - a).

    Returns:
      Loss with the number of responses as weight, whatever their factors; metrics accuracy (sign of the score against
      outcome > 1/2; a score of 0 or an outcome of 1/2 counts as wrong unless both are), score and outcome (means).

    Source: arXiv 2502.01456; arXiv 2412.01981, Eq. 5 (which omits the minus).
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(token_rewards), mask])
    chex.assert_shape(jnp.asarray(outcome), mask.shape[:-1])
    rows = jnp.any(mask, -1)
    s = jnp.sum(masking.masked(token_rewards, mask), -1)
    a = jax.lax.stop_gradient(masking.masked(outcome, rows))
    right = jnp.sign(s) == jnp.sign(2 * a - 1)
    metrics = {"accuracy": mean_over(right, rows), "score": mean_over(s, rows), "outcome": mean_over(a, rows)}
    believed = label_smoothing + (1 - 2 * label_smoothing) * a
    losses = jax.nn.softplus(s) - believed * s
    if weights is not None:
        chex.assert_shape(jnp.asarray(weights), mask.shape[:-1])
        losses = jax.lax.stop_gradient(masking.masked(weights, rows)) * losses
    loss = mean_over(losses, rows)
    return Loss(loss.total, loss.weight, jax.lax.stop_gradient(metrics))


def class_weights(
    outcome: ArrayLike, mask: ArrayLike | None = None, *, axis_name: masking.AxisName = None
) -> jax.Array:
    """Factors with which right and wrong responses weigh equally: n / (2 n_right) and n / (2 n_wrong).

    A fractional outcome a counts as a right and 1 - a wrong responses. The factors of a batch with both classes have
    mean 1; where one class is missing, the other still weighs one half.

    Args:
      outcome: [B] float in [0, 1]; no gradient.
      mask: [B] bool, False on responses that do not count; None: all do.
      axis_name: mapped axis over which the batch is split, or None.

    Returns:
      [B] float32, 0 outside the mask.
    """
    a = jax.lax.stop_gradient(masking.as_f32(outcome))
    chex.assert_rank(a, 1)
    mask = jnp.ones(a.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([a, mask])
    a = masking.masked(a, mask)
    right = masking.psum(a.sum(), axis_name)
    count = masking.psum(mask.sum().astype(jnp.float32), axis_name)
    halves = [jnp.where(n > 0, count / (2 * jnp.where(n > 0, n, 1.0)), 0.0) for n in (right, count - right)]
    return jnp.where(mask, a * halves[0] + (1 - a) * halves[1], 0.0)


def kto_reference_point(
    log_ratios: ArrayLike, mask: ArrayLike | None = None, *, axis_name: masking.AxisName = None
) -> jax.Array:
    """KTO's reference point: the mean log-ratio of mismatched pairs over the whole batch, at least 0, a constant.

    Args:
      log_ratios: [B] float, log-ratios of responses paired with other prompts (an estimate of the KL); no gradient.
      mask: optional [B] bool.
      axis_name: mapped axis over which the batch is split, or None.

    Returns:
      float32 scalar >= 0; 0 for an empty batch.

    Source: arXiv 2402.01306.
    """
    x = jnp.asarray(log_ratios)
    chex.assert_rank(x, 1)
    mask = jnp.ones(x.shape, bool) if mask is None else masking.as_mask(mask)
    return jax.lax.stop_gradient(_mean_above_0(x, mask, axis_name))


def kto_loss(
    log_ratios: ArrayLike,
    desirable: ArrayLike,
    reference_point: ArrayLike = 0.0,
    *,
    beta: float = 0.05,
    desirable_weight: ArrayLike = 1.0,
    undesirable_weight: ArrayLike = 1.0,
    variant: Literal["paper", "vanilla"] = "paper",
    mask: ArrayLike | None = None,
    axis_name: masking.AxisName = None,
) -> Loss:
    """Kahneman-Tversky optimisation on unpaired responses.

    weight * (1 - sigmoid(+-beta * (log-ratio - z))), + for desirable responses and - for the others. "paper": z
    is the given `reference_point`, a constant. "vanilla" (ImplicitPRM): desirable responses are measured from
    max(mean log-ratio of the others, 0) and the others from max(mean log-ratio of the desirable, 0), through
    which gradients flow.

    Args:
      log_ratios: [B] float, sums over the response of log pi - log ref, *without* beta; receives gradients.
      desirable: [B] bool.
      reference_point: scalar z >= 0, see `kto_reference_point`; "vanilla" does not use it.
      beta: scale.
      desirable_weight: scalar or [B] float, multiplies the losses of desirable responses; no gradient. ReARTeR's
        explanation model uses exp(old score - new score) here, one per response (arXiv 2501.07861).
      undesirable_weight: scalar or [B] float, multiplies the others; no gradient.
      variant: see above.
      mask: optional [B] bool, False for rows that do not count.
      axis_name: mapped axis over which the batch is split, or None; only the means of "vanilla" use it.

    Returns:
      Loss with the number of responses as weight; metrics desirable and undesirable (mean beta * log-ratio).

    Source: arXiv 2402.01306; "vanilla" is in the released code of arXiv 2412.01981.
    """
    masking.check_option("variant", variant, ("paper", "vanilla"))
    x, good = jnp.asarray(log_ratios), masking.as_mask(desirable)
    chex.assert_rank(x, 1)
    mask = jnp.ones(x.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([x, good, mask])
    x, win, lose = masking.masked(x, mask), good & mask, ~good & mask
    z = jax.lax.stop_gradient(masking.as_f32(reference_point))
    if variant == "vanilla":
        z = jnp.where(good, _mean_above_0(x, lose, axis_name), _mean_above_0(x, win, axis_name))
    signed = jnp.where(good, beta * (x - z), beta * (z - x))
    weight = jnp.where(good, masking.as_f32(desirable_weight), masking.as_f32(undesirable_weight))
    loss = mean_over(jax.lax.stop_gradient(masking.masked(weight, mask)) * jax.nn.sigmoid(-signed), mask)
    metrics = {"desirable": mean_over(beta * x, win), "undesirable": mean_over(beta * x, lose)}
    return Loss(loss.total, loss.weight, jax.lax.stop_gradient(metrics))


def step_ce_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike,
    *,
    threshold: float | None = None,
    positive_class: int = 1,
    aggregation: TokenAggregation = "token-mean",
) -> Loss:
    """Cross-entropy of step scores with hard or soft step labels.

    Two logits per step are reduced to one, their difference, which gives the softmax's loss exactly; so a head
    with two labels, two vocabulary logits ("+" and "-") and a head with one output are trained with the same loss.

    Args:
      logits: [B, S, 2] or [B, S] float; receives gradients. Read at the last token of each step's separator.
      labels: [B, S] any real dtype, the probability in [0, 1] that the step is good; fractions are kept. No
        gradient. Masked labels (-100, say) are ignored.
      mask: [B, S] bool, True on steps with a label that counts; `through_first_error` gives the usual one.
      threshold: turns soft labels into hard ones, label > threshold; None keeps them soft.
      positive_class: which of two logits is the good one (1 in TRL; 0 where the "+" token comes first).
      aggregation: see `aggregate_tokens`, over steps.

    Returns:
      Loss with the number of labelled steps as weight, 0 when no step has a label; metrics accuracy (score > 0
      against label > 1/2) and positive_rate (mean label).

    Source: arXiv 2211.14275; soft labels arXiv 2312.08935.
    """
    mask = masking.as_mask(mask)
    x = jnp.asarray(logits)
    if x.ndim == mask.ndim + 1:
        chex.assert_axis_dimension(x, -1, 2)
        x = masking.as_f32(x)
        x = x[..., positive_class] - x[..., 1 - positive_class]
    chex.assert_equal_shape([x, jnp.asarray(labels), mask])
    x, y = masking.masked(x, mask), jax.lax.stop_gradient(masking.masked(labels, mask))
    if threshold is not None:
        y = (y > threshold).astype(jnp.float32)
    result = aggregate_tokens(jax.nn.softplus(x) - y * x, mask, aggregation=aggregation)
    metrics = {"accuracy": aggregate_tokens((x > 0) == (y > 0.5), mask), "positive_rate": aggregate_tokens(y, mask)}
    return Loss(result.total, result.weight, jax.lax.stop_gradient(metrics))


def step_kto_loss(step_rewards: ArrayLike, labels: ArrayLike, mask: ArrayLike) -> Loss:
    """Step labels on implicit step rewards: the mean over a response's steps of -log sigmoid(l * |r|), l = +-1.

    As printed in the paper, the absolute value included: a step labelled wrong is pulled towards reward 0, not
    below it.

    Args:
      step_rewards: [B, S] float, from `step_rewards` on implicit token rewards; receives gradients.
      labels: [B, S] bool (or 0/1), True for right steps.
      mask: [B, S] bool, True on labelled steps.

    Returns:
      Loss with the number of responses that have a labelled step as weight.

    Source: arXiv 2412.01981 (step labels on top of an implicit reward model; not in its released code).
    """
    mask = masking.as_mask(mask)
    good = masking.as_mask(labels)
    chex.assert_equal_shape([jnp.asarray(step_rewards), good, mask])
    size = jnp.abs(masking.masked(step_rewards, mask))
    each = jax.nn.softplus(jnp.where(good, -size, size))
    result = aggregate_tokens(each, mask, aggregation="seq-mean-token-mean")
    return Loss(result.total, result.weight)


def _mean_above_0(x: jax.Array, mask: jax.Array, axis_name: masking.AxisName) -> jax.Array:
    """max(mean of the selected entries of the whole batch, 0)."""
    total = masking.psum(jnp.sum(masking.masked(x, mask)), axis_name)
    count = masking.psum(jnp.sum(mask.astype(jnp.float32)), axis_name)
    return jnp.maximum(total / jnp.maximum(count, 1), 0.0)
