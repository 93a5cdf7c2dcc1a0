"""One-to-many ranking: one right solution against many wrong ones, as RewardMATH has it (arXiv 2410.01729)."""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import _util


def ranking_metrics(chosen: ArrayLike, rejected: ArrayLike, mask: ArrayLike | None = None) -> dict[str, jax.Array]:
    """One right solution against M wrong ones, for P problems.

    A tie never counts for the scorer in `accuracy` and `mrr`, so a constant scorer gets 0 and 1 / (M + 1).

    Args:
      chosen: [P] scores of the right solutions (with several of them, pass the smallest).
      rejected: [P, M] scores of the wrong ones.
      mask: [P, M] bool, True on wrong solutions that exist, or None. Problems without any are left out.

    Returns:
      Scalars f32: `accuracy`, share of problems whose chosen score beats all rejected ones; `ties`, share where
      it equals the best rejected one; `mrr`, mean of 1 / (1 + number of rejected scores >= chosen); `pairwise`,
      share of (chosen, rejected) pairs in order, ties counting half. All 0 without problems. No gradient.

    Source: arXiv 2410.01729.
    """
    chosen, rejected = _util.as_f32(chosen), _util.as_f32(rejected)
    mask = jnp.ones(rejected.shape, bool) if mask is None else _util.as_mask(mask)
    chex.assert_rank([chosen, rejected], [1, 2])
    chex.assert_equal_shape([rejected, mask])
    chex.assert_equal_shape_prefix([chosen, rejected], 1)
    has_any = mask.any(-1)
    problems = jnp.maximum(has_any.sum(), 1)
    above = (mask & (rejected > chosen[:, None])).sum(-1)
    equal = (mask & (rejected == chosen[:, None])).sum(-1)
    pairs = mask.sum(-1)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.where(has_any, x, 0.0).sum() / problems

    return {
        "accuracy": mean((above + equal == 0).astype(jnp.float32)),
        "ties": mean(((above == 0) & (equal > 0)).astype(jnp.float32)),
        "mrr": mean(1.0 / (1 + above + equal)),
        "pairwise": (pairs - above - 0.5 * equal).sum() / jnp.maximum(pairs.sum(), 1),
    }
