"""Removing a nuisance, such as length, from the objectives of a multi-objective reward model.

Interpretable Preferences via Multi-Objective Reward Modeling and Mixture-of-Experts, ArmoRM (arXiv 2406.12845).
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.stats.correlation import spearman


def decorrelate(
    objectives: ArrayLike,
    reference: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    grid: ArrayLike | None = None,
    threshold: float = 0.03,
) -> jax.Array:
    """How much of a nuisance (length) to subtract from each objective.

    The smallest lambda of the grid with `spearman(R_k - lambda * reference, reference) <= threshold`.

    Args:
      objectives: [N, K] float.
      reference: [N] float, the objective that tracks the nuisance (verbosity).
      mask: [N] bool, or None.
      grid: [M] float, increasing; None for 0, 0.01, ..., 0.95 as released.
      threshold: largest correlation tolerated.

    Returns:
      [K] float32; the largest value of the grid where none suffices, the smallest for an empty mask.
      No gradient.

    Source: arXiv 2406.12845.
    """
    objectives, reference = jax.lax.stop_gradient((masking.as_f32(objectives), masking.as_f32(reference)))
    chex.assert_rank([objectives, reference], [2, 1])
    chex.assert_equal_shape_prefix([objectives, reference], 1)
    grid = jnp.arange(96) / 100.0 if grid is None else masking.as_f32(grid)
    mask = jnp.ones(reference.shape, bool) if mask is None else masking.as_mask(mask)

    def left(penalty: jax.Array) -> jax.Array:
        rows = (objectives - penalty * reference[:, None]).T
        return spearman(rows, jnp.broadcast_to(reference, rows.shape), jnp.broadcast_to(mask, rows.shape))

    enough = jax.lax.map(left, grid) <= threshold  # [M, K]
    return jnp.where(enough.any(0), grid[enough.argmax(0)], grid[-1])


def debias_transform(penalties: ArrayLike, *, reference_index: int) -> jax.Array:
    """Matrix M with `objectives @ M = objectives - penalties * objectives[reference]`.

    Args:
      penalties: [K] float, from `decorrelate`. The released code keeps 1 for the reference itself, which removes it.
      reference_index: column of the nuisance objective.

    Returns:
      [K, K] float32. Gradients flow.

    Source: arXiv 2406.12845.
    """
    penalties = masking.as_f32(penalties)
    chex.assert_rank(penalties, 1)
    return jnp.eye(penalties.shape[0]).at[reference_index].add(-penalties)
