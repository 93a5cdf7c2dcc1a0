"""PRIME as published (arXiv 2502.01456, algorithm 1) in one file of public functions: copy it and change what you like.

`prm_jax.prime.make_step` composes the same step from options; with the published ones both give the same numbers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.models import ModelConfig, token_logprobs
from prm_jax.runs import accumulate_gradients, guarded_update, make_optimizer

Params = Any


@dataclasses.dataclass(frozen=True)
class Published:
    """The settings of the paper and its released scripts.

    Attributes:
      beta: scale of the implicit reward.
      clip: range of the probability ratio.
      policy_lr, prm_lr: constant learning rates.
      policy_decay: weight decay of the policy.
      policy_grad_clip, prm_grad_clip: maximum global norms of the gradients.
    """

    beta: float = 0.05
    clip: float = 0.2
    policy_lr: float = 5e-7
    prm_lr: float = 1e-6
    policy_decay: float = 0.01
    policy_grad_clip: float = 1.0
    prm_grad_clip: float = 10.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollouts:
    """G responses to each prompt, filtered by solve rate already (0.2 to 0.8 in the paper).

    Attributes:
      tokens: [B, T] int32, rows ``[prompt][response][padding]``.
      mask: [B, T] bool, True on response tokens.
      outcome: [B] float32, the verifier's scores.
      group_ids: [B] int32, the prompt of each row.
    """

    tokens: jax.Array
    mask: jax.Array
    outcome: jax.Array
    group_ids: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Models:
    """Policy and PRM with the states of their optimisers; both start from the same weights."""

    policy: Params
    policy_opt: Any
    prm: Params
    prm_opt: Any


def optimizers(settings: Published) -> tuple[Any, Any]:
    """(of the policy, of the PRM): AdamW after clipping."""
    policy = make_optimizer(
        settings.policy_lr, weight_decay=settings.policy_decay, grad_clip=settings.policy_grad_clip
    )
    return policy, make_optimizer(settings.prm_lr, grad_clip=settings.prm_grad_clip)


def init(settings: Published, reference: Params) -> Models:
    """Policy and PRM as copies of the reference (line 1)."""
    policy_optimizer, prm_optimizer = optimizers(settings)
    policy, prm = (jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), reference) for _ in range(2))
    return Models(policy, policy_optimizer.init(policy), prm, prm_optimizer.init(prm))


def step(
    settings: Published, config: ModelConfig, models: Models, reference: Params, batch: Rollouts
) -> tuple[Models, dict[str, jax.Array]]:
    """One iteration on rollouts of the current policy.

    Args:
      settings: hyperparameters.
      config: the architecture of all three models.
      models: policy and PRM.
      reference: the frozen start of both.
      batch: rollouts of ``models.policy`` at temperature 1.

    Returns:
      (new models, metrics). Pure; compile it with ``jax.jit(step, static_argnums=(0, 1), donate_argnums=2,
      compiler_options=models.compiler_options(config))``.
    """
    policy_optimizer, prm_optimizer = optimizers(settings)
    mask, groups = batch.mask, batch.mask.shape[0]
    ref_logp = jax.lax.stop_gradient(token_logprobs(config, reference, batch.tokens, mask))

    # Lines 6 to 8: the PRM learns from outcomes by cross-entropy; the same forward pass gives the implicit rewards.
    def prm_loss(prm: Params, rows: Rollouts) -> tuple[rl.Loss, jax.Array]:
        logp = token_logprobs(config, prm, rows.tokens, rows.mask)
        rewards = rl.implicit_token_rewards(logp, ref_logp, rows.mask, beta=settings.beta)
        return rl.outcome_ce_loss(rewards, rows.outcome, rows.mask), jax.lax.stop_gradient(rewards)

    grads, prm_found, rewards = accumulate_gradients(prm_loss, models.prm, batch)
    prm, prm_opt, _ = guarded_update(prm_optimizer, grads, models.prm_opt, models.prm)

    # Lines 9 and 10, equation 5: leave-one-out advantages of process rewards and outcomes.
    dense = rl.normalize_by_return(rewards, mask)
    advantages = rl.rloo_advantages(dense, batch.outcome, mask, batch.group_ids, num_groups=groups)

    # Line 11: the clipped surrogate; with one update per batch the old log-probs are those of this very pass.
    def policy_loss(policy: Params, rows: Rollouts) -> tuple[rl.Loss, None]:
        logp = token_logprobs(config, policy, rows.tokens, rows.mask)
        old_logp = jax.lax.stop_gradient(logp)
        loss = rl.clipped_surrogate(
            logp, old_logp, advantages, rows.mask, clip_low=settings.clip, clip_high=settings.clip
        )
        return rl.Loss(loss.total, loss.weight, {}), None

    grads, found, _ = accumulate_gradients(policy_loss, models.policy, batch)
    policy, policy_opt, _ = guarded_update(policy_optimizer, grads, models.policy_opt, models.policy)
    accuracy = rl.pairwise_accuracy(rewards.sum(-1), batch.outcome, batch.group_ids, num_groups=groups)
    metrics = {"prm/loss": prm_found.mean(), "policy/loss": found.mean(), "prm/pairwise_accuracy": accuracy}
    return Models(policy, policy_opt, prm, prm_opt), metrics
