"""Uncertainty of an ensemble of reward models, and the ways to subtract it from the reward.

The penalties compared in Revisiting Design Choices in Offline Model Based Reinforcement Learning (arXiv 2110.04135).
`pessimistic_rewards` is the short form for point predictions; this file adds members that predict a variance.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking

Uncertainty = Literal["std", "max_aleatoric", "max_deviation", "max_pairwise", "loo_kl", "loglik_variance"]


class EnsembleMoments(NamedTuple):
    """Law of total variance over members: total variance = epistemic + aleatoric; each [...] f32."""

    mean: jax.Array
    epistemic: jax.Array
    aleatoric: jax.Array


def ensemble_moments(predictions: ArrayLike, variances: ArrayLike | None = None) -> EnsembleMoments:
    """Mean and the two parts of the variance of an equal mixture of E predictions.

    Systematic error that all members share shows in neither part.

    Args:
      predictions: [E, ...] float, members' means.
      variances: [E, ...] float, >= 0, members' own variances; None for 0.

    Returns:
      `EnsembleMoments`: epistemic = variance of the means (over E, so 0 for one member), aleatoric = mean of the
      variances. Gradients flow.
    """
    x = masking.as_f32(predictions)
    chex.assert_axis_dimension_gt(x, 0, 0)
    mean = x.mean(0)
    epistemic = jnp.square(x - mean).mean(0)
    if variances is None:
        return EnsembleMoments(mean, epistemic, jnp.zeros_like(mean))
    chex.assert_equal_shape([x, jnp.asarray(variances)])
    return EnsembleMoments(mean, epistemic, masking.as_f32(variances).mean(0))


def ensemble_uncertainty(
    predictions: ArrayLike,
    variances: ArrayLike | None = None,
    *,
    kind: Uncertainty = "std",
    sample: ArrayLike | None = None,
) -> jax.Array:
    """One number for how unsure an ensemble is; subtract a multiple of it from the mean.

    "std": standard deviation of the mixture, the steadiest of the comparison. "max_aleatoric": the largest standard
    deviation of a member. "max_deviation": the largest distance of a member from the mean. "max_pairwise": the
    largest distance of two members. "loo_kl": mean over members of KL(member || Gaussian fitted to the others).
    "loglik_variance": variance over members of the log-likelihood they give to one sample of the ensemble.

    Args:
      predictions: [E, ...] float, members' means.
      variances: [E, ...] float, >= 0 (> 0 for "loo_kl" and "loglik_variance"), members' own variances; needed by
        these two and by "max_aleatoric".
      kind: see above.
      sample: [...] float, needed by "loglik_variance" and read by it alone: a draw from one member.

    Returns:
      [...] float32, >= 0. Gradients flow; at ties of extremes to one of them.

    Source: arXiv 2110.04135.
    """
    masking.check_option("kind", kind, Uncertainty.__args__)  # type: ignore[attr-defined]
    x = masking.as_f32(predictions)
    chex.assert_axis_dimension_gt(x, 0, 0)
    if kind == "std":
        moments = ensemble_moments(x, variances)
        return masking.safe_sqrt(moments.epistemic + moments.aleatoric)
    if kind == "max_pairwise":
        return x.max(0) - x.min(0)
    if kind == "max_deviation":
        return jnp.abs(x - x.mean(0)).max(0)
    if variances is None:
        raise ValueError(f"kind={kind!r} needs the members' variances")
    chex.assert_equal_shape([x, jnp.asarray(variances)])
    v = masking.as_f32(variances)
    if kind == "max_aleatoric":
        return masking.safe_sqrt(v).max(0)
    if kind == "loglik_variance":
        if sample is None:
            raise ValueError("kind='loglik_variance' needs a sample")
        chex.assert_shape(jnp.asarray(sample), x.shape[1:])
        loglik = -0.5 * (jnp.log(2 * jnp.pi * v) + jnp.square(masking.as_f32(sample) - x) / v)
        return jnp.square(loglik - loglik.mean(0)).mean(0)
    chex.assert_axis_dimension_gt(x, 0, 1)
    rest = x.shape[0] - 1
    mean = (x.sum(0) - x) / rest
    variance = (v.sum(0) - v) / rest + jnp.maximum((jnp.square(x).sum(0) - jnp.square(x)) / rest - mean**2, 0.0)
    divergence = 0.5 * (jnp.log(variance) - jnp.log(v) + (v + (x - mean) ** 2) / variance - 1)
    return divergence.mean(0)


def penalized_rewards(
    predictions: ArrayLike,
    variances: ArrayLike | None = None,
    *,
    coefficient: float,
    kind: Uncertainty = "std",
    sample: ArrayLike | None = None,
) -> jax.Array:
    """`mean - coefficient * ensemble_uncertainty`.

    Args:
      predictions: [E, ...] float.
      variances: [E, ...] float, or None.
      coefficient: lambda, >= 0; tune it together with the size of the ensemble.
      kind: see `ensemble_uncertainty`.
      sample: [...] float, for "loglik_variance".

    Returns:
      [...] float32. Gradients flow.

    Source: arXiv 2110.04135.
    """
    mean = masking.as_f32(predictions).mean(0)
    return mean - coefficient * ensemble_uncertainty(predictions, variances, kind=kind, sample=sample)
