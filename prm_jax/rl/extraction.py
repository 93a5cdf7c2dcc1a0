"""From values to a policy: imitate the best of several candidate actions, when it is good enough.

Best-of-N extraction is Digi-Q's (arXiv 2502.15760).
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss, Mean


def candidate_advantages(
    q_values: ArrayLike,
    value: ArrayLike,
    valid: ArrayLike,
    *,
    low: float = 0.0,
    high: float = 1.0,
) -> jax.Array:
    """Advantage of every candidate action, clipped: `clip(Q(s, a_k) - V(s), low, high)`.

    Args:
      q_values: [..., K] float; with twin heads `twin(q1, q2, how="max")` as released, or "min".
      value: [...] float.
      valid: [..., K] bool; invalid actions (unparseable, say) get advantage 0, as released.
      low: lower clip.
      high: upper clip.

    Returns:
      [..., K] float32. No gradient.

    Source: arXiv 2502.15760.
    """
    valid = masking.as_mask(valid)
    chex.assert_equal_shape([jnp.asarray(q_values), valid])
    chex.assert_shape(jnp.asarray(value), valid.shape[:-1])
    gap = masking.masked(q_values, valid) - masking.as_f32(value)[..., None]
    return jax.lax.stop_gradient(jnp.clip(masking.masked(gap, valid), low, high))


def best_of_n_targets(advantages: ArrayLike, valid: ArrayLike, *, threshold: float) -> tuple[jax.Array, jax.Array]:
    """Which candidate to imitate, and whether to: the first of largest advantage, if that exceeds `threshold`.

    Args:
      advantages: [..., K] float.
      valid: [..., K] bool.
      threshold: 0.05 and 0.10 in the paper's two domains.

    Returns:
      `(index [...] i32, weight [...] f32 in {0, 1})`; (0, 0) where no candidate is valid. No gradient.

    Source: arXiv 2502.15760.
    """
    valid = masking.as_mask(valid)
    chex.assert_equal_shape([jnp.asarray(advantages), valid])
    a = jnp.where(valid, masking.as_f32(advantages), -jnp.inf)
    best = a.max(-1, initial=-jnp.inf)
    return a.argmax(-1).astype(jnp.int32), (best > threshold).astype(jnp.float32)


def best_of_n_policy_loss(logp: ArrayLike, advantages: ArrayLike, valid: ArrayLike, *, threshold: float) -> Loss:
    """`-1[A_best > threshold] log pi(a_best | s)`, averaged over states.

    With one candidate it is filtered behaviour cloning, with an infinite threshold 0, with exact values and all
    actions as candidates one step of greedy policy improvement.

    Args:
      logp: [B, K] float, log-probability of each candidate under the policy. Receives gradients.
      advantages: [B, K] float. No gradient.
      valid: [B, K] bool.
      threshold: see `best_of_n_targets`.

    Returns:
      `Loss`, weight = states with a valid candidate; metric `imitated`, the share of them that is imitated.

    Source: arXiv 2502.15760.
    """
    valid = masking.as_mask(valid)
    chex.assert_rank(valid, 2)
    chex.assert_equal_shape([jnp.asarray(logp), valid])
    index, weight = best_of_n_targets(jax.lax.stop_gradient(masking.as_f32(advantages)), valid, threshold=threshold)
    picked = jnp.take_along_axis(masking.masked(logp, valid), index[:, None], -1)[:, 0]
    states = valid.any(-1).sum().astype(jnp.float32)
    return Loss(-(weight * picked).sum(), states, {"imitated": Mean(weight.sum(), states)})
