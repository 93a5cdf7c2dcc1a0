"""A policy loss of your own: importance weights that are truncated instead of clipped, without a gradient of their own.

prm-jax train --preset smoke --policy.loss examples/policy_loss.py:truncated
"""

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.prime import RewardInputs


def truncated(logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, inputs: RewardInputs) -> rl.Loss:
    """A sum over tokens and its weight; every argument is [B, T], and `logp` alone gets a gradient."""
    mask = inputs.counted
    weights = jax.lax.stop_gradient(jnp.minimum(jnp.exp(logp - old_logp), 2.0))
    total = -jnp.where(mask, weights * advantages * logp, 0.0).sum()
    return rl.Loss(total, mask.sum().astype(jnp.float32), {})
