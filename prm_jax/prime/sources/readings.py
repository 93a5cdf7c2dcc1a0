"""What is made of an online PRM's token rewards before they are shaped: step labels, probabilities or ranks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from prm_jax import rl


def probability_rewards(rewards: jax.Array, step_ids: jax.Array, mask: jax.Array, rows: jax.Array) -> jax.Array:
    """By how much each step changes the PRM's probability that the response is right, on the step's last token.

    The cross-entropy teaches the PRM that sigmoid(sum of a response's rewards) is the probability of success, and an
    implicit PRM's sum up to a step is its value there. Rewards add up to sigmoid(sum) - 1/2.

    Args:
      rewards: [B, T] float, token rewards.
      step_ids: [B, T] int, -1 outside the response.
      mask: [B, T] bool, response tokens.
      rows: [B] bool, not read.

    Returns:
      [B, T] float32 in (-1, 1).
    """
    del rows
    ids = jnp.where(mask, step_ids, -1)
    steps, _ = rl.step_rewards(rewards, ids, num_steps=mask.shape[1])
    values = jax.nn.sigmoid(jnp.cumsum(steps, -1))
    return rl.token_rewards_from_steps(jnp.diff(values, prepend=0.5), ids)


def rank_rewards(rewards: jax.Array, step_ids: jax.Array, mask: jax.Array, rows: jax.Array) -> jax.Array:
    """The rank of each step's reward among all steps of the batch, from -1/2 to 1/2, on the step's last token.

    The share of steps with a lower reward plus half of those with the same, less 1/2: a scale that does not depend on
    how far the PRM has been trained.

    Args:
      rewards: [B, T] float, token rewards.
      step_ids: [B, T] int, -1 outside the response.
      mask: [B, T] bool, response tokens.
      rows: [B] bool, the rows whose steps are ranked; others get 0.

    Returns:
      [B, T] float32.
    """
    ids = jnp.where(mask, step_ids, -1)
    steps, present = rl.step_rewards(rewards, ids, num_steps=mask.shape[1])
    counted = present & rows[:, None]
    ordered = jnp.sort(jnp.where(counted, steps, jnp.inf).reshape(-1))
    below, up_to = (jnp.searchsorted(ordered, steps, side=side) for side in ("left", "right"))
    share = (below + up_to) / (2 * jnp.maximum(counted.sum(), 1))
    return rl.token_rewards_from_steps(jnp.where(counted, share - 0.5, 0.0), ids)


REWARDS: dict[str, Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "raw": lambda rewards, step_ids, mask, rows: rewards,
    "probabilities": probability_rewards,
    "ranks": rank_rewards,
}
"""Reading without labels -> (token rewards, step ids, response tokens, rows that count) -> rewards [B, T]."""


def label_trust(counts: jax.Array) -> jax.Array:
    """How much better than chance labels tell failed responses from others, in [0, 1]; 0 as long as either is missing.

    The share of failed responses with a label, minus that of the others (Youden's index).

    Args:
      counts: [2, 2] float, see `PRMState.agreement`.
    """
    shares = counts[0] / jnp.maximum(counts[1], 1e-6)
    return jnp.where((counts[1] > 0).all(), jnp.clip(shares[0] - shares[1], 0.0, 1.0), 0.0)


def step_label_rewards(
    rewards: jax.Array, step_ids: jax.Array, mask: jax.Array, threshold: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """-1 on the last token of the first step whose reward is below a threshold, 0 elsewhere.

    Args:
      rewards: [B, T] float, token rewards.
      step_ids: [B, T] int, -1 outside the response.
      mask: [B, T] bool, response tokens.
      threshold: scalar.

    Returns:
      ([B, T] float32, [B] bool: whether the response has such a step).
    """
    ids = jnp.where(mask, step_ids, -1)
    steps, present = rl.step_rewards(rewards, ids, num_steps=mask.shape[1])
    first = rl.first_error(steps, present, threshold=threshold)
    here = jnp.arange(mask.shape[1]) == first[:, None]
    return rl.token_rewards_from_steps(jnp.where(here, -1.0, 0.0), ids), first >= 0
