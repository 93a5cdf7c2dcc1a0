"""Calibration of confidences: calibration error, reliability bins, Brier score and Platt scaling.

Isotonic calibration and Venn-ABERS are in `isotonic.py`, verbalised confidence in `prm_jax.rl.confidence`.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


class ReliabilityBins(NamedTuple):
    """A reliability diagram.

    Attributes:
      confidence: [K] f32, mean confidence of a bin (0 where empty).
      accuracy: [K] f32, mean outcome of a bin (0 where empty).
      size: [K] f32, entries in a bin.
    """

    confidence: jax.Array
    accuracy: jax.Array
    size: jax.Array


class PlattScale(NamedTuple):
    """`probability = sigmoid(slope * score + intercept)`; two f32 scalars."""

    slope: jax.Array
    intercept: jax.Array


def reliability_bins(
    confidence: ArrayLike,
    outcome: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    num_bins: int = 15,
    bins: Literal["width", "mass"] = "width",
    axis_name: masking.AxisName = None,
) -> ReliabilityBins:
    """Sorts predictions into bins of confidence.

    Args:
      confidence: [...], in [0, 1].
      outcome: [...], in [0, 1]; fractions are allowed.
      mask: [...] bool, True on entries to use; None for all.
      num_bins: K.
      bins: "width", K intervals (k/K, (k+1)/K], the first closed at 0; "mass", K bins of equally many
        entries, where ties of confidence share the bin of the first of them, so that their order does not matter.
      axis_name: mapped axis or axes whose data is pooled ("mass" gathers the confidences, to rank them).

    Returns:
      `ReliabilityBins`. An empty mask gives zeros. Gradients reach `confidence` through the bin means.
    """
    masking.check_option("bins", bins, ("width", "mass"))
    confidence, outcome, mask = _masked_pair(confidence, outcome, mask)
    confidence, outcome, mask = confidence.ravel(), outcome.ravel(), mask.ravel()
    if bins == "width":
        index = jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1
    else:
        ordered = jnp.sort(masking.gather(jnp.where(mask, confidence, jnp.inf), axis_name))
        rank = jnp.searchsorted(ordered, confidence, side="left")
        index = rank * num_bins // jnp.maximum(masking.psum(mask.sum(), axis_name), 1)
    index = jnp.clip(index, 0, num_bins - 1)
    per_entry = jnp.stack([confidence, outcome, mask.astype(jnp.float32)], -1)
    sums = masking.psum(jax.ops.segment_sum(per_entry, index, num_bins), axis_name)
    size = jnp.maximum(sums[:, 2], 1.0)
    return ReliabilityBins(sums[:, 0] / size, sums[:, 1] / size, sums[:, 2])


def calibration_error(
    confidence: ArrayLike,
    outcome: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    kind: Literal["ece", "ace", "mce"] = "ece",
    num_bins: int = 15,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """Expected gap between confidence and accuracy.

    `sum_k n_k / n |accuracy_k - confidence_k|`: "ece" over bins of equal width, "ace" over bins of equal
    mass; "mce" is the largest gap of any bin of equal width.

    Args:
      confidence: [...], in [0, 1].
      outcome: [...], in [0, 1].
      mask: [...] bool, True on entries to use; None for all.
      kind: which error.
      num_bins: number of bins.
      axis_name: mapped axis or axes whose data is pooled.

    Returns:
      [] f32 in [0, 1]; 0 for an empty mask. Gradients flow through the bin means, not the choice of bins. Biased
      upwards: a calibrated forecaster gets about `sqrt(num_bins / n)`-sized values from n entries.
    """
    masking.check_option("kind", kind, ("ece", "ace", "mce"))
    table = reliability_bins(
        confidence,
        outcome,
        mask,
        num_bins=num_bins,
        bins="mass" if kind == "ace" else "width",
        axis_name=axis_name,
    )
    gap = jnp.abs(table.accuracy - table.confidence)
    if kind == "mce":
        return jnp.where(table.size > 0, gap, 0.0).max()
    return (table.size * gap).sum() / jnp.maximum(table.size.sum(), 1.0)


def brier_score(
    confidence: ArrayLike,
    outcome: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """Mean squared distance of confidence and outcome; a proper score.

    Args:
      confidence: [...], in [0, 1].
      outcome: [...], in [0, 1].
      mask: [...] bool, True on entries to use; None for all.
      axis_name: mapped axis or axes whose data is pooled.

    Returns:
      [] f32; 0 for an empty mask. Gradients flow to `confidence`.
    """
    confidence, outcome, mask = _masked_pair(confidence, outcome, mask)
    total = masking.psum(((confidence - outcome) ** 2).sum(), axis_name)
    return total / jnp.maximum(masking.psum(mask.sum(), axis_name), 1)


def fit_platt(
    scores: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    smooth: bool = True,
    num_steps: int = 25,
    axis_name: masking.AxisName = None,
) -> PlattScale:
    """Platt scaling: logistic regression of a label on one score, by damped Newton steps.

    Scores are standardised inside; each step keeps the best of seven step lengths (0 among them), so the loss
    never rises.

    Args:
      scores: [N], any range; for a probability p pass its logit.
      labels: [N], in [0, 1]; fractions are allowed.
      mask: [N] bool, True on entries to use; None for all.
      smooth: Platt's targets (n_pos + 1) / (n_pos + 2) and 1 / (n_neg + 2) in place of 1 and 0; keeps the
        slope finite for separable scores.
      num_steps: Newton steps.
      axis_name: mapped axis over which the entries are split, or None; every device gets the fit to all of them.

    Returns:
      `PlattScale`. No gradient. An empty mask, or scores that are all equal, gives slope 0.

    Source: Platt, Probabilistic outputs for support vector machines (1999); applied in arXiv 2412.19511.
    """
    scores, target, mask = jax.lax.stop_gradient(_masked_pair(scores, labels, mask))
    chex.assert_rank(scores, 1)
    weight = mask.astype(jnp.float32)

    def over_all(x: jax.Array) -> jax.Array:
        return masking.psum(x, axis_name)

    valid = over_all(weight.sum())
    count = jnp.maximum(valid, 1.0)
    centre = over_all(scores.sum()) / count
    spread = jnp.sqrt(over_all((weight * (scores - centre) ** 2).sum()) / count)
    unit = jnp.where(spread > 0, (scores - centre) / jnp.where(spread > 0, spread, 1.0), 0.0)
    if smooth:
        positive = over_all(target.sum())
        high, low = (positive + 1) / (positive + 2), 1 / (valid - positive + 2)
        target = target * high + (1 - target) * low
    start = jnp.zeros_like(jnp.stack([centre, spread]))  # varies over mapped axes as the statistics do
    features = jnp.stack([unit, jnp.ones_like(unit)], -1)
    theta = _newton(features, target, weight / count, start, num_steps, axis_name)
    slope = jnp.where(spread > 0, theta[0] / jnp.where(spread > 0, spread, 1.0), 0.0)
    return PlattScale(slope, theta[1] - slope * centre)


def apply_platt(scale: PlattScale, scores: ArrayLike) -> jax.Array:
    """Probability of a positive label: `sigmoid(slope * score + intercept)`.

    Args:
      scale: from `fit_platt`.
      scores: [...].

    Returns:
      [...] f32 in (0, 1); the order of the scores is kept where the slope is positive. Gradients flow to both.
    """
    return jax.nn.sigmoid(scale.slope * masking.as_f32(scores) + scale.intercept)


def _newton(
    features: jax.Array,
    target: jax.Array,
    weight: jax.Array,
    start: jax.Array,
    num_steps: int,
    axis_name: masking.AxisName,
) -> jax.Array:
    """Coefficients [2] of a logistic regression on `features` [N, 2]; the weights [N] sum to 1 over all devices."""

    def loss(theta: jax.Array) -> jax.Array:
        logit = features @ theta
        return masking.psum((weight * (jax.nn.softplus(logit) - target * logit)).sum(), axis_name)

    def improve(theta: jax.Array, _: None) -> tuple[jax.Array, None]:
        p = jax.nn.sigmoid(features @ theta)
        gradient = masking.psum((weight * (p - target)) @ features, axis_name)
        hessian = masking.psum((features * (weight * p * (1 - p))[:, None]).T @ features, axis_name)
        step = jnp.linalg.solve(hessian + 1e-6 * jnp.eye(2), gradient)
        options = theta - jnp.array([1.0, 0.5, 0.25, 0.1, 0.01, 4.0, 0.0])[:, None] * step
        return options[jnp.argmin(jax.vmap(loss)(options))], None

    return jax.lax.scan(improve, start, None, length=num_steps)[0]


def _masked_pair(
    prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both as float32, 0 where the mask is False; and the mask, all True in place of None."""
    prediction, target = masking.as_f32(prediction), masking.as_f32(target)
    mask = jnp.ones(prediction.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([prediction, target, mask])
    return masking.masked(prediction, mask), masking.masked(target, mask), mask
