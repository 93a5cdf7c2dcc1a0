"""Policy losses over the samples of a prompt, in place of the clipped surrogate.

BRAIn: arXiv 2402.02479; GPO, general preference optimisation: arXiv 2410.02197; SPPO: arXiv 2405.00675.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.prime.batch import RewardInputs
from prm_jax.prime.options import PolicyOptions

SampleLoss = Callable[[jax.Array, jax.Array, jax.Array, RewardInputs], rl.Loss]
"""As ``policy.PolicyLoss``."""

NAMES = ("brain", "gpo", "sppo")
"""Losses that compare the samples of a prompt, so that a piece of an update must hold whole groups."""


def response_rewards(advantages: jax.Array, inputs: RewardInputs) -> jax.Array:
    """[B] the reward of each response: the mean of its tokens' advantages.

    These losses do not change when a constant is added to the rewards of a prompt, so that a baseline does no harm.
    """
    counted = inputs.counted
    return jnp.where(counted, advantages, 0.0).sum(-1) / jnp.maximum(counted.sum(-1), 1)


def brain_policy_loss(options: PolicyOptions) -> SampleLoss:
    """Cross-entropy to the reward-conditioned posterior of the policy's start, over the samples of a prompt."""

    def loss(logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, inputs: RewardInputs) -> rl.Loss:
        assert inputs.ref_logp is not None
        counted = inputs.counted
        total, prior, proposal = (jnp.where(counted, x, 0.0).sum(-1) for x in (logp, inputs.ref_logp, old_logp))
        return rl.brain_loss(
            total, prior, proposal, response_rewards(advantages, inputs), inputs.group_ids,
            num_groups=inputs.num_groups, temperature=options.sample_temperature, mask=inputs.keep,
        )  # fmt: skip

    return loss


def gpo_policy_loss(options: PolicyOptions) -> SampleLoss:
    """Squared distance of the log-ratio to the preference over the policy that sampled.

    gpo: the preference of a response is its reward less the mean of the group's others, and log Z is estimated from
    the samples; sppo: the share of the group's others that it beats (ties count half), less one half, and no log Z, as
    published.
    """

    def loss(logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, inputs: RewardInputs) -> rl.Loss:
        counted, beta = inputs.counted, options.sample_temperature
        total, old = (jnp.where(counted, x, 0.0).sum(-1) for x in (logp, old_logp))
        rewards = response_rewards(advantages, inputs)
        gaps = rewards[:, None] - rewards[None]
        if options.loss == "sppo":
            gaps = 0.5 * jnp.sign(gaps)
        scores = _over_others(gaps, inputs)
        log_z = jnp.zeros_like(scores) if options.loss == "sppo" else _log_mean_exp(scores / beta, inputs)
        return rl.gpo_loss(total, old, scores, inputs.keep, beta=beta, log_z=log_z)

    return loss


def _over_others(gaps: jax.Array, inputs: RewardInputs) -> jax.Array:
    """[B] mean of gaps [B, B] over the other kept rows of each row's group; 0 for a row alone."""
    same = (inputs.group_ids[:, None] == inputs.group_ids) & inputs.keep[:, None] & inputs.keep
    others = same & ~jnp.eye(gaps.shape[0], dtype=bool)
    return jnp.where(others, gaps, 0.0).sum(-1) / jnp.maximum(others.sum(-1), 1)


def _log_mean_exp(x: jax.Array, inputs: RewardInputs) -> jax.Array:
    """[B] log of the mean of exp(x) over the kept rows of each row's group."""
    keep, groups = inputs.keep, inputs.num_groups
    top = jax.ops.segment_max(jnp.where(keep, x, -jnp.inf), inputs.group_ids, groups)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jax.ops.segment_sum(jnp.where(keep, jnp.exp(x - top[inputs.group_ids]), 0.0), inputs.group_ids, groups)
    count = jax.ops.segment_sum(keep.astype(jnp.float32), inputs.group_ids, groups)
    found = top + jnp.log(jnp.maximum(total, 1e-30) / jnp.maximum(count, 1.0))
    return found[inputs.group_ids]
