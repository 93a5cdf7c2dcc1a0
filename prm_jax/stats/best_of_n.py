"""Best-of-n: the true reward of what a proxy reward selects, as a function of n.

The curve uses an unbiased estimator that reuses all N samples of a prompt for every n <= N. The divergence bound
is tight without ties (arXiv 2401.01879); the fits of over-optimisation are those of arXiv 2210.10760, used for
mathematics in arXiv 2410.01729.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


class BestOfNCurve(NamedTuple):
    """Rewards of the sample that best-of-n picks, for each n.

    Attributes:
      proxy: [K] f32, expected proxy reward.
      gold: [K] f32, expected gold reward.
      kl: [K] f32, the bound on the divergence from the sampling policy.
      prompts: [K] f32, prompts with at least n samples, over which the means are taken.
    """

    proxy: jax.Array
    gold: jax.Array
    kl: jax.Array
    prompts: jax.Array


class OverOptimization(NamedTuple):
    """A fit of gold reward against d = sqrt(KL): `d (alpha - beta d)` or `d (alpha - beta log d)`."""

    alpha: jax.Array
    beta: jax.Array


def best_of_n_weights(scores: ArrayLike, mask: ArrayLike | None = None, *, n: int) -> jax.Array:
    """Chance that each sample is the one kept when n of the samples are drawn and the best is picked.

    The sample of rank i (from 1, worst first) of M has weight C(i - 1, n - 1) / C(M, n); tied samples share
    theirs. `(weights * gold).sum(-1)` is the unbiased estimate of the gold reward of best-of-n.

    Args:
      scores: [..., N].
      mask: [..., N] bool, True on samples that exist, or None.
      n: number drawn, >= 1.

    Returns:
      [..., N] f32, summing to 1, or all 0 in rows with fewer than n samples. No gradient.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, found {n}")
    scores = jax.lax.stop_gradient(masking.as_f32(scores))
    mask = jnp.ones(scores.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([scores, mask])
    return jnp.vectorize(lambda s, m: _weights(s, m, n), signature="(n),(n)->(n)")(scores, mask)


def bon_curve(
    proxy: ArrayLike,
    gold: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    sizes: Sequence[int],
    axis_name: masking.AxisName = None,
) -> BestOfNCurve:
    """Expected proxy and gold reward of best-of-n by the proxy, averaged over prompts.

    Args:
      proxy: [P, N] proxy scores of N samples per prompt.
      gold: [P, N] true rewards.
      mask: [P, N] bool, True on samples that exist, or None.
      sizes: the K values of n, each in 1..N.
      axis_name: mapped axis over which the prompts are split, or None.

    Returns:
      `BestOfNCurve`. A prompt with fewer than n samples is left out of the mean at n; an empty mask gives 0.
      Gradients flow to the rewards, not through the choice of the best.
    """
    proxy, gold = masking.as_f32(proxy), masking.as_f32(gold)
    mask = jnp.ones(proxy.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_rank(proxy, 2)
    chex.assert_equal_shape([proxy, gold, mask])
    if not sizes or min(sizes) < 1 or max(sizes) > proxy.shape[1]:
        raise ValueError(f"sizes must be in 1..{proxy.shape[1]} (samples per prompt), found {list(sizes)}")
    weights = jnp.stack([best_of_n_weights(proxy, mask, n=n) for n in sizes])  # [K, P, N]
    prompts = (mask.sum(-1) >= jnp.asarray(sizes)[:, None]).sum(-1).astype(jnp.float32)
    prompts = masking.psum(prompts, axis_name)
    share = weights / jnp.maximum(prompts, 1.0)[:, None, None]
    kl = best_of_n_kl(jnp.asarray(sizes))
    return BestOfNCurve(
        masking.psum((share * masking.masked(proxy, mask)).sum((1, 2)), axis_name),
        masking.psum((share * masking.masked(gold, mask)).sum((1, 2)), axis_name),
        kl,
        prompts,
    )


def best_of_n_kl(n: ArrayLike) -> jax.Array:
    """`log n - (n - 1) / n`: upper bound on KL(best-of-n || policy), attained when no two samples tie.

    Args:
      n: [...], >= 1.

    Returns:
      [...] f32, >= 0. Gradients flow to a real-valued n.

    Source: arXiv 2401.01879.
    """
    n = masking.as_f32(n)
    return jnp.log(n) - (n - 1) / n


def best_of_n_win_rate(n: ArrayLike) -> jax.Array:
    """`n / (n + 1)`: upper bound on the chance that best-of-n beats one sample, attained when none tie.

    Args:
      n: [...], >= 1.

    Returns:
      [...] f32 in [1/2, 1). Gradients flow to a real-valued n.
    """
    n = masking.as_f32(n)
    return n / (n + 1)


def fit_over_optimization(
    kl: ArrayLike, gold: ArrayLike, mask: ArrayLike | None = None, *, kind: Literal["bon", "rl"] = "bon"
) -> OverOptimization:
    """Least-squares fit of the gold reward, relative to the start, against d = sqrt(KL).

    "bon": `R(d) = d (alpha - beta d)`; "rl": `R(d) = d (alpha - beta log d)`.

    Args:
      kl: [K], >= 0, divergence from the starting policy.
      gold: [K], gold reward minus its value at the start.
      mask: [K] bool, or None.
      kind: which law.

    Returns:
      `OverOptimization`; a positive beta is over-optimisation. Points at KL 0 are ignored. Fewer than two usable points
      give the minimum-norm fit, an empty mask zeros. Gradients flow to both arguments.

    Source: arXiv 2210.10760.
    """
    masking.check_option("kind", kind, ("bon", "rl"))
    kl, gold = masking.as_f32(kl), masking.as_f32(gold)
    mask = jnp.ones(kl.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_rank(kl, 1)
    chex.assert_equal_shape([kl, gold, mask])
    d = masking.safe_sqrt(masking.masked(kl, mask))
    bend = d * d if kind == "bon" else d * jnp.log(jnp.where(d > 0, d, 1.0))
    solution = jnp.linalg.lstsq(jnp.stack([d, -bend], -1), jnp.where(d > 0, masking.masked(gold, mask), 0.0))[0]
    return OverOptimization(solution[0], solution[1])


def _weights(scores: jax.Array, mask: jax.Array, n: int) -> jax.Array:
    num = scores.shape[0]
    total = mask.sum()
    order = jnp.argsort(jnp.where(mask, -scores, jnp.inf), stable=True)  # best first
    place = jnp.arange(num)
    # The best has n / M; from there each weight is the one before times (i - n + 1) / i, i = M - place. Products
    # of ratios keep full precision where differences of log-binomials would not.
    i = jnp.maximum(total - place, 1)
    ratio = jnp.where(place == 0, n / jnp.maximum(total, 1), jnp.maximum(i - n + 1, 0) / i)
    weight = jnp.where((place < total) & (total >= n), jnp.cumprod(ratio), 0.0)
    ordered = scores[order]
    changes = jnp.concatenate([jnp.zeros(1, jnp.int32), (ordered[1:] != ordered[:-1]).astype(jnp.int32)])
    group = jnp.where(place < total, jnp.cumsum(changes), num)
    size = jax.ops.segment_sum(jnp.ones(num), group, num)
    shared = (jax.ops.segment_sum(weight, group, num) / jnp.maximum(size, 1.0))[jnp.minimum(group, num - 1)]
    return jnp.zeros(num).at[order].set(jnp.where(place < total, shared, 0.0))
