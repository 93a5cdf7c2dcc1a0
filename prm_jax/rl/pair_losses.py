"""Losses on pairs of a better and a worse text: Bradley-Terry and DPO, and their robust and anchored relatives.

Scores are already multiplied by beta: `beta * (log pi - log pi_ref)`, or `sum_t implicit_token_rewards(...)`. Sources:
arXiv 2305.18290 (DPO) and the works named at each function.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss, mean_over


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
    c, r, mask = _pair_inputs(chosen, rejected, mask)
    d = c - r - jax.lax.stop_gradient(masking.masked(jnp.broadcast_to(masking.as_f32(margin), c.shape), mask))
    each = (1 - label_smoothing) * jax.nn.softplus(-d) + label_smoothing * jax.nn.softplus(d)
    return _pair_loss(each, c, r, mask)


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
        group must be on one device.
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
    """Online DPO as in verl: each response against the constant mean score of its opponents.

    A response with outcome a_i > 0 is pushed above o_i, the mean score of those in its group with a lower
    outcome: -log sigmoid(s_i - o_i). One with outcome 0 is pushed below the mean of those with a higher outcome:
    -log sigmoid(o_i - s_i). o_i = 0 when there are none. "bon_rm" multiplies by K * F_i^(K-1), F_i the share of
    the group whose score is at most s_i (the density of best-of-K), and "bon_acc" does the same with outcomes.

    Args:
      scores: [B] float, sums of implicit rewards, beta included; receives gradients.
      outcome: [B] any real dtype, in [0, 1].
      group_ids: [B] int in [0, num_groups), in any order; rows with other ids are left out. Under `shard_map` a
        group must be on one device.
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
        loss = mean_over(each, member)
        return Loss(loss.total, loss.weight)
    own, rivals = (a, a) if weighting == "bon_acc" else (jax.lax.stop_gradient(s), opponents)
    size = jnp.sum(same, -1)
    share = masking.mean_last((same & (rivals[None, :] <= own[:, None])).astype(jnp.float32), same)
    # 0 ** 0 is 1, as it should be for a group of one; only constants pass through the power.
    weights = size * share ** jnp.maximum(size - 1, 0).astype(jnp.float32)
    return Loss(jnp.sum(jnp.where(member, each * weights, 0.0)), jnp.zeros((), jnp.float32))


def nca_loss(chosen: ArrayLike, rejected: ArrayLike, *, mask: ArrayLike | None = None) -> Loss:
    """Noise-contrastive alignment on pairs: -log s(c) - 1/2 log s(-c) - 1/2 log s(-r), s the sigmoid.

    Unlike `pairwise_loss` it has an absolute scale: it also keeps the chosen score from falling.

    Args:
      chosen: [P] float, scores with beta included; receives gradients.
      rejected: [P] float; receives gradients.
      mask: optional [P] bool, False for pairs that do not count.

    Returns:
      Loss with the number of pairs as weight; metrics as `pairwise_loss`.

    Source: arXiv 2402.05369 (NCA, two responses).
    """
    c, r, mask = _pair_inputs(chosen, rejected, mask)
    return _pair_loss(jax.nn.softplus(-c) + 0.5 * jax.nn.softplus(c) + 0.5 * jax.nn.softplus(r), c, r, mask)


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
    each = mean_over(jnp.maximum(1.0 - d, 0.0) if kind == "hinge" else jnp.square(d / beta - 0.5 / beta), valid)
    return Loss(each.total, each.weight, loss.metrics)


def robust_pairwise_loss(
    chosen: ArrayLike, rejected: ArrayLike, *, label_smoothing: float, mask: ArrayLike | None = None
) -> Loss:
    """Bradley-Terry loss for labels of which a known share e is flipped at random; with DPO scores, robust DPO.

    With d = chosen - rejected: ((1 - e) * -log sigmoid(d) - e * -log sigmoid(-d)) / (1 - 2e), whose expectation
    under flipped labels is the loss on clean ones. It is not bounded below.

    Args:
      chosen: [P] float, scores with beta included; receives gradients.
      rejected: [P] float; receives gradients.
      label_smoothing: e, static, in [0, 1/2); 0 is `pairwise_loss`.
      mask: optional [P] bool, False for pairs that do not count.

    Returns:
      Loss with the number of pairs as weight; metrics as `pairwise_loss`.

    Source: arXiv 2403.00409 (rDPO).
    """
    _check_flip_rate(label_smoothing, lowest="in [0, 1/2)", valid=0 <= label_smoothing < 0.5)
    c, r, mask = _pair_inputs(chosen, rejected, mask)
    right, flipped = jax.nn.softplus(r - c), jax.nn.softplus(c - r)
    each = ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return _pair_loss(each, c, r, mask)


def exo_loss(
    chosen: ArrayLike, rejected: ArrayLike, *, label_smoothing: float = 1e-3, mask: ArrayLike | None = None
) -> Loss:
    """Reverse KL between the preference that the scores imply and a smoothed label (EXO on pairs).

    With p = sigmoid(chosen - rejected): p * log(p / (1 - e)) + (1 - p) * log((1 - p) / e). DPO minimises the forward
    KL of the same distributions, which spreads the policy over all modes.

    Args:
      chosen: [P] float, scores with beta included; receives gradients.
      rejected: [P] float; receives gradients.
      label_smoothing: e, static, in (0, 1/2).
      mask: optional [P] bool, False for pairs that do not count.

    Returns:
      Loss with the number of pairs as weight, at its minimum 0 where p = 1 - e; metrics as `pairwise_loss`.

    Source: arXiv 2402.00856, Eq. 16.
    """
    _check_flip_rate(label_smoothing, lowest="in (0, 1/2)", valid=0 < label_smoothing < 0.5)
    c, r, mask = _pair_inputs(chosen, rejected, mask)
    log_p, log_q = -jax.nn.softplus(r - c), -jax.nn.softplus(c - r)
    each = jnp.exp(log_p) * (log_p - jnp.log1p(-label_smoothing)) + jnp.exp(log_q) * (log_q - jnp.log(label_smoothing))
    return _pair_loss(each, c, r, mask)


def apo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    kind: Literal["zero", "down"] = "zero",
    mask: ArrayLike | None = None,
) -> Loss:
    """Anchored preference optimisation: pairs whose absolute scores move in a stated direction.

    "zero": sigmoid(-chosen) + sigmoid(rejected) raises chosen and lowers rejected scores; for chosen texts better than
    what the policy writes. "down": sigmoid(chosen) + sigmoid(rejected - chosen) lowers both, the rejected one more;
    for chosen texts that are worse.

    Args:
      chosen: [P] float, scores with beta included; receives gradients.
      rejected: [P] float; receives gradients.
      kind: see above.
      mask: optional [P] bool, False for pairs that do not count.

    Returns:
      Loss with the number of pairs as weight, in (0, 2); metrics as `pairwise_loss`.

    Source: arXiv 2408.06266.
    """
    masking.check_option("kind", kind, ("zero", "down"))
    c, r, mask = _pair_inputs(chosen, rejected, mask)
    first, second = (-c, r) if kind == "zero" else (c, r - c)
    return _pair_loss(jax.nn.sigmoid(first) + jax.nn.sigmoid(second), c, r, mask)


def orpo_loss(
    chosen_logp: ArrayLike,
    rejected_logp: ArrayLike,
    *,
    coef: float = 0.1,
    sft_coef: float = 1.0,
    mask: ArrayLike | None = None,
) -> Loss:
    """Odds-ratio preference optimisation: imitation of the chosen text plus a penalty on the odds, no reference.

    With x the mean log-probability of a response's tokens and odds(x) = exp(x) / (1 - exp(x)):
    -sft_coef * x_chosen - coef * log sigmoid(log odds(x_chosen) - log odds(x_rejected)). TRL computes its imitation
    term over all tokens of the batch, the prompt's included; pass sft_coef=0 and add `weighted_nll` for such a term.

    Args:
      chosen_logp: [P] float < 0, mean log-probability per token; receives gradients.
      rejected_logp: [P] float < 0; receives gradients.
      coef: weight of the odds ratio (lambda in the paper, beta in TRL).
      sft_coef: weight of the imitation term.
      mask: optional [P] bool, False for pairs that do not count.

    Returns:
      Loss with the number of pairs as weight; metrics accuracy, margin (of the log-probabilities) and log_odds.

    Source: arXiv 2403.07691, Eqs. 6 and 7.
    """
    c, r, mask = _pair_inputs(chosen_logp, rejected_logp, mask)
    log_odds = (c - _log1mexp(c)) - (r - _log1mexp(r))
    loss = _pair_loss(coef * jax.nn.softplus(-log_odds) - sft_coef * c, c, r, mask)
    odds = jax.lax.stop_gradient(mean_over(log_odds, mask))
    return Loss(loss.total, loss.weight, {**loss.metrics, "log_odds": odds})


def _pair_inputs(
    chosen: ArrayLike, rejected: ArrayLike, mask: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checked (chosen, rejected, mask), with zeros outside the mask."""
    c, r = jnp.asarray(chosen), jnp.asarray(rejected)
    mask = jnp.ones(c.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([c, r, mask])
    return masking.masked(c, mask), masking.masked(r, mask), mask


def _pair_loss(each: jax.Array, c: jax.Array, r: jax.Array, mask: jax.Array) -> Loss:
    """A loss of pairs with the metrics that all of them share."""
    loss = mean_over(each, mask)
    metrics = {"accuracy": mean_over(0.5 * (jnp.sign(c - r) + 1), mask), "margin": mean_over(c - r, mask)}
    return Loss(loss.total, loss.weight, jax.lax.stop_gradient(metrics))


def _check_flip_rate(value: float, *, lowest: str, valid: bool) -> None:
    """Raises ValueError for a share of flipped labels outside its range."""
    if not valid:
        raise ValueError(f"label_smoothing={value}; expected a number {lowest}")


def _log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0; x closer to 0 than float32 resolves is moved away from it."""
    x = jnp.minimum(x, -1e-7)
    near = x > -0.6931472
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def _group_inputs(
    scores: ArrayLike, outcome: ArrayLike, group_ids: ArrayLike, num_groups: int, mask: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Checked (scores, outcome without gradient, ids, member), all [B], zeros for rows in no group."""
    ids, member = masking.group_members(group_ids, num_groups, mask)
    chex.assert_rank(ids, 1)
    chex.assert_equal_shape([jnp.asarray(scores), jnp.asarray(outcome), ids, member])
    return masking.masked(scores, member), jax.lax.stop_gradient(masking.masked(outcome, member)), ids, member
