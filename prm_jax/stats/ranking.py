"""Rankings: one right solution against many wrong ones (RewardMATH, arXiv 2410.01729), and likelihoods of orders.

Pairs, and every pair of a group, are in `prm_jax.rl.pair_losses`.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss, Mean


def ranking_metrics(
    chosen: ArrayLike, rejected: ArrayLike, mask: ArrayLike | None = None, *, axis_name: masking.AxisName = None
) -> dict[str, jax.Array]:
    """One right solution against M wrong ones, for P problems.

    A tie never counts for the scorer in `accuracy` and `mrr`, so a constant scorer gets 0 and 1 / (M + 1).

    Args:
      chosen: [P] scores of the right solutions (with several of them, pass the smallest).
      rejected: [P, M] scores of the wrong ones.
      mask: [P, M] bool, True on wrong solutions that exist, or None. Problems without any are left out.
      axis_name: mapped axis over which the problems are split, or None.

    Returns:
      Scalars f32: `accuracy`, share of problems whose chosen score beats all rejected ones; `ties`, share where
      it equals the best rejected one; `mrr`, mean of 1 / (1 + number of rejected scores >= chosen); `pairwise`,
      share of (chosen, rejected) pairs in order, ties counting half. All 0 without problems. No gradient.

    Source: arXiv 2410.01729.
    """
    chosen, rejected = masking.as_f32(chosen), masking.as_f32(rejected)
    mask = jnp.ones(rejected.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_rank([chosen, rejected], [1, 2])
    chex.assert_equal_shape([rejected, mask])
    chex.assert_equal_shape_prefix([chosen, rejected], 1)
    has_any = mask.any(-1)
    problems = jnp.maximum(masking.psum(has_any.sum(), axis_name), 1)
    above = (mask & (rejected > chosen[:, None])).sum(-1)
    equal = (mask & (rejected == chosen[:, None])).sum(-1)
    pairs = mask.sum(-1)
    in_order = masking.psum((pairs - above - 0.5 * equal).sum(), axis_name)

    def mean(x: jax.Array) -> jax.Array:
        return masking.psum(jnp.where(has_any, x, 0.0).sum(), axis_name) / problems

    return {
        "accuracy": mean((above + equal == 0).astype(jnp.float32)),
        "ties": mean(((above == 0) & (equal > 0)).astype(jnp.float32)),
        "mrr": mean(1.0 / (1 + above + equal)),
        "pairwise": in_order / jnp.maximum(masking.psum(pairs.sum(), axis_name), 1),
    }


def plackett_luce_loss(scores: ArrayLike, mask: ArrayLike | None = None) -> Loss:
    """Negative log-likelihood of a whole order: `-sum_k log softmax(s_k, s_{k+1}, ...)_k`, best first.

    The K-wise likelihood of reward modelling; with two entries it is Bradley-Terry, `pairwise_loss`. PPO-M's K-wise
    form orders (chosen, high confidence), (chosen, low), (rejected, low), (rejected, high).

    Args:
      scores: [..., K] float, in the true order, the best first. Receives gradients.
      mask: [..., K] bool, True on entries that exist (holes are skipped), or None.

    Returns:
      `Loss`, weight = orders with at least two entries; metric `top`, the share of them whose first entry has the
      largest score (ties count against it). An empty mask gives total 0 and weight 0.

    Source: arXiv 2301.11270 (K-wise maximum likelihood); used by the released code of arXiv 2410.09724.
    """
    scores = jnp.asarray(scores)
    mask = jnp.ones(scores.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([scores, mask])
    s = masking.masked(scores, mask)
    finite = jnp.where(mask, s, -1e30)  # exp of it is 0, and the differences stay finite
    rest = jax.lax.cumlogsumexp(finite, axis=finite.ndim - 1, reverse=True)
    each = jnp.where(mask, rest - finite, 0.0)
    orders = mask.sum(-1) >= 2
    weight = orders.sum().astype(jnp.float32)
    first = jnp.argmax(mask, -1)[..., None]
    others = mask & (jnp.arange(mask.shape[-1]) != first)
    best = jnp.take_along_axis(s, first, -1)[..., 0] > jnp.max(jnp.where(others, s, -jnp.inf), -1, initial=-jnp.inf)
    metrics = {"top": Mean((orders & best).sum().astype(jnp.float32), weight)}
    return Loss(masking.masked(each.sum(-1), orders).sum(), weight, metrics)
