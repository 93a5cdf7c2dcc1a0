"""Weighted ridge regression in closed form, with exploration bonuses from its covariance.

It is used by three works: the per-objective heads of ArmoRM (arXiv 2406.12845), reward models on a handful of named
features (arXiv 2402.15473), and uncertainty-weighted value regression with its bonus (arXiv 2303.10165).
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


class RidgeFit(NamedTuple):
    """A linear fit.

    Attributes:
      coefficients: [D] f32.
      covariance: [D, D] f32, `(Phi^T W Phi + l2 I)^-1`.
    """

    coefficients: jax.Array
    covariance: jax.Array


def weighted_ridge(
    features: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike,
    *,
    l2: float,
    axis_name: masking.AxisName = None,
) -> RidgeFit:
    """`argmin_theta sum_i w_i (phi_i theta - y_i)^2 + l2 |theta|^2`, without an intercept.

    Rows of weight 0 are ignored, even NaN: `jax.vmap` over targets and weights [K, N] fits K objectives
    of which each row has only some labels.

    Args:
      features: [N, D] float.
      targets: [N] float.
      weights: [N] float, >= 0; with 1 / variance the best linear unbiased estimate.
      l2: > 0.
      axis_name: mapped axis over which the rows are split, or None; every device gets the fit to all rows.

    Returns:
      `RidgeFit`; zeros and I / l2 when all weights are 0. Gradients flow to everything with weight.
    """
    features, weights = masking.as_f32(features), masking.as_f32(weights)
    chex.assert_rank(features, 2)
    chex.assert_shape([jnp.asarray(targets), weights], features.shape[:1])
    used = weights > 0
    weights = jnp.where(used, weights, 0.0)
    features, targets = masking.masked(features, used[:, None]), masking.masked(targets, used)
    gram = masking.psum((features * weights[:, None]).T @ features, axis_name) + l2 * jnp.eye(features.shape[1])
    factor = jax.scipy.linalg.cho_factor(gram, lower=True)
    moment = masking.psum(features.T @ (weights * targets), axis_name)
    covariance = jax.scipy.linalg.cho_solve(factor, jnp.eye(features.shape[1]))
    return RidgeFit(jax.scipy.linalg.cho_solve(factor, moment), covariance)


def elliptical_bonus(fit: RidgeFit, features: ArrayLike, *, scale: float = 1.0, maximum: float = 1.0) -> jax.Array:
    """`min(scale sqrt(phi^T Sigma phi), maximum)`: the regression's uncertainty about phi.

    For one-hot features it falls as 1 / sqrt(count). It serves as an exploration reward, or to choose which prefixes to
    roll out next.

    Args:
      fit: from `weighted_ridge`.
      features: [..., D] float.
      scale: beta, >= 0.
      maximum: cap.

    Returns:
      [...] float32 in [0, maximum]. Gradients flow to the features and the fit, below the cap.

    Source: arXiv 2303.10165 (pseudo-reward).
    """
    features = masking.as_f32(features)
    chex.assert_axis_dimension(features, -1, fit.coefficients.shape[0])
    square = jnp.einsum("...d,de,...e->...", features, fit.covariance, features)
    return jnp.minimum(scale * masking.safe_sqrt(square), maximum)


def moment_variance(second_moment: ArrayLike, mean: ArrayLike, *, error: ArrayLike = 0.0) -> jax.Array:
    """Variance of a value in [0, 1] from two regressions: `clip(E[V^2], 0, 1) - clip(E[V], 0, 1)^2 + error`.

    Args:
      second_moment: [...] float, prediction of V^2.
      mean: [...] float, prediction of V.
      error: scalar or [...] float, >= 0, bound on the error of the estimate (the paper's E), which keeps it optimistic.

    Returns:
      [...] float32, >= 0: the `variance` of `variance_weights`. No gradient.

    Source: arXiv 2303.10165.
    """
    second, first = masking.as_f32(second_moment), masking.as_f32(mean)
    chex.assert_equal_shape([second, first])
    estimate = jnp.clip(second, 0.0, 1.0) - jnp.square(jnp.clip(first, 0.0, 1.0)) + masking.as_f32(error)
    return jax.lax.stop_gradient(jnp.maximum(estimate, 0.0))


def variance_weights(variance: ArrayLike, bonus: ArrayLike, *, gamma: float, floor: float) -> jax.Array:
    """Weights of uncertainty-weighted regression: `1 / max(variance, gamma^2 bonus, floor^2)`.

    Args:
      variance: [...] float, estimated noise of each target; for a step value from k rollouts p (1 - p) / k.
      bonus: [...] float, `elliptical_bonus` (uncapped) of the same rows.
      gamma: weight of the regression's own uncertainty; D^(-1/4) in the paper.
      floor: lower bound on the standard deviation; H^(-1/2) in the paper.

    Returns:
      [...] float32 in (0, 1 / floor^2]. No gradient.

    Source: arXiv 2303.10165.
    """
    variance, bonus = masking.as_f32(variance), masking.as_f32(bonus)
    chex.assert_equal_shape([variance, bonus])
    sigma = jnp.maximum(jnp.maximum(variance, gamma**2 * bonus), floor**2)
    return jax.lax.stop_gradient(1.0 / sigma)
