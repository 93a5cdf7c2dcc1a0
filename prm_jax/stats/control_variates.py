"""Several expectations from one weighted sample: control variates, and the proposal that suits all of them.

Shared-sample estimates of several expectations: Demange-Chryst et al. (arXiv 2212.00568).
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


def control_variate_mean(
    values: ArrayLike,
    weights: ArrayLike,
    baselines: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    axis_name: masking.AxisName = None,
) -> jax.Array:
    """Several expectations from one weighted sample: `mean(w (phi_j - b_j)) + b_j`.

    Unbiased for every constant b when the weights are plain; a constant phi_j = b_j has no variance. Baselines and
    proposal tuned on earlier batches keep the estimate unbiased; tuned on this one they do not.

    Args:
      values: [N, J] float, J integrands at N samples.
      weights: [N] float, from `importance_weights`.
      baselines: [J] float.
      mask: [N] bool, or None.
      axis_name: mapped axis or axes over which the samples are split.

    Returns:
      [J] float32; the baselines for an empty mask. Gradients flow to all.

    Source: arXiv 2212.00568.
    """
    values, baselines = masking.as_f32(values), masking.as_f32(baselines)
    chex.assert_rank(values, 2)
    mask = jnp.ones(values.shape[:1], bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(weights), mask])
    chex.assert_shape(baselines, values.shape[1:])
    centred = masking.masked(values, mask[:, None]) - baselines
    total = masking.psum((masking.masked(weights, mask)[:, None] * centred).sum(0), axis_name)
    return total / jnp.maximum(masking.psum(mask.sum(), axis_name), 1) + baselines


def shared_proposal_logits(
    logp: ArrayLike, values: ArrayLike, baselines: ArrayLike, coefficients: ArrayLike | None = None
) -> jax.Array:
    """The one proposal that is best for several expectations at once, up to a constant.

    `log f + log(sum_j a_j (phi_j - b_j)^2) / 2` minimises the weighted sum of the estimates' variances for fixed
    baselines b.

    Args:
      logp: [...] float, log f of each outcome.
      values: [..., J] float, phi_j of each outcome.
      baselines: [J] float.
      coefficients: [J] float, a_j >= 0, or None for ones.

    Returns:
      [...] float32, -inf where every phi_j equals its baseline. No gradient.

    Source: arXiv 2212.00568.
    """
    values, baselines = masking.as_f32(values), masking.as_f32(baselines)
    chex.assert_shape(values, (*jnp.shape(logp), baselines.shape[0]))
    a = jnp.ones_like(baselines) if coefficients is None else masking.as_f32(coefficients)
    spread = (a * (values - baselines) ** 2).sum(-1)
    logits = masking.as_f32(logp) + 0.5 * jnp.log(jnp.where(spread > 0, spread, 1.0))
    return jax.lax.stop_gradient(jnp.where(spread > 0, logits, -jnp.inf))
