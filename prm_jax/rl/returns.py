"""Returns and generalised advantages along the tokens. Constants to the optimiser: no function passes a gradient.

Time counts valid tokens only: a position outside the mask earns nothing, is not discounted, and is skipped, so that a
row with holes (tool output, say) has the returns of the row with the holes cut out. Lambda-returns and generalised
advantages: arXiv 1506.02438; with process rewards, arXiv 2502.01456.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


def discounted_returns(rewards: ArrayLike, mask: ArrayLike, *, discount: float = 1.0) -> jax.Array:
    """Reward to go: G_t = r_t + discount * G_{t+1}.

    Args:
      rewards: [B, T] float (or int), no gradient.
      mask: [B, T] bool, True on response tokens.
      discount: in [0, 1].

    Returns:
      [B, T] float32, 0 outside the mask. Any leading axes.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(rewards), mask])
    rewards = jax.lax.stop_gradient(masking.masked(rewards, mask))
    if isinstance(discount, (int, float)) and discount == 1:
        return jnp.where(mask, masking.reverse_cumsum(rewards), 0.0)
    decay = jnp.where(mask, masking.as_f32(discount), 1.0)
    return jnp.where(mask, masking.reverse_recurrence(decay, rewards), 0.0)


def lambda_returns(
    rewards: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike,
    *,
    discount: float,
    lambda_: float,
    bootstrap: ArrayLike | None = None,
) -> jax.Array:
    """TD(lambda) targets: G_t = r_t + discount * ((1 - lambda) * v_{t+1} + lambda * G_{t+1}).

    lambda 0 is the one-step target, lambda 1 the Monte-Carlo return. Equals values + `generalized_advantages`.

    Args:
      rewards: [B, T] float, r_t is earned on leaving state t; no gradient.
      values: [B, T] float, v_t is the value of state t; no gradient.
      mask: [B, T] bool, True on valid positions.
      discount: in [0, 1].
      lambda_: in [0, 1].
      bootstrap: optional [B] float, value of the state after the last valid one, for truncated responses; 0 if None
        (the end is terminal).

    Returns:
      [B, T] float32, 0 outside the mask.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., section 12.1.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(rewards), jnp.asarray(values), mask])
    r = jax.lax.stop_gradient(masking.masked(rewards, mask))
    v = jax.lax.stop_gradient(masking.masked(values, mask))
    end = _end_value(bootstrap, mask)
    step = jnp.where(mask, r + discount * (1 - lambda_) * masking.next_valid(v, mask, end=end), 0.0)
    step = step + jnp.where(masking.is_last(mask), discount * lambda_ * end[..., None], 0.0)
    decay = jnp.where(mask, masking.as_f32(discount * lambda_), 1.0)
    return jnp.where(mask, masking.reverse_recurrence(decay, step), 0.0)


def n_step_returns(
    rewards: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike,
    *,
    discount: float,
    n: int,
    bootstrap: ArrayLike | None = None,
) -> jax.Array:
    """The sum of n discounted rewards and the value of the state reached: sum_{k<n} g^k r_{t+k} + g^n v_{t+n}.

    Args:
      rewards: [B, T] float, no gradient.
      values: [B, T] float, no gradient.
      mask: [B, T] bool, True on valid positions.
      discount: g, in [0, 1].
      n: static number of steps, >= 1; steps past the end count the bootstrap value, or nothing.
      bootstrap: optional [B] float, value of the state after the last valid one; 0 if None.

    Returns:
      [B, T] float32, 0 outside the mask.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(rewards), jnp.asarray(values), mask])
    chex.assert_scalar_positive(n)
    r = jax.lax.stop_gradient(masking.masked(rewards, mask))
    end = _end_value(bootstrap, mask)

    def one_step(_: int, target: jax.Array) -> jax.Array:
        return jnp.where(mask, r + discount * masking.next_valid(target, mask, end=end), 0.0)

    return jax.lax.fori_loop(0, n, one_step, jax.lax.stop_gradient(masking.masked(values, mask)))


def generalized_advantages(
    rewards: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike,
    *,
    discount: float,
    lambda_: float,
    bootstrap: ArrayLike | None = None,
) -> jax.Array:
    """Generalised advantage estimation: A_t = d_t + discount * lambda * A_{t+1}, d_t = r_t + discount * v_{t+1} - v_t.

    Not whitened; call `whiten` for that. PRIME's released code treats masked values as states (they leak into the last
    token); to reproduce it, pass an all-True mask.

    Args:
      rewards: [B, T] float, no gradient.
      values: [B, T] float, no gradient.
      mask: [B, T] bool, True on response tokens.
      discount: in [0, 1].
      lambda_: in [0, 1].
      bootstrap: optional [B] float, value of the state after the last valid one, for truncated responses.

    Returns:
      [B, T] float32, 0 outside the mask. Add the values for the critic's targets.

    Source: arXiv 1506.02438, Eq. 16.
    """
    returns = lambda_returns(rewards, values, mask, discount=discount, lambda_=lambda_, bootstrap=bootstrap)
    return returns - jax.lax.stop_gradient(masking.masked(values, masking.as_mask(mask)))


def _end_value(bootstrap: ArrayLike | None, mask: jax.Array) -> jax.Array:
    """[B] value after the last valid state; 0 for rows without one."""
    if bootstrap is None:
        return jnp.zeros(mask.shape[:-1], jnp.float32)
    chex.assert_shape(jnp.asarray(bootstrap), mask.shape[:-1])
    return jax.lax.stop_gradient(masking.masked(bootstrap, jnp.any(mask, -1)))
