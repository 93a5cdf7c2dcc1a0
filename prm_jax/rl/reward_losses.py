"""Losses that train process reward models: on outcomes, on pairs, on groups, and on step labels.

Scores here are already multiplied by beta: `score_i = sum_t implicit_token_rewards(...)`. Sources: PRIME, arXiv
2502.01456; Free Process Rewards without Process Labels, arXiv 2412.01981, and the works named at each function.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss, Mean, TokenAggregation, aggregate_tokens


def outcome_ce_loss(token_rewards: ArrayLike, outcome: ArrayLike, mask: ArrayLike) -> Loss:
    """PRIME's online loss: cross-entropy of sigmoid(sum of the token rewards) with the outcome.

    -(a * log sigmoid(s) + (1 - a) * log sigmoid(-s)), s_i = sum_t r_{i,t}: a sum over tokens, a mean over
    responses. Written with softplus, so it neither saturates nor loses its gradient at any score. It is log 2
    when the reward model equals its reference.

    Args:
      token_rewards: [B, T] float, `implicit_token_rewards`, beta included; receives gradients.
      outcome: [B] any real dtype, in [0, 1]; fractions are soft labels. No gradient.
      mask: [B, T] bool, True on response tokens. Responses without tokens are not counted.

    Returns:
      Loss with the number of responses as weight; metrics accuracy (sign of the score against outcome > 1/2; a
      score of 0 or an outcome of 1/2 counts as wrong unless both are), score and outcome (means).

    Source: arXiv 2502.01456; arXiv 2412.01981, Eq. 5 (which leaves out the minus).
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(token_rewards), mask])
    chex.assert_shape(jnp.asarray(outcome), mask.shape[:-1])
    rows = jnp.any(mask, -1)
    s = jnp.sum(masking.masked(token_rewards, mask), -1)
    a = jax.lax.stop_gradient(masking.masked(outcome, rows))
    right = jnp.sign(s) == jnp.sign(2 * a - 1)
    metrics = {"accuracy": _over(right, rows), "score": _over(s, rows), "outcome": _over(a, rows)}
    loss = _over(jax.nn.softplus(s) - a * s, rows)
    return Loss(loss.total, loss.weight, jax.lax.stop_gradient(metrics))


def pairwise_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    margin: ArrayLike = 0.0,
    label_smoothing: float = 0.0,
    mask: ArrayLike | None = None,
) -> Loss:
    """Bradley-Terry loss of pairs: -log sigmoid(chosen - rejected - margin).

    With label smoothing e: (1 - e) * (-log sigmoid(d)) + e * (-log sigmoid(-d)). With the sums of implicit
    rewards as scores it is DPO.

    Args:
      chosen: [P] float; receives gradients.
      rejected: [P] float; receives gradients.
      margin: scalar or [P] float; a constant the difference must exceed.
      label_smoothing: e, in [0, 1/2).
      mask: optional [P] bool, False for pairs that do not count.

    Returns:
      Loss with the number of pairs as weight; metrics accuracy (chosen > rejected, ties half) and margin.
    """
    c, r = jnp.asarray(chosen), jnp.asarray(rejected)
    chex.assert_equal_shape([c, r])
    mask = jnp.ones(c.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([c, mask])
    gap = masking.masked(c, mask) - masking.masked(r, mask)
    d = gap - jax.lax.stop_gradient(masking.masked(jnp.broadcast_to(masking.as_f32(margin), c.shape), mask))
    loss = _over((1 - label_smoothing) * jax.nn.softplus(-d) + label_smoothing * jax.nn.softplus(d), mask)
    metrics = {"accuracy": _over(0.5 * (jnp.sign(gap) + 1), mask), "margin": _over(gap, mask)}
    return Loss(loss.total, loss.weight, jax.lax.stop_gradient(metrics))


def all_pairs_loss(
    scores: ArrayLike,
    outcome: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    mask: ArrayLike | None = None,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
) -> Loss:
    """`pairwise_loss` over every pair of a better and a worse response to the same prompt.

    For outcomes 0 and 1 this is the full product correct x wrong of ImplicitPRM's DPO; prompts that lack either
    have no pair and drop out. Costs O(B^2) memory, no loop.

    Args:
      scores: [B] float, sums of implicit rewards (beta included); receives gradients.
      outcome: [B] any real dtype; i is better than j where outcome_i > outcome_j.
      group_ids: [B] int in [0, num_groups), in any order; rows with other ids are left out. Under `shard_map` a
        group must lie on one device.
      num_groups: static number of groups.
      mask: optional [B] bool, False for rows that do not count.
      margin: see `pairwise_loss`.
      label_smoothing: see `pairwise_loss`.

    Returns:
      Loss with the number of pairs as weight; metrics as `pairwise_loss`.

    Source: arXiv 2412.01981 (DPO); arXiv 2305.18290.
    """
    s, a, ids, member = _group_inputs(scores, outcome, group_ids, num_groups, mask)
    pairs = masking.same_group(ids, member) & (a[:, None] > a[None, :])
    better, worse = jnp.broadcast_to(s[:, None], pairs.shape), jnp.broadcast_to(s[None, :], pairs.shape)
    return pairwise_loss(better, worse, margin=margin, label_smoothing=label_smoothing, mask=pairs)


def detached_pairwise_loss(
    scores: ArrayLike,
    outcome: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    weighting: Literal["none", "bon_rm", "bon_acc"] = "none",
    opponent_scores: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Loss:
    """Online DPO as in verl: each response against the mean score of its opponents, held constant.

    A response with outcome a_i > 0 is pushed above o_i, the mean score of those in its group with a lower
    outcome: -log sigmoid(s_i - o_i). One with outcome 0 is pushed below the mean of those with a higher outcome:
    -log sigmoid(o_i - s_i). o_i = 0 when there are none. "bon_rm" multiplies by K * F_i^(K-1), F_i the share of
    the group whose score is at most s_i (the density of best-of-K), and "bon_acc" does the same with outcomes.

    Args:
      scores: [B] float, sums of implicit rewards, beta included; receives gradients.
      outcome: [B] any real dtype, in [0, 1].
      group_ids: [B] int in [0, num_groups), in any order; rows with other ids are left out. Under `shard_map` a
        group must lie on one device.
      num_groups: static number of groups.
      weighting: see above.
      opponent_scores: [B] float, the scores to compare with (of a pass before the update); None takes `scores`.
        No gradient either way.
      mask: optional [B] bool, False for rows that do not count.

    Returns:
      Loss. With "none" the weight is the number of responses; the released weighted forms are sums, not means,
      so their weight is 0 (`mean()` divides by 1).

    Source: verl's PRIME recipe (no paper).
    """
    masking.check_option("weighting", weighting, ("none", "bon_rm", "bon_acc"))
    s, a, ids, member = _group_inputs(scores, outcome, group_ids, num_groups, mask)
    opponents = jax.lax.stop_gradient(s if opponent_scores is None else masking.masked(opponent_scores, member))
    chex.assert_equal_shape([s, opponents])
    same = masking.same_group(ids, member)
    good = a > 0
    others = same & jnp.where(good[:, None], a[None, :] < a[:, None], a[None, :] > a[:, None])
    baseline = masking.mean_last(jnp.where(others, opponents[None, :], 0.0), others)
    each = jax.nn.softplus(jnp.where(good, -1.0, 1.0) * (s - baseline))
    if weighting == "none":
        loss = _over(each, member)
        return Loss(loss.total, loss.weight)
    own, rivals = (a, a) if weighting == "bon_acc" else (jax.lax.stop_gradient(s), opponents)
    size = jnp.sum(same, -1)
    share = masking.mean_last((same & (rivals[None, :] <= own[:, None])).astype(jnp.float32), same)
    # 0 ** 0 is 1, as it should be for a group of one; only constants pass through the power.
    weights = size * share ** jnp.maximum(size - 1, 0).astype(jnp.float32)
    return Loss(jnp.sum(jnp.where(member, each * weights, 0.0)), jnp.zeros((), jnp.float32))


def kto_reference_point(
    log_ratios: ArrayLike, mask: ArrayLike | None = None, *, axis_name: masking.AxisName = None
) -> jax.Array:
    """KTO's reference point: the mean log-ratio of mismatched pairs over the whole batch, at least 0, a constant.

    Args:
      log_ratios: [B] float, log-ratios of responses put under other prompts (an estimate of the KL); no gradient.
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
        explanation model has exp(old score - new score) here, one a response (arXiv 2501.07861).
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
    loss = _over(jax.lax.stop_gradient(masking.masked(weight, mask)) * jax.nn.sigmoid(-signed), mask)
    metrics = {"desirable": _over(beta * x, win), "undesirable": _over(beta * x, lose)}
    return Loss(loss.total, loss.weight, jax.lax.stop_gradient(metrics))


def nca_loss(chosen: ArrayLike, rejected: ArrayLike, *, mask: ArrayLike | None = None) -> Loss:
    """Noise-contrastive alignment on pairs: -log s(c) - 1/2 log s(-c) - 1/2 log s(-r), s the sigmoid.

    Unlike `pairwise_loss` it has an absolute scale: it also keeps the chosen score from falling.

    Args:
      chosen: [P] float, scores with beta included; receives gradients.
      rejected: [P] float; receives gradients.
      mask: optional [P] bool, False for pairs that do not count.

    Returns:
      Loss with the number of pairs as weight; metric accuracy (chosen > rejected, ties half).

    Source: arXiv 2402.05369 (NCA, two responses).
    """
    c, r = jnp.asarray(chosen), jnp.asarray(rejected)
    mask = jnp.ones(c.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([c, r, mask])
    c, r = masking.masked(c, mask), masking.masked(r, mask)
    loss = _over(jax.nn.softplus(-c) + 0.5 * jax.nn.softplus(c) + 0.5 * jax.nn.softplus(r), mask)
    metrics = {"accuracy": _over(0.5 * (jnp.sign(c - r) + 1), mask)}
    return Loss(loss.total, loss.weight, jax.lax.stop_gradient(metrics))


def step_preference_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    ref_chosen: ArrayLike = 0.0,
    ref_rejected: ArrayLike = 0.0,
    *,
    beta: float,
    kind: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
    margin: ArrayLike = 0.0,
    label_smoothing: float = 0.0,
    mask: ArrayLike | None = None,
) -> Loss:
    """DPO on any unit of text, with d = (chosen - ref_chosen) - (rejected - ref_rejected).

    "sigmoid": -log sigmoid(beta * d - margin). "hinge": max(1 - beta * d, 0). "ipo": (d - 1 / (2 * beta))^2.

    With log-probabilities summed over whole responses it is DPO; over one step after a shared prefix, Step-DPO
    and the step-level Q objective of agents; with both references 0 and beta 1, Bradley-Terry.

    Args:
      chosen: [P] float, log-probability of the better text; receives gradients.
      rejected: [P] float, of the worse one; receives gradients.
      ref_chosen: [P] or scalar, the same under the reference; no gradient.
      ref_rejected: [P] or scalar; no gradient.
      beta: scale, > 0.
      kind: see above.
      margin: scalar or [P] float, see `pairwise_loss`; "sigmoid" only.
      label_smoothing: see `pairwise_loss`; "sigmoid" only.
      mask: optional [P] bool, False for pairs that do not count.

    Returns:
      Loss and metrics as `pairwise_loss`, of scores with beta included; weight 0 for an empty mask.

    Source: arXiv 2305.18290, Eq. 7; arXiv 2406.18629 (Step-DPO); arXiv 2409.09345; "hinge" arXiv 2305.10425;
      "ipo" arXiv 2310.12036, Eq. 17.
    """
    masking.check_option("kind", kind, ("sigmoid", "hinge", "ipo"))

    def score(logp: ArrayLike, ref_logp: ArrayLike) -> jax.Array:
        return beta * (masking.as_f32(logp) - jax.lax.stop_gradient(masking.as_f32(ref_logp)))

    better, worse = score(chosen, ref_chosen), score(rejected, ref_rejected)
    loss = pairwise_loss(better, worse, margin=margin, label_smoothing=label_smoothing, mask=mask)
    if kind == "sigmoid":
        return loss
    valid = jnp.ones(better.shape, bool) if mask is None else masking.as_mask(mask)
    d = masking.masked(better, valid) - masking.masked(worse, valid)
    each = _over(jnp.maximum(1.0 - d, 0.0) if kind == "hinge" else jnp.square(d / beta - 0.5 / beta), valid)
    return Loss(each.total, each.weight, loss.metrics)


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

    Two logits a step are reduced to one, their difference, which gives the softmax's loss exactly; so a head
    with two labels, two vocabulary logits ("+" and "-") and a head with one output are trained alike.

    Args:
      logits: [B, S, 2] or [B, S] float; receives gradients. Read at the last token of each step's separator.
      labels: [B, S] any real dtype, the probability in [0, 1] that the step is good; fractions are kept. No
        gradient. What stands where the mask is False (-100, say) is not read.
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


def _over(x: jax.Array, mask: jax.Array) -> Mean:
    """Sum of the selected entries, and their number."""
    return Mean(jnp.sum(masking.masked(x, mask)), jnp.sum(mask.astype(jnp.float32)))


def _mean_above_0(x: jax.Array, mask: jax.Array, axis_name: masking.AxisName) -> jax.Array:
    """max(mean of the selected entries of the whole batch, 0)."""
    total = masking.psum(jnp.sum(masking.masked(x, mask)), axis_name)
    count = masking.psum(jnp.sum(mask.astype(jnp.float32)), axis_name)
    return jnp.maximum(total / jnp.maximum(count, 1), 0.0)


def _group_inputs(
    scores: ArrayLike, outcome: ArrayLike, group_ids: ArrayLike, num_groups: int, mask: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Checked (scores, outcome without gradient, ids, member), all [B], zeros for rows in no group."""
    ids, member = masking.group_members(group_ids, num_groups, mask)
    chex.assert_rank(ids, 1)
    chex.assert_equal_shape([jnp.asarray(scores), jnp.asarray(outcome), ids, member])
    return masking.masked(scores, member), jax.lax.stop_gradient(masking.masked(outcome, member)), ids, member
