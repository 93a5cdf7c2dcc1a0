"""Losses of the policy and the critic, and `Loss`, the form of every loss.

A loss is a sum and a weight, divided once at the end: add the parts of micro-batches or devices
(`jax.tree.map(jnp.add, a, b)`, `jax.lax.psum(loss, axis)`), then call `mean()`, and the result is that of the
large batch to rounding.
"""

import dataclasses
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking

TokenAggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
KLEstimator = Literal["k1", "k2", "k3"]

_K3_BOUND = 10.0
_LOG_RATIO_BOUND = 20.0  # so that exp stays finite


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean before its division: a sum and its weight, both float32 scalars."""

    total: jax.Array
    weight: jax.Array

    def mean(self) -> jax.Array:
        """`total / max(weight, 1)`: 0 for an empty batch."""
        return self.total / jnp.maximum(self.weight, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loss(Mean):
    """A loss as a sum and a weight, with metrics in the same form; a pytree of sums.

    A weight of 0 with a total that is not 0 is a plain sum, which `mean()` divides by 1.
    """

    metrics: dict[str, Mean] = dataclasses.field(default_factory=dict)

    def summary(self) -> dict[str, jax.Array]:
        """The means of the metrics by name."""
        return {name: metric.mean() for name, metric in self.metrics.items()}


def mean_over(x: jax.Array, mask: jax.Array) -> Mean:
    """The selected entries as a `Mean`: their sum and their number."""
    return Mean(jnp.sum(masking.masked(x, mask)), jnp.sum(mask.astype(jnp.float32)))


def aggregate_tokens(
    values: ArrayLike, mask: ArrayLike, *, aggregation: TokenAggregation = "token-mean", norm: float | None = None
) -> Mean:
    """Sum and weight of per-token values, by one of the four common means.

    "token-mean": over all tokens (long responses weigh more). "seq-mean-token-sum": sum over tokens, mean over
    responses. "seq-mean-token-mean": mean over tokens, then over responses. "seq-mean-token-sum-norm": the sum
    over everything divided by the constant `norm` (Dr. GRPO); already divided, so its weight is 0 and parts of a
    batch add up. verl's mode of this name divides by the number of responses as well.

    Args:
      values: [B, T] float. Receives gradients.
      mask: [B, T] bool. Responses without tokens are not counted.
      aggregation: see above.
      norm: divisor of "seq-mean-token-sum-norm"; None is the static T.

    Returns:
      Mean; total and weight 0 for an empty mask.
    """
    masking.check_option("aggregation", aggregation, TokenAggregation.__args__)  # type: ignore[attr-defined]
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(values), mask])
    values = masking.masked(values, mask)
    rows = jnp.sum(jnp.any(mask, -1).astype(jnp.float32))
    if aggregation == "token-mean":
        return Mean(jnp.sum(values), jnp.sum(mask.astype(jnp.float32)))
    if aggregation == "seq-mean-token-sum":
        return Mean(jnp.sum(values), rows)
    if aggregation == "seq-mean-token-mean":
        return Mean(jnp.sum(masking.mean_last(values, mask)), rows)
    return Mean(jnp.sum(values) / (mask.shape[-1] if norm is None else norm), jnp.zeros((), jnp.float32))


def clipped_surrogate(
    logp: ArrayLike,
    old_logp: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio: Literal["token", "sequence"] = "token",
    token_weights: ArrayLike | None = None,
    aggregation: TokenAggregation = "token-mean",
) -> Loss:
    """The clipped policy-gradient loss: max(-A * rho, -A * clip(rho, 1 - clip_low, 1 + clip_high)).

    rho_t = exp(logp_t - old_logp_t) with the log-ratio clamped to +-20, or, with ratio="sequence", exp of the
    response's mean log-ratio for all its tokens (GSPO). With `dual_clip` c, where A < 0 the loss is at most -c * A.

    Args:
      logp: [B, T] float, log-probabilities under the policy; the only input that receives gradients.
      old_logp: [B, T] float, those of the policy that sampled (pass `logp` itself for an on-policy step: it is
        treated as a constant here).
      advantages: [B, T] float.
      mask: [B, T] bool, True on response tokens.
      clip_low: the ratio is clipped below at 1 - clip_low.
      clip_high: the ratio is clipped above at 1 + clip_high.
      dual_clip: bound c > 1 for negative advantages, or None.
      ratio: "token" or "sequence".
      token_weights: optional [B, T] float, constants that multiply the tokens' losses (truncated importance
        weights of stale or quantised samplers, say).
      aggregation: see `aggregate_tokens`; "seq-mean-token-mean" is the natural one for ratio="sequence".

    Returns:
      Loss; metrics clip_fraction (share of tokens whose gradient the clip cuts), dual_clip_fraction, approx_kl
      (mean of old_logp - logp) and ratio, all means over tokens. approx_kl is not clamped; verl's ppo_kl averages
      log-ratios clamped to +-20, and is lower where a token's probability has collapsed.

    Source: arXiv 1707.06347, Eq. 7; dual clip arXiv 1912.09729; sequence ratio arXiv 2507.18071.
    """
    masking.check_option("ratio", ratio, ("token", "sequence"))
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(logp), jnp.asarray(old_logp), jnp.asarray(advantages), mask])
    log_ratio = masking.masked(logp, mask) - jax.lax.stop_gradient(masking.masked(old_logp, mask))
    a = jax.lax.stop_gradient(masking.masked(advantages, mask))
    used = log_ratio if ratio == "token" else masking.mean_last(log_ratio, mask)[..., None]
    rho = jnp.exp(jnp.clip(used, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND))
    rho = jnp.broadcast_to(rho, mask.shape)
    unclipped, clipped = -a * rho, -a * jnp.clip(rho, 1 - clip_low, 1 + clip_high)
    loss, bounded = _dual_clipped(jnp.maximum(unclipped, clipped), a, dual_clip)
    if token_weights is not None:
        chex.assert_equal_shape([jnp.asarray(token_weights), mask])
        loss = loss * jax.lax.stop_gradient(masking.masked(token_weights, mask))
    result = aggregate_tokens(loss, mask, aggregation=aggregation)
    metrics = {
        "clip_fraction": aggregate_tokens(clipped > unclipped, mask),
        "dual_clip_fraction": aggregate_tokens(bounded, mask),
        "approx_kl": aggregate_tokens(-log_ratio, mask),
        "ratio": aggregate_tokens(rho, mask),
    }
    return Loss(result.total, result.weight, jax.lax.stop_gradient(metrics))


def _dual_clipped(loss: jax.Array, advantages: jax.Array, bound: float | None) -> tuple[jax.Array, jax.Array]:
    """The loss, at most `-bound * A` where A < 0, and where that bound acts."""
    if bound is None:
        return loss, jnp.zeros(loss.shape, bool)
    most, negative = -bound * advantages, advantages < 0
    return jnp.where(negative, jnp.minimum(loss, most), loss), negative & (loss > most)


def token_kl(
    logp: ArrayLike, ref_logp: ArrayLike, mask: ArrayLike, *, estimator: KLEstimator = "k1"
) -> jax.Array:
    """Estimate of KL(policy || reference) from one sample at each token, to subtract from rewards or to average.

    With d = logp - ref_logp: k1 = d (unbiased); k2 = d^2 / 2 (its gradient is that of the KL); k3 =
    exp(-d) - 1 + d (unbiased, never negative).

    Args:
      logp: [B, T] float, log-probabilities of sampled tokens under the policy; receives gradients.
      ref_logp: [B, T] float, those under the reference; no gradient.
      mask: [B, T] bool, True on response tokens.
      estimator: see above. For k3, d is clamped to +-20 and the result to +-10, as in verl.

    Returns:
      [B, T] float32, 0 outside the mask.

    Source: Schulman, Approximating KL divergence (2020).
    """
    masking.check_option("estimator", estimator, ("k1", "k2", "k3"))
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(logp), jnp.asarray(ref_logp), mask])
    d = masking.masked(logp, mask) - jax.lax.stop_gradient(masking.masked(ref_logp, mask))
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * jnp.square(d)
    minus_d = jnp.clip(-d, -20.0, 20.0)
    return jnp.clip(jnp.expm1(minus_d) - minus_d, -_K3_BOUND, _K3_BOUND)


def kl_penalty(
    logp: ArrayLike,
    ref_logp: ArrayLike,
    mask: ArrayLike,
    *,
    estimator: KLEstimator = "k3",
    aggregation: TokenAggregation = "token-mean",
) -> Loss:
    """Mean KL estimate as a loss term; multiply by its coefficient and add.

    As a loss on sampled tokens, k2 has the gradient of KL(policy || reference), k3 that of the reverse
    KL(reference || policy), and k1 one whose mean is zero: it has no effect unless it enters the reward
    (`token_kl`) instead.

    Args:
      logp: [B, T] float; receives gradients.
      ref_logp: [B, T] float; no gradient.
      mask: [B, T] bool, True on response tokens.
      estimator: "k1", "k2" or "k3", see `token_kl`.
      aggregation: see `aggregate_tokens`.

    Returns:
      Loss; total and weight 0 for an empty mask.

    Source: Schulman, Approximating KL divergence (2020).
    """
    result = aggregate_tokens(
        token_kl(logp, ref_logp, mask, estimator=estimator), mask, aggregation=aggregation
    )
    return Loss(result.total, result.weight)


def entropy_bonus(
    entropy: ArrayLike, mask: ArrayLike, *, aggregation: TokenAggregation = "token-mean"
) -> Loss:
    """Minus the mean entropy, as a loss term: multiply by a coefficient >= 0 and add.

    Args:
      entropy: [B, T] float, entropy of the policy's distribution at each token, in nats; receives gradients.
      mask: [B, T] bool, True on response tokens.
      aggregation: see `aggregate_tokens`.

    Returns:
      Loss, <= 0, and 0 for an empty mask; metric entropy (mean over tokens).
    """
    mask = masking.as_mask(mask)
    result = aggregate_tokens(-masking.masked(entropy, mask), mask, aggregation=aggregation)
    metrics = {"entropy": aggregate_tokens(entropy, mask)}
    return Loss(result.total, result.weight, jax.lax.stop_gradient(metrics))


def value_loss(
    values: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike,
    *,
    kind: Literal["mse", "tanh_mse", "bce", "ce"] = "mse",
    old_values: ArrayLike | None = None,
    clip: float | None = None,
    aggregation: TokenAggregation = "token-mean",
) -> Loss:
    """Regression of values on targets.

    "mse": (v - y)^2. "tanh_mse": (tanh(v) - y)^2, y in [-1, 1] (AlphaMath). "bce": cross-entropy of sigmoid(v)
    with a soft label y in [0, 1]. "ce": cross-entropy of softmax(v) over a last axis of C classes, with class
    ids or with probabilities as targets.

    Args:
      values: [B, T] float ([B, T, C] for "ce"), values or logits; receives gradients.
      targets: [B, T] float ([B, T] int or [B, T, C] float for "ce"); no gradient.
      mask: [B, T] bool.
      kind: see above.
      old_values: optional [B, T] float, for "mse" with `clip`: values before the update; no gradient.
      clip: values may move this far from `old_values`; the larger of the clipped and the plain squared error
        counts. Needs `old_values`.
      aggregation: see `aggregate_tokens`.

    Returns:
      Loss (no factor 1/2); when clipping, metric clip_fraction: the share of values outside the range whose clipped
      error is the larger one.

    Raises:
      ValueError: an unknown kind, or `clip` without `old_values` or with a kind other than "mse".

    Source: arXiv 2405.03553 (tanh_mse); arXiv 1707.06347's reference code (clip).
    """
    masking.check_option("kind", kind, ("mse", "tanh_mse", "bce", "ce"))
    if (clip is None) != (old_values is None) or (clip is not None and kind != "mse"):
        given = "not given" if old_values is None else "given"
        raise ValueError(f"clip needs old_values and kind='mse'; found clip={clip}, kind={kind!r}, old_values {given}")
    mask = masking.as_mask(mask)
    if kind == "ce":
        return _class_loss(values, targets, mask, aggregation)
    chex.assert_equal_shape([jnp.asarray(values), jnp.asarray(targets), mask])
    v, y = masking.masked(values, mask), jax.lax.stop_gradient(masking.masked(targets, mask))
    metrics: dict[str, Mean] = {}
    if kind == "bce":
        error = jax.nn.softplus(v) - y * v
    else:
        error = jnp.square((jnp.tanh(v) if kind == "tanh_mse" else v) - y)
    if clip is not None and old_values is not None:
        chex.assert_equal_shape([jnp.asarray(old_values), mask])
        old = jax.lax.stop_gradient(masking.masked(old_values, mask))
        # Exactly v inside the range: old + clip(v - old) is not, to rounding, and would count as clipped.
        clipped = jnp.square(jnp.clip(v, old - clip, old + clip) - y)
        metrics = {"clip_fraction": aggregate_tokens(clipped > error, mask)}
        error = jnp.maximum(error, clipped)
    result = aggregate_tokens(error, mask, aggregation=aggregation)
    return Loss(result.total, result.weight, jax.lax.stop_gradient(metrics))


def _class_loss(logits: ArrayLike, targets: ArrayLike, mask: jax.Array, aggregation: TokenAggregation) -> Loss:
    """Softmax cross-entropy over the last axis, with ids or probabilities."""
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    chex.assert_equal(logits.shape[:-1], mask.shape)
    log_probs = jax.nn.log_softmax(masking.masked(logits, mask[..., None]), axis=-1)
    if targets.ndim == mask.ndim:
        chex.assert_type(targets, int)
        chex.assert_equal_shape([targets, mask])
        ids = jnp.where(mask, targets, 0)
        error = -jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
    else:
        chex.assert_equal_shape([targets, logits])
        error = -jnp.sum(jax.lax.stop_gradient(masking.masked(targets, mask[..., None])) * log_probs, -1)
    result = aggregate_tokens(error, mask, aggregation=aggregation)
    return Loss(result.total, result.weight)
