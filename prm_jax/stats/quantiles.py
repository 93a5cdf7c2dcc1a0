"""Step values as quantiles of the return: pinball loss, non-crossing quantiles, and their combination.

Fakoor et al., Flexible Model Aggregation for Quantile Regression (arXiv 2103.00083).
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss
from prm_jax.stats.isotonic import isotonic_regression


def pinball_loss(
    quantiles: ArrayLike, targets: ArrayLike, mask: ArrayLike, *, levels: ArrayLike, huber: float = 0.0
) -> Loss:
    """Quantile regression: `max(tau e, (tau - 1) e)` with `e = target - quantile`.

    Minimised when `quantiles[..., k]` is the `levels[k]`-quantile of the target. Summed over the K
    levels' mean and over valid entries. With binary returns the quantiles are 0 or 1 and carry no more
    information than the success rate; use a categorical head there.

    Args:
      quantiles: [..., K].
      targets: [...], the realised return.
      mask: [...] bool, True on valid entries; masked values are ignored, even NaN.
      levels: [K], in (0, 1).
      huber: width of a quadratic zone around 0 (0 for none); inside it the error is
        `|tau - 1[e < 0]| e^2 / (2 huber)`, outside the line that continues it.

    Returns:
      `Loss` with weight = number of valid entries (an empty mask gives total 0, weight 0). Gradients flow
      to `quantiles` only.
    """
    mask, levels = masking.as_mask(mask), masking.as_f32(levels)
    chex.assert_rank(levels, 1)
    chex.assert_shape(jnp.asarray(quantiles), (*mask.shape, levels.shape[0]))
    chex.assert_shape(jnp.asarray(targets), mask.shape)
    quantiles = masking.masked(quantiles, mask[..., None])
    targets = jax.lax.stop_gradient(masking.masked(targets, mask))
    error = targets[..., None] - quantiles
    slope = jnp.where(error < 0, 1.0 - levels, levels)
    size = jnp.abs(error)
    if huber > 0:
        size = jnp.where(size <= huber, 0.5 * size**2 / huber, size - 0.5 * huber)
    per_entry = jnp.where(mask, (slope * size).mean(-1), 0.0)
    return Loss(per_entry.sum(), mask.sum().astype(jnp.float32))


def monotone_quantiles(quantiles: ArrayLike, *, how: Literal["sort", "pava", "median_out"] = "sort") -> jax.Array:
    """Makes quantiles non-decreasing along the last axis.

    "sort" and "pava" (isotonic regression) never raise the pinball loss summed over levels, sample by sample;
    "median_out" (running minimum below the middle level, running maximum above) preserves the median but
    has no such guarantee.

    Args:
      quantiles: [..., K], ordered by level.
      how: the post-processing.

    Returns:
      [..., K] f32, non-decreasing; sequences that do not cross come back unchanged. Gradients flow.
    """
    masking.check_option("how", how, ("sort", "pava", "median_out"))
    quantiles = masking.as_f32(quantiles)
    if how == "sort":
        return jnp.sort(quantiles, axis=-1)
    if how == "pava":
        return isotonic_regression(quantiles)
    middle = quantiles.shape[-1] // 2
    lower = jax.lax.cummin(quantiles[..., : middle + 1], axis=quantiles.ndim - 1, reverse=True)
    upper = jax.lax.cummax(quantiles[..., middle:], axis=quantiles.ndim - 1)
    return jnp.concatenate([lower, upper[..., 1:]], axis=-1)


def crossing_penalty(quantiles: ArrayLike, mask: ArrayLike, *, margin: float = 0.0) -> Loss:
    """Penalty on crossing: `sum_{i<j} max(q_i - q_j + margin, 0)`.

    Args:
      quantiles: [..., K], ordered by level.
      mask: [...] bool, True on valid entries.
      margin: wanted gap between any two levels.

    Returns:
      `Loss` with weight = number of valid entries; 0 for well separated quantiles and for an empty mask. Gradients
      flow to the quantiles.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal(jnp.shape(quantiles)[:-1], mask.shape)
    quantiles = masking.masked(quantiles, mask[..., None])
    gap = quantiles[..., :, None] - quantiles[..., None, :] + margin
    before = jnp.triu(jnp.ones((quantiles.shape[-1],) * 2, bool), k=1)
    penalty = jnp.where(before, jnp.maximum(gap, 0.0), 0.0).sum((-2, -1))
    return Loss(jnp.where(mask, penalty, 0.0).sum(), mask.sum().astype(jnp.float32))


def aggregate_quantiles(predictions: ArrayLike, logits: ArrayLike) -> jax.Array:
    """Weighted average of several models' quantiles, with softmax weights over models.

    The shape of `logits` sets the granularity: [E] one weight per model ("coarse"), [E, K] one per model and
    level ("medium"), [E, K, K] every output level from every input level ("fine"); leading axes
    ([..., E, K], ...) make the weights local to an input.

    Args:
      predictions: [..., E, K], quantiles of E models at K levels.
      logits: [E], [..., E, K] or [..., E, K, K] (last axis: input level).

    Returns:
      [..., K] f32. Gradients flow to both. Fine weights can cross; follow with `monotone_quantiles`.
    """
    predictions, logits = masking.as_f32(predictions), masking.as_f32(logits)
    models, num = predictions.shape[-2:]
    if logits.shape[-1] == models and logits.ndim == 1:
        return jnp.einsum("...ek,e->...k", predictions, jax.nn.softmax(logits))
    if logits.shape[-3:] == (models, num, num):
        flat = logits.swapaxes(-3, -2)  # [..., out, E, in]
        weights = jax.nn.softmax(flat.reshape(*flat.shape[:-2], -1), axis=-1).reshape(flat.shape)
        return jnp.einsum("...ei,...oei->...o", predictions, weights)
    if logits.shape[-2:] == (models, num):
        return (predictions * jax.nn.softmax(logits, axis=-2)).sum(-2)
    raise ValueError(
        f"logits {logits.shape} do not fit predictions of {models} models and {num} levels; expected [{models}], "
        f"[..., {models}, {num}] or [..., {models}, {num}, {num}]"
    )
