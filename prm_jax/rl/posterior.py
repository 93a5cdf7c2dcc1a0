"""BRAIn: distil the reward-conditioned posterior into a policy by a softmax over each prompt's samples.

Pandey et al., BRAIn: Bayesian Reward-conditioned Amortized Inference (arXiv 2402.02479).
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.losses import Loss, Mean


def brain_loss(
    logp: ArrayLike,
    prior_logp: ArrayLike,
    proposal_logp: ArrayLike,
    rewards: ArrayLike,
    group_ids: ArrayLike,
    *,
    num_groups: int,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
) -> Loss:
    """Cross-entropy between two self-normalised importance distributions over the samples of a prompt.

    `-sum_i alpha_i log beta_i` with `alpha = softmax_i(r_i / temperature + log p_i - log q'_i)` (the posterior) and
    `beta = softmax_i(log pi_i - log q'_i)` (the policy); its gradient is `sum_i (beta_i - alpha_i) grad log pi_i`, 0
    at the posterior. Subtracting beta is a baseline that reduces the variance. Two samples, one of them
    infinitely better, and proposal = prior make it DPO with beta = 1.

    Args:
      logp: [B] float, log pi of each response. Receives gradients.
      prior_logp: [B] float, under the prior p (the supervised policy). No gradient.
      proposal_logp: [B] float, under the distribution q' that drew the samples. No gradient.
      rewards: [B] float. No gradient.
      group_ids: [B] int in [0, num_groups), any order. Under `shard_map` a group must be on one device.
      num_groups: number of prompts.
      temperature: gamma of the paper, > 0.
      mask: [B] bool, or None.

    Returns:
      `Loss`, weight = prompts with a sample (one alone contributes 0). Metric `kl`: the mean divergence of beta
      from alpha, the loss less its minimum. Unchanged by adding a constant to rewards, or to any log-probability,
      within a group.

    Source: arXiv 2402.02479; the released estimator is its gradient.
    """
    ids, member = masking.group_members(group_ids, num_groups, mask)
    chex.assert_rank(ids, 1)
    arrays = [jnp.asarray(x) for x in (logp, prior_logp, proposal_logp, rewards)]
    chex.assert_equal_shape([*arrays, ids])
    logp, prior, proposal, rewards = (masking.masked(x, member) for x in arrays)
    prior, proposal, rewards = jax.lax.stop_gradient((prior, proposal, rewards))
    log_alpha = _group_log_softmax(rewards / temperature + prior - proposal, ids, num_groups, member)
    log_beta = _group_log_softmax(logp - proposal, ids, num_groups, member)
    alpha = jnp.where(member, jnp.exp(log_alpha), 0.0)
    total = -jnp.where(member, alpha * log_beta, 0.0).sum()
    groups = masking.group_sum(member.astype(jnp.float32), ids, num_groups, member)
    weight = (groups > 0).sum().astype(jnp.float32)
    # alpha log alpha is 0 at alpha = 0, where log alpha may be -inf when it underflows.
    entropy = jnp.where(alpha > 0, alpha * jnp.where(alpha > 0, log_alpha, 0.0), 0.0).sum()
    return Loss(total, weight, {"kl": Mean(jax.lax.stop_gradient(total) + entropy, weight)})


def _group_log_softmax(x: jax.Array, ids: jax.Array, num_groups: int, member: jax.Array) -> jax.Array:
    """Log-softmax over the members of each group; 0 for rows in none."""
    top = jax.ops.segment_max(jnp.where(member, x, -jnp.inf), jnp.where(member, ids, num_groups), num_groups)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    centred = x - jax.lax.stop_gradient(masking.of_group(top, ids, member))
    total = masking.group_sum(jnp.where(member, jnp.exp(jnp.where(member, centred, 0.0)), 0.0), ids, num_groups, member)
    return jnp.where(member, centred - jnp.log(masking.of_group(jnp.maximum(total, 1e-38), ids, member) + ~member), 0.0)
