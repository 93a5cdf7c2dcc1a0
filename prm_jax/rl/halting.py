"""Early exit from a deep scorer: PonderNet's halting distribution and PALBERT's deterministic exit.

PonderNet: arXiv 2107.05407. PALBERT, whose Q-exit needs no sampling: arXiv 2204.03276.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss, Mean


def halting_distribution(logits: ArrayLike) -> jax.Array:
    """Probability of stopping at each layer: `p_i = h_i prod_{j<i} (1 - h_j)` with h = sigmoid(logits).

    The last layer gets the remaining probability, so its logit does not matter.

    Args:
      logits: [..., L] float.

    Returns:
      [..., L] float32, summing to 1. Gradients flow.

    Source: arXiv 2107.05407.
    """
    logits = masking.as_f32(logits)
    stay = -jax.nn.softplus(logits)  # log(1 - h)
    reached = jnp.cumsum(stay, -1) - stay
    stop = jnp.concatenate([-jax.nn.softplus(-logits[..., :-1]), jnp.zeros_like(logits[..., -1:])], -1)
    return jnp.exp(reached + stop)


def halting_loss(
    losses: ArrayLike,
    logits: ArrayLike,
    mask: ArrayLike,
    *,
    prior: float = 0.1,
    kl_coef: float = 0.5,
    kl: Literal["paper", "released"] = "paper",
) -> Loss:
    """Expected loss over exits plus a pull towards a geometric prior: `sum_i p_i L_i + kl_coef KL`.

    "paper": KL(p || prior). "released" (PALBERT's code): KL(prior || p). The prior is truncated at the last layer,
    which gets the remaining probability, as in p.

    Args:
      losses: [..., L] float, the loss of answering at each layer. Receives gradients.
      logits: [..., L] float. Receives gradients.
      mask: [...] bool, True on valid entries.
      prior: chance of stopping at each layer, in (0, 1).
      kl_coef: >= 0.
      kl: see above.

    Returns:
      `Loss`, weight = valid entries; metrics `depth` (expected layer, from 1) and `kl`.

    Source: arXiv 2107.05407.
    """
    masking.check_option("kl", kl, ("paper", "released"))
    mask = masking.as_mask(mask)
    logits, losses = masking.masked(logits, mask[..., None]), masking.masked(losses, mask[..., None])
    chex.assert_equal_shape([logits, losses])
    p = halting_distribution(logits)
    depth = jnp.arange(logits.shape[-1])
    goal = jnp.log(prior) + depth * jnp.log1p(-prior)
    goal = goal.at[-1].set((logits.shape[-1] - 1) * jnp.log1p(-prior))
    log_p = jnp.log(jnp.maximum(p, 1e-30))
    divergence = (p * (log_p - goal) if kl == "paper" else jnp.exp(goal) * (goal - log_p)).sum(-1)
    weight = mask.sum().astype(jnp.float32)
    kl_sum = masking.masked(divergence, mask).sum()
    total = masking.masked((p * losses).sum(-1), mask).sum() + kl_coef * kl_sum
    mean_depth = masking.masked((p * (depth + 1)).sum(-1), mask).sum()
    metrics = {"depth": Mean(mean_depth, weight), "kl": Mean(kl_sum, weight)}
    return Loss(total, weight, jax.lax.stop_gradient(metrics))


def quantile_exit(probabilities: ArrayLike, *, quantile: float = 0.5) -> jax.Array:
    """Q-exit: the first layer at which the chance of having stopped reaches `quantile`.

    Deterministic, where sampling the exit adds variance. A quantile of 1 gives the last layer with positive
    probability.

    Args:
      probabilities: [..., L] float, from `halting_distribution`.
      quantile: in (0, 1].

    Returns:
      [...] int32 in [0, L). No gradient.

    Source: arXiv 2204.03276.
    """
    p = jax.lax.stop_gradient(masking.as_f32(probabilities))
    reached = jnp.cumsum(p, -1)
    # Rounding may leave the last sum just below 1.
    enough = reached >= quantile * jnp.minimum(reached[..., -1:], 1.0) - 1e-7
    return enough.argmax(-1).astype(jnp.int32)
