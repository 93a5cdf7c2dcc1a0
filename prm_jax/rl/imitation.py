"""Weighted imitation: one loss for supervised fine-tuning, rejection sampling, and advantage weighting.

Filtered cloning and rejection-sampling fine-tuning have weights 0 and 1 (START's Hint-RFT, arXiv 2503.04625, keeps
what was right with a hint and wrong without); AWR (arXiv 1910.00177) has exp(A / temperature); AlphaMath's policy
term (arXiv 2405.03553) weighs solutions by their final value.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss, Mean


def weighted_nll(
    logp: ArrayLike,
    weights: ArrayLike,
    mask: ArrayLike,
    *,
    normalize: Literal["weights", "tokens", "responses"] = "weights",
) -> Loss:
    """`-sum_t w log pi(y_t)` over selected tokens.

    Args:
      logp: [B, T] float, log-probability of each token. Receives gradients.
      weights: [B] (per response) or [B, T] (per token) float. No gradient. Negative ones push away; use
        normalize="tokens" with those.
      mask: [B, T] bool, True on tokens to imitate: leave out prompts, inserted hints and tool outputs.
      normalize: what the weight of the loss is: "weights", the sum of w over tokens, so that 0/1 weights give the
        mean over the tokens kept; "tokens", all selected tokens, as in advantage-weighted regression;
        "responses", responses with a selected token, which sums over tokens.

    Returns:
      `Loss`; metric `nll`, the unweighted mean over selected tokens. An empty mask gives total 0 and weight 0.
    """
    masking.check_option("normalize", normalize, ("weights", "tokens", "responses"))
    mask = masking.as_mask(mask)
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([jnp.asarray(logp), mask])
    weights = masking.as_f32(weights)
    if weights.ndim == 1:
        chex.assert_shape(weights, mask.shape[:1])
        weights = jnp.broadcast_to(weights[:, None], mask.shape)
    chex.assert_equal_shape([weights, mask])
    weights = jax.lax.stop_gradient(masking.masked(weights, mask))
    nll = -masking.masked(logp, mask)
    tokens = mask.sum().astype(jnp.float32)
    weight = {
        "weights": weights.sum(),
        "tokens": tokens,
        "responses": mask.any(-1).sum().astype(jnp.float32),
    }[normalize]
    return Loss((weights * nll).sum(), weight, {"nll": Mean(jax.lax.stop_gradient(nll.sum()), tokens)})


def advantage_weights(advantages: ArrayLike, *, temperature: float, max_weight: float | None = 20.0) -> jax.Array:
    """Weights of advantage-weighted regression: `min(exp(A / temperature), max_weight)`.

    Args:
      advantages: [...] float.
      temperature: > 0; small values imitate only the best.
      max_weight: cap, or None.

    Returns:
      [...] float32, > 0. No gradient.

    Source: arXiv 1910.00177.
    """
    exponent = masking.as_f32(advantages) / temperature
    if max_weight is not None:
        exponent = jnp.minimum(exponent, jnp.log(max_weight))  # before exp: no overflow
    return jax.lax.stop_gradient(jnp.exp(exponent))
