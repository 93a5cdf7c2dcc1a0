"""Corrections for a sampler whose probabilities are not the trainer's, as the options say."""

import dataclasses

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.prime.batch import Metrics, RewardInputs
from prm_jax.prime.options import OffPolicyOptions, Options


def resolved(options: Options) -> OffPolicyOptions:
    """The options with "auto" replaced: weights of tokens, unless sampler and trainer compute the same in float32."""
    chosen, rollout = options.off_policy, options.rollout
    if chosen.weights != "auto":
        return chosen
    whole = rollout.top_k == 0 and rollout.top_p == 1
    local = rollout.engine in ("auto", "generate", "slots")
    whole = whole and rollout.cache_dtype in ("auto", "float32")
    same = whole and rollout.max_lag == 0 and local and options.model.compute_dtype == "float32"
    return dataclasses.replace(chosen, weights="none" if same else "token")


@dataclasses.dataclass(frozen=True)
class Corrected:
    """What the policy's loss takes in place of old log-probs and advantages.

    Attributes:
      old_logp: [B, T], around which ratios are clipped.
      advantages: [B, T], times the weights.
      sums: of `rl.mismatch_sums`, by response; {} where the sampler's log-probs are not known.
    """

    old_logp: jax.Array
    advantages: jax.Array
    sums: dict[str, jax.Array]


def correct(
    options: OffPolicyOptions, old_logp: jax.Array, advantages: jax.Array, inputs: RewardInputs
) -> Corrected:
    """Applies `options`; a batch without the sampler's log-probs is returned as it is.

    Args:
      options: with the kind of weights resolved.
      old_logp: [B, T] of the trainer, at the weights that sampled or the latest ones before the update.
      advantages: [B, T].
      inputs: mask and the sampler's log-probs.
    """
    behaviour, mask = inputs.behaviour_logp, inputs.counted
    if behaviour is None:
        return Corrected(old_logp, advantages, {})
    if options.objective == "bypass":
        known = jnp.where(jnp.isnan(behaviour), old_logp, behaviour)
        return Corrected(known, advantages, rl.mismatch_sums(old_logp, behaviour, mask))
    if options.weights == "none" or options.weights == "auto":
        return Corrected(old_logp, advantages, rl.mismatch_sums(old_logp, behaviour, mask))
    weights, _, sums = rl.sampler_weights(
        old_logp, behaviour, mask, level=options.weights, low=options.low, high=options.high, action=options.action
    )
    return Corrected(old_logp, advantages * weights, sums)


def metrics(sums: dict[str, jax.Array]) -> Metrics:
    """The metrics of a whole batch; {} without sums."""
    return rl.mismatch_metrics(sums) if sums else {}
