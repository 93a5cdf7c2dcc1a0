"""Watching a run for over-optimisation: does the proxy reward still follow the true one?

Diagnostics after The Alignment Ceiling (arXiv 2311.00168), which names the mismatch; and the PQ index
(arXiv 2302.05601) as a scale-free measure of how concentrated token rewards are.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.stats.correlation import pearson, r_squared, spearman


def proxy_gold_report(
    proxy: ArrayLike, gold: ArrayLike, mask: ArrayLike | None = None, *, tolerance: float = 0.0
) -> dict[str, jax.Array]:
    """Compares proxy and gold reward over U updates of B samples each.

    An update diverges when its mean proxy reward is above that of the best update so far by gold reward, while its
    mean gold reward is more than `tolerance` below.

    Args:
      proxy: [U, B] proxy rewards.
      gold: [U, B] true rewards.
      mask: [U, B] bool, True on samples that exist, or None.
      tolerance: drop in mean gold reward that counts as noise.

    Returns:
      `proxy_mean`, `gold_mean`, `spearman`, `r_squared` [U] f32, over the samples of each update (0 for an empty
      one); `gap` [U] f32, rise of the mean proxy less rise of the mean gold since the first update;
      `checkpoint_correlation` [] f32, Pearson's over update means; `first_divergence` [] i32, -1 if none. No
      gradient. A gold reward equal to the proxy never diverges.
    """
    proxy, gold = jax.lax.stop_gradient((masking.as_f32(proxy), masking.as_f32(gold)))
    mask = jnp.ones(proxy.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_rank(proxy, 2)
    chex.assert_equal_shape([proxy, gold, mask])
    proxy_mean = masking.mean_last(masking.masked(proxy, mask), mask)
    gold_mean = masking.mean_last(masking.masked(gold, mask), mask)
    seen = mask.any(-1)
    best = jax.lax.cummax(jnp.where(seen, gold_mean, -jnp.inf))
    # The proxy at the earliest update that reached the running best.
    reached = jnp.argmax(jnp.where(seen, gold_mean, -jnp.inf) == best[:, None], -1)
    diverged = seen & (gold_mean < best - tolerance) & (proxy_mean > proxy_mean[reached])
    first = jnp.where(diverged.any(), jnp.argmax(diverged), -1).astype(jnp.int32)
    return {
        "proxy_mean": proxy_mean,
        "gold_mean": gold_mean,
        "spearman": spearman(proxy, gold, mask),
        "r_squared": r_squared(proxy, gold, mask),
        "gap": (proxy_mean - proxy_mean[0]) - (gold_mean - gold_mean[0]),
        "checkpoint_correlation": pearson(proxy_mean, gold_mean, seen),
        "first_divergence": first,
    }


def binned_r_squared(
    proxy: ArrayLike, gold: ArrayLike, weights: ArrayLike | None = None, *, num_bins: int = 10
) -> jax.Array:
    """R^2 of gold against proxy on the means of proxy-sorted bins, each sample counting with its weight.

    The report by which PF-PPO picks a filter: a high value says that where the filter puts its weight, a larger
    proxy reward means, on average, a larger gold reward.

    Args:
      proxy: [B].
      gold: [B].
      weights: [B], >= 0 (`filter_weights`), or None for ones.
      num_bins: bins of equal total weight.

    Returns:
      [] f32 in [0, 1]; 0 where fewer than two bins differ. No gradient.

    Source: arXiv 2409.06957.
    """
    proxy, gold = jax.lax.stop_gradient((masking.as_f32(proxy), masking.as_f32(gold)))
    chex.assert_rank(proxy, 1)
    weights = jnp.ones_like(proxy) if weights is None else jax.lax.stop_gradient(masking.as_f32(weights))
    chex.assert_equal_shape([proxy, gold, weights])
    order = jnp.argsort(proxy, stable=True)
    proxy, gold, weights = proxy[order], gold[order], weights[order]
    middle = jnp.cumsum(weights) - weights / 2
    index = (middle / jnp.maximum(weights.sum(), 1e-30) * num_bins).astype(jnp.int32)
    index = jnp.clip(index, 0, num_bins - 1)
    per_entry = jnp.stack([weights * proxy, weights * gold, weights], -1)
    sums = jax.ops.segment_sum(per_entry, index, num_bins)
    mean = sums[:, :2] / jnp.maximum(sums[:, 2:], 1e-30)
    return r_squared(mean[:, 0], mean[:, 1], sums[:, 2] > 0)


def credit_concentration(token_rewards: ArrayLike, mask: ArrayLike, *, p: float = 0.5, q: float = 1.0) -> jax.Array:
    """PQ index of each response's token rewards: 0 when credit is evenly spread, near 1 when one token has all of it.

    `1 - d^(1/q - 1/p) |r|_p / |r|_q` with d the number of tokens.

    Args:
      token_rewards: [..., T].
      mask: [..., T] bool, True on response tokens.
      p: smaller norm, in (0, 1].
      q: larger norm, > p.

    Returns:
      [...] f32 in [0, 1 - d^(1/q - 1/p)]; 0 for an empty response and for all-zero rewards. Unchanged by scaling.
      Gradients flow.

    Source: arXiv 2302.05601.
    """
    if not 0 < p < q:
        raise ValueError(f"the index needs 0 < p < q, found p={p}, q={q}")
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(token_rewards), mask])
    size = jnp.abs(masking.masked(token_rewards, mask))
    largest = size.max(-1, keepdims=True, initial=0.0)
    unit = masking.safe_divide(size, largest)  # powers of tiny rewards would underflow
    positive = unit > 0
    count = jnp.maximum(mask.sum(-1), 1).astype(jnp.float32)

    def mean_power(power: float) -> jax.Array:
        return jnp.where(positive, jnp.where(positive, unit, 1.0) ** power, 0.0).sum(-1) / count

    some = mask.any(-1) & (largest[..., 0] > 0)
    top, bottom = mean_power(p), mean_power(q)
    ratio = jnp.where(some, top, 1.0) ** (1 / p) / jnp.where(some, bottom, 1.0) ** (1 / q)
    return jnp.where(some, jnp.maximum(1 - ratio, 0.0), 0.0)
