"""BEER: prevents the features of a critic from collapsing, by a bound that Bellman's equation implies.

Adaptive Regularization of Representation Rank as an Implicit Constraint of Bellman Equation (arXiv 2404.12754).
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss, Mean

_TINY = 1e-12


def bellman_rank_penalty(
    features: ArrayLike,
    next_features: ArrayLike,
    rewards: ArrayLike,
    head: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    discount: float,
    form: Literal["paper", "released"] = "paper",
    online_next_features: ArrayLike | None = None,
) -> Loss:
    """Penalises consecutive features that are more similar than Bellman's equation allows.

    For a linear head, `r = w (phi - discount phi')` and Cauchy-Schwarz give `cos(phi, phi') <= bound` with
    `bound = (|phi|^2 + discount^2 |phi'|^2 - r^2 / |w|^2) / (2 discount |phi| |phi'|)`; the penalty is
    `max(cos - bound, 0)`. "paper" has one phi' throughout. "released" takes the target network's phi' in the cosine
    and in the denominator but the online network's in the numerator, where the inequality no longer holds.

    Args:
      features: [B, D] float, penultimate features of (s, a). Receives gradients, through the cosine alone.
      next_features: [B, D] float, of (s', a') from the target network. No gradient.
      rewards: [B] float. No gradient.
      head: [D] float, weights of the last layer. No gradient.
      mask: [B] bool, False on terminal transitions (their phi' does not exist) and padding; None for all.
      discount: in (0, 1].
      form: see above.
      online_next_features: [B, D] float, needed by "released". No gradient.

    Returns:
      `Loss`, weight = transitions; multiply by the coefficient (1e-3 in the paper) and add to the critic's loss.
      Metric `active`, share of transitions above the bound. Transitions with a zero feature vector count 0.

    Source: arXiv 2404.12754.
    """
    masking.check_option("form", form, ("paper", "released"))
    phi, rewards = masking.as_f32(features), masking.as_f32(rewards)
    chex.assert_rank(phi, 2)
    chex.assert_shape(jnp.asarray(next_features), phi.shape)
    chex.assert_shape(rewards, phi.shape[:1])
    chex.assert_shape(jnp.asarray(head), phi.shape[1:])
    mask = jnp.ones(rewards.shape, bool) if mask is None else masking.as_mask(mask)
    phi = masking.masked(phi, mask[:, None])
    target = jax.lax.stop_gradient(masking.masked(next_features, mask[:, None]))
    online = target
    if form == "released":
        if online_next_features is None:
            raise ValueError("form='released' needs online_next_features")
        chex.assert_shape(jnp.asarray(online_next_features), phi.shape)
        online = jax.lax.stop_gradient(masking.masked(online_next_features, mask[:, None]))
    norm, next_norm = _norm(phi), _norm(target)
    cosine = masking.safe_divide((phi * target).sum(-1), norm * next_norm)
    head_square = jnp.maximum(jnp.square(masking.as_f32(head)).sum(), _TINY)
    slack = norm**2 + discount**2 * jnp.square(online).sum(-1) - masking.masked(rewards, mask) ** 2 / head_square
    bound = jax.lax.stop_gradient(masking.safe_divide(slack, 2 * discount * norm * next_norm))
    usable = mask & (norm > 0) & (next_norm > 0)
    excess = jnp.where(usable, jnp.maximum(cosine - bound, 0.0), 0.0)
    weight = mask.sum().astype(jnp.float32)
    active = (excess > 0).sum().astype(jnp.float32)
    return Loss(excess.sum(), weight, {"active": Mean(active, weight)})


def _norm(x: jax.Array) -> jax.Array:
    return masking.safe_sqrt(jnp.square(x).sum(-1))
