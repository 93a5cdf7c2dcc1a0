"""Correcting for a sampler whose probabilities are not those of the policy that is trained.

Decoding kernels, quantised caches, servers and older weights draw tokens with log-probabilities mu; the trainer
computes log-probabilities pi_old for the same tokens, and the ratio pi_old / mu weights their gradients. Truncation:
IMPALA (arXiv 1802.01561); decoupled objectives: AReaL (arXiv 2505.24298). All functions stop gradients.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking

Level = Literal["token", "sequence", "geometric"]
Action = Literal["truncate", "mask"]

_BOUND = 20.0  # of log-ratios, so that exp stays finite


def sampler_weights(
    old_logp: ArrayLike,
    behaviour_logp: ArrayLike,
    mask: ArrayLike,
    *,
    level: Level = "token",
    low: float | None = None,
    high: float = 2.0,
    action: Action = "truncate",
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Weights pi_old / mu of tokens that were drawn from mu, truncated or masked.

    "token": of each token. "sequence": the product over the response, for all its tokens. "geometric": the geometric
    mean over the response, for all its tokens. Log-ratios are clamped to +-20, those of "sequence" after summing.
    "truncate": weights are clipped to [low, high]. "mask": weights outside [low, high] become 0.

    Args:
      old_logp: [B, T] float, log pi_old of each token. No gradient.
      behaviour_logp: [B, T] float, log mu of each token; NaN where unknown, which counts as a ratio of 1. No gradient.
      mask: [B, T] bool, True on tokens that were drawn from mu.
      level: see above.
      low, high: bounds of the weights; low None: no lower bound.
      action: see above.

    Returns:
      `(weights [B, T] f32, 0 outside the mask; kept [B, T] bool, the mask without tokens that the bounds removed;
      sums)`, from which `mismatch_metrics` computes the metrics of this batch or of several. An empty mask gives zeros.
    """
    masking.check_option("level", level, ("token", "sequence", "geometric"))
    masking.check_option("action", action, ("truncate", "mask"))
    mask = masking.as_mask(mask)
    ratios = _log_ratios(old_logp, behaviour_logp, mask)
    if level == "token":
        used = ratios
    else:
        pooled = ratios.sum(-1) if level == "sequence" else masking.mean_last(ratios, mask)
        used = jnp.broadcast_to(pooled[..., None], mask.shape)
    raw = jnp.exp(jnp.clip(used, -_BOUND, _BOUND))
    inside = (raw <= high) if low is None else (raw <= high) & (raw >= low)
    kept = mask & inside if action == "mask" else mask
    bounded = raw if action == "mask" else jnp.clip(raw, low, high)
    weights = jnp.where(kept, bounded, 0.0)
    return weights, kept, mismatch_sums(old_logp, behaviour_logp, mask, weights=weights, changed=mask & ~inside)


def mismatch_sums(
    old_logp: ArrayLike,
    behaviour_logp: ArrayLike,
    mask: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    changed: ArrayLike | None = None,
) -> dict[str, jax.Array]:
    """What `mismatch_metrics` needs of each response, so that the metrics of a batch can be computed from its pieces.

    Args:
      old_logp, behaviour_logp, mask: see `sampler_weights`.
      weights: [B, T] float, the weights that are used; None: the ratios of tokens.
      changed: [B, T] bool, tokens whose weight the bounds changed or removed; None: none.

    Returns:
      [B] float32 each: tokens, kl, max_log_ratio, weight, square (of the weights), changed.
    """
    mask = masking.as_mask(mask)
    ratios = _log_ratios(old_logp, behaviour_logp, mask)
    bounded = jnp.clip(ratios, -_BOUND, _BOUND)
    weights = jnp.where(mask, jnp.exp(bounded), 0.0) if weights is None else masking.masked(weights, mask)
    weights = jax.lax.stop_gradient(weights)
    changed = jnp.zeros(mask.shape, bool) if changed is None else masking.as_mask(changed) & mask
    return {
        "tokens": mask.sum(-1).astype(jnp.float32),
        "kl": jnp.where(mask, jnp.expm1(bounded) - bounded, 0.0).sum(-1),
        "max_log_ratio": jnp.abs(ratios).max(-1, initial=0.0),
        "weight": weights.sum(-1),
        "square": jnp.square(weights).sum(-1),
        "changed": changed.sum(-1).astype(jnp.float32),
    }


def mismatch_metrics(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """How far the sampler is from the policy.

    Args:
      sums: [B] float32 each, from `mismatch_sums`, of all responses.

    Returns:
      float32 scalars: mismatch_kl, the mean over tokens of k3 = r - 1 - log r with r = pi_old / mu, an estimate of
      KL(mu || pi_old); mismatch_max, the largest |log r|; weights_bounded, the share of tokens whose weight was bounded
      or removed; effective_samples, (sum w)^2 / (n * sum w^2) of the weights w, 1 when all are equal. 0 without tokens.
    """
    tokens = jnp.maximum(sums["tokens"].sum(), 1.0)
    weight, square = sums["weight"].sum(), sums["square"].sum()
    return {
        "mismatch_kl": sums["kl"].sum() / tokens,
        "mismatch_max": sums["max_log_ratio"].max(initial=0.0),
        "weights_bounded": sums["changed"].sum() / tokens,
        "effective_samples": masking.safe_divide(weight * weight, tokens * square),
    }


def _log_ratios(old_logp: ArrayLike, behaviour_logp: ArrayLike, mask: jax.Array) -> jax.Array:
    """The difference log pi_old - log mu; 0 off the mask and where mu is unknown."""
    old, behaviour = masking.as_f32(old_logp), masking.as_f32(behaviour_logp)
    chex.assert_equal_shape([old, behaviour, mask])
    known = mask & ~jnp.isnan(behaviour)
    return jax.lax.stop_gradient(masking.masked(old, known) - masking.masked(behaviour, known))
