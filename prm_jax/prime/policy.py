"""The policy's half of a step: its loss with divergence and entropy terms, and the update."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from prm_jax import rl
from prm_jax.prime.batch import Batch, Frozen, Metrics, RewardInputs, State
from prm_jax.prime.checked import checked_loss
from prm_jax.prime.off_policy import correct, metrics
from prm_jax.prime.options import OffPolicyOptions, PolicyOptions
from prm_jax.prime.pieces import (
    batch_logprobs,
    batch_statistics,
    microbatches,
    run_epochs,
    score_in_pieces,
    summarize,
)
from prm_jax.prime.sample_losses import brain_policy_loss, gpo_policy_loss
from prm_jax.resolve import check_signature, resolve
from prm_jax.runs.expert_balance import expert_metrics, with_balance
from prm_jax.runs.learner import Learner, Params, accumulate_gradients, guarded_update

PolicyLoss = Callable[[jax.Array, jax.Array, jax.Array, RewardInputs], rl.Loss]
"""``(logp [B, T], old_logp [B, T], advantages [B, T], inputs) -> Loss``; gradients flow into `logp`."""


def clipped_loss(options: PolicyOptions) -> PolicyLoss:
    """The clipped surrogate of PPO, by token or by sequence."""

    def loss(logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, inputs: RewardInputs) -> rl.Loss:
        return rl.clipped_surrogate(
            logp, old_logp, advantages, inputs.counted, clip_low=options.clip_low, clip_high=options.clip_high,
            dual_clip=options.dual_clip, ratio=options.ratio,
        )  # fmt: skip

    return loss


def make_policy_loss(options: PolicyOptions) -> PolicyLoss:
    """The loss that `options.loss` names.

    Raises:
      UserError: an unknown name, or a function that cannot take (logp, old_logp, advantages, inputs).
    """
    known: dict[str, PolicyLoss] = {
        "clipped": clipped_loss(options), "brain": brain_policy_loss(options), "gpo": gpo_policy_loss(options),
        "sppo": gpo_policy_loss(options),
    }  # fmt: skip
    function = resolve(options.loss, known, "policy loss", option="policy.loss")
    if options.loss not in known:
        check_signature(function, ("logp", "old_logp", "advantages", "inputs"), f"policy loss {options.loss}")
        return checked_loss(function, f"the policy loss {options.loss}")
    return function


def with_regularizers(
    options: PolicyOptions, loss: rl.Loss, logp: jax.Array, ref_logp: jax.Array | None, inputs: RewardInputs
) -> rl.Loss:
    """Loss + kl_coef * divergence - entropy_coef * entropy.

    Args:
      options: coefficients.
      loss: of the policy; its weight is kept.
      logp: [B, T] of the learning policy; gets gradients.
      ref_logp: [B, T] constant; None leaves the divergence out.
      inputs: mask and entropy.
    """
    assert inputs.entropy is not None
    bonus = rl.entropy_bonus(inputs.entropy, inputs.counted)
    total, metrics = loss.total, {**loss.metrics, **bonus.metrics}
    if options.entropy_coef:
        # The exact entropy of every next-token distribution, not an estimate from the sampled token.
        total = total + options.entropy_coef * bonus.mean() * loss.weight
    if ref_logp is not None:
        penalty = rl.kl_penalty(logp, ref_logp, inputs.counted, estimator=options.kl_estimator)
        total = total + options.kl_coef * penalty.mean() * loss.weight
        metrics["kl"] = rl.Mean(jax.lax.stop_gradient(penalty.total), penalty.weight)
    return rl.Loss(total, loss.weight, metrics)


@dataclasses.dataclass(frozen=True)
class PolicyPhase:
    """What stays the same about the policy's update.

    Attributes:
      learner: architecture, optimiser, adapters.
      options: coefficients, minibatches, epochs.
      loss: the policy's loss.
      temperature: of the sampling, which log-probs use too.
      ways: number of devices that hold the rows.
      off_policy: corrections for the sampler, with the kind of weights resolved.
    """

    learner: Learner
    options: PolicyOptions
    loss: PolicyLoss
    temperature: float
    ways: int
    off_policy: OffPolicyOptions = OffPolicyOptions(weights="none")

    def logp(self, policy: Params, frozen: Frozen, batch: Batch) -> jax.Array:
        """Log-probs [B, T] of the responses under the policy at the sampling temperature, in pieces."""
        params = self.learner.params(policy, frozen.reference)
        return score_in_pieces(
            lambda rows: batch_logprobs(self.learner.config, params, rows, self.temperature),
            batch, self.options, self.ways,
        )  # fmt: skip

    def reference_logp(self, frozen: Frozen, batch: Batch) -> jax.Array:
        """The same under the policy's initial weights."""
        return score_in_pieces(
            lambda rows: batch_logprobs(self.learner.config, frozen.reference, rows, self.temperature),
            batch, self.options, self.ways,
        )  # fmt: skip

    def old_logp(self, state: State, frozen: Frozen, batch: Batch) -> jax.Array | None:
        """The policy's log-probs before the update; None where the update's own forward pass gives the same numbers."""
        bypass = self.off_policy.objective == "bypass" and batch.behaviour_logp is not None
        single = bypass or (self.options.epochs == 1 and self.options.minibatches == 1)
        if single and not (self.options.kl_coef and self.options.kl_placement == "reward"):
            return None
        return self.logp(state.policy, frozen, batch)

    def kl_rewards(self, frozen: Frozen, batch: Batch, old_logp: jax.Array | None) -> jax.Array | None:
        """``-kl_coef * (log policy - log reference)`` [B, T] on sampled tokens, or None unless asked for."""
        if not self.options.kl_coef or self.options.kl_placement != "reward":
            return None
        assert old_logp is not None
        ref_logp = self.reference_logp(frozen, batch)
        return -self.options.kl_coef * rl.token_kl(old_logp, ref_logp, batch.mask, estimator="k1")

    def update(
        self,
        state: State,
        frozen: Frozen,
        batch: Batch,
        advantages: jax.Array,
        inputs: RewardInputs,
        old_logp: jax.Array | None,
    ) -> tuple[Params, Any, Metrics]:
        """Epochs of minibatches: (trainable, optimiser state, metrics)."""
        options = self.options
        in_loss = bool(options.kl_coef) and options.kl_placement == "loss"
        divided = inputs.gate.ndim > 0  # a gate of the batch is a scalar, which minibatches do not divide
        data: dict[str, Any] = {
            "batch": batch,
            "advantages": advantages,
            "inputs": inputs if divided else dataclasses.replace(inputs, gate=None),  # type: ignore[arg-type]
        }
        if old_logp is not None:
            data["old_logp"] = old_logp
        if in_loss:
            data["ref_logp"] = self.reference_logp(frozen, batch)

        def loss_fn(trainable: Params, piece: dict[str, Any]) -> tuple[rl.Loss, dict[str, jax.Array]]:
            params, rows = self.learner.params(trainable, frozen.reference), piece["batch"]
            found = batch_statistics(
                self.learner.config, params, rows, self.temperature, entropy=True, load=True
            )  # fmt: skip
            logp = found.logp
            old = piece.get("old_logp", jax.lax.stop_gradient(logp))
            gate = piece["inputs"].gate if divided else inputs.gate
            seen = dataclasses.replace(piece["inputs"], gate=gate, entropy=found.entropy)
            corrected = correct(self.off_policy, old, piece["advantages"], seen)
            loss = self.loss(logp, corrected.old_logp, corrected.advantages, seen)
            loss = with_regularizers(options, loss, logp, piece.get("ref_logp"), seen)
            return with_balance(loss, found.load, options.balance_coef), corrected.sums

        def update(carry: tuple[Params, Any], piece: dict[str, Any]) -> tuple[tuple[Params, Any], Metrics]:
            trainable, opt = carry
            grads, loss, sums = accumulate_gradients(
                loss_fn, trainable, piece, pieces=microbatches(options, piece["batch"], self.ways), ways=self.ways
            )
            trainable, opt, health = guarded_update(self.learner.optimizer, grads, opt, trainable)
            found = expert_metrics(loss.summary())
            return (trainable, opt), {"loss": loss.mean(), **found, **metrics(sums), **health}

        carry = (state.policy, state.policy_opt)
        (policy, policy_opt), outs = run_epochs(update, carry, data, options, self.ways)
        return policy, policy_opt, summarize("policy", outs)
