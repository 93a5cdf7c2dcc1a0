"""How far two scores agree: Pearson, Spearman and the coefficient of determination, over masked entries."""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


def midranks(x: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """Ranks from 1, ties sharing their mean rank.

    Args:
      x: [..., N].
      mask: [..., N] bool, True on entries to rank, or None.

    Returns:
      [..., N] f32; 0 outside the mask. No gradient.
    """
    x = jax.lax.stop_gradient(masking.as_f32(x))
    mask = jnp.ones(x.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([x, mask])
    return jnp.vectorize(_midranks, signature="(n),(n)->(n)")(x, mask)


def pearson(
    x: ArrayLike, y: ArrayLike, mask: ArrayLike | None = None, *, axis_name: masking.AxisName = None
) -> jax.Array:
    """Pearson's correlation along the last axis.

    Args:
      x: [..., N].
      y: [..., N].
      mask: [..., N] bool, True on entries to use, or None.
      axis_name: mapped axis over which the entries are split, or None.

    Returns:
      [...] f32 in [-1, 1]; 0 where either side is constant or the mask is empty. Gradients flow to both.
    """
    x, y = masking.as_f32(x), masking.as_f32(y)
    mask = jnp.ones(x.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([x, y, mask])
    w = mask.astype(jnp.float32)
    x, y = _centred(x, mask, w, axis_name), _centred(y, mask, w, axis_name)
    xx, yy, xy = (masking.psum((a * b).sum(-1), axis_name) for a, b in ((x, x), (y, y), (x, y)))
    return jnp.clip(masking.safe_divide(xy, masking.safe_sqrt(xx) * masking.safe_sqrt(yy)), -1.0, 1.0)


def spearman(x: ArrayLike, y: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """Spearman's rank correlation along the last axis, ties sharing their mean rank.

    Args:
      x: [..., N].
      y: [..., N].
      mask: [..., N] bool, True on entries to use, or None.

    Returns:
      [...] f32 in [-1, 1]; 0 where either side is constant or the mask is empty. No gradient.
    """
    return pearson(midranks(x, mask), midranks(y, mask), mask)


def r_squared(
    x: ArrayLike,
    y: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """Share of the variance of y that a straight line in x explains: the squared weighted correlation.

    Args:
      x: [..., N], the predictor.
      y: [..., N], what is explained.
      mask: [..., N] bool, True on entries to use, or None.
      weights: [..., N], >= 0, or None for ones.
      axis_name: mapped axis over which the entries are split, or None.

    Returns:
      [...] f32 in [0, 1]; 0 where either side is constant or the mask is empty. Gradients flow to x and y.
    """
    x, y = masking.as_f32(x), masking.as_f32(y)
    mask = jnp.ones(x.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([x, y, mask])
    w = mask.astype(jnp.float32) if weights is None else masking.masked(weights, mask)
    x, y = _centred(x, mask, w, axis_name), _centred(y, mask, w, axis_name)
    xx, yy, xy = (masking.psum((w * a * b).sum(-1), axis_name) for a, b in ((x, x), (y, y), (x, y)))
    return jnp.clip(masking.safe_divide(xy**2, xx * yy), 0.0, 1.0)


def _centred(x: jax.Array, mask: jax.Array, w: jax.Array, axis_name: masking.AxisName) -> jax.Array:
    """`x` less its mean over the mask; exactly 0 for a constant, so that rounding makes no correlation."""
    x = masking.masked(x, mask)
    total, size = (masking.psum(s.sum(-1, keepdims=True), axis_name) for s in (w * x, w))
    mean = masking.safe_divide(total, size)
    used, still = mask & (w > 0), jax.lax.stop_gradient(x)
    lowest = masking.pmin(jnp.where(used, still, jnp.inf).min(-1, keepdims=True, initial=jnp.inf), axis_name)
    highest = masking.pmax(jnp.where(used, still, -jnp.inf).max(-1, keepdims=True, initial=-jnp.inf), axis_name)
    return jnp.where(mask & (highest > lowest), x - mean, 0.0)


def _midranks(x: jax.Array, mask: jax.Array) -> jax.Array:
    ordered = jnp.sort(jnp.where(mask, x, jnp.inf))
    below = jnp.searchsorted(ordered, x, side="left")
    up_to = jnp.minimum(jnp.searchsorted(ordered, x, side="right"), mask.sum())
    return jnp.where(mask, (below + up_to + 1) / 2.0, 0.0)
