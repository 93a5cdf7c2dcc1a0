"""One PRIME step on a batch of rollouts: PRM update, implicit process rewards, advantages, policy update.

Process Reinforcement through Implicit Rewards (arXiv 2502.01456, algorithm 1).  Every phase is a pure
function of arrays; `make_prime_step` composes them and compiles the whole as one program with donated state.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.models import ModelConfig, hidden_states, token_logprobs, token_logprobs_and_entropy, value_head
from prm_jax.prime.options import AdvantageOptions, PolicyOptions, PRMOptions, TrainOptions
from prm_jax.runs.learner import (
    Learner,
    Params,
    accumulate_gradients,
    guarded_update,
    merge_rows,
    split_rows,
)

Metrics = dict[str, jax.Array]

_WEIGHTINGS: dict[str, Literal["none", "bon_rm", "bon_acc"]] = {
    "detached": "none",
    "detached_bon_rm": "bon_rm",
    "detached_bon_acc": "bon_acc",
}
_VARIANTS: dict[str, Literal["paper", "released"]] = {"rloo": "paper", "rloo_released": "released"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrimeBatch:
    """Rollouts of one step; rows are ``[prompt][response][padding]``, groups lie together.

    Attributes:
      tokens: [B, T] int32.
      mask: [B, T] bool, True on response tokens including the first end token.
      keep: [B] bool, False on rows that count for nothing: filtered groups, failed verifications.
      outcome: [B] float32 in [0, 1].
      group_ids: [B] int32 in [0, P), the prompt of each row.
      step_ids: [B, T] int32, the reasoning step of each response token, -1 elsewhere.
      process: [B, T] float32 process rewards from elsewhere than a PRM, or None.
      start: static; no response begins before this column, so that nothing before it goes through the head.
    """

    tokens: jax.Array  # [B, T]
    mask: jax.Array  # [B, T]
    keep: jax.Array  # [B]
    outcome: jax.Array  # [B]
    group_ids: jax.Array  # [B]
    step_ids: jax.Array  # [B, T]
    process: jax.Array | None = None  # [B, T]
    start: int = dataclasses.field(default=0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrimeState:
    """What a step changes.  A part that a run does not use is None.

    Attributes:
      policy, policy_opt: the policy's trainable arrays and its optimiser's state.
      prm, prm_opt: the same of the implicit PRM.
      critic, critic_opt: the same of the critic, ``{"trunk", "head"}``.
      step: scalar int32, steps that learned something.
    """

    policy: Params
    policy_opt: Any
    prm: Params | None
    prm_opt: Any
    critic: Params | None
    critic_opt: Any
    step: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """Parameters that never change; the same arrays may stand in both places.

    Attributes:
      reference: the policy's start, and the base of its adapters and of the critic.
      prm_reference: the PRM's start, and the base of its adapters.
    """

    reference: Params
    prm_reference: Params


@dataclasses.dataclass(frozen=True)
class PrimeSetup:
    """The static half of a run: models, optimisers, options.

    Attributes:
      policy: the policy's learner.
      prm: the PRM's, None in outcome-only training.
      critic: the critic's, None unless the estimator is ppo.
      options: the run's options.
      ways: devices over which a batch's rows lie, in consecutive blocks; every minibatch and microbatch then takes
        its share of each block.  They must divide a minibatch's prompts, see `even_ways`.
    """

    policy: Learner
    prm: Learner | None
    critic: Learner | None
    options: TrainOptions
    ways: int = 1

    @property
    def prm_config(self) -> ModelConfig:
        """The architecture of the PRM and of its reference."""
        return self.policy.config if self.prm is None else self.prm.config


def even_ways(options: TrainOptions, ways: int) -> int:
    """`ways` if the pieces of every update can take whole groups from as many blocks of rows, otherwise 1.

    With 1 the pieces are consecutive rows: the same numbers, but each piece lies on few devices.
    """
    prompts = options.rollout.prompts_per_step
    pieces = [part.minibatches * part.microbatches for part in (options.prm, options.policy)]
    return ways if all(prompts % (ways * count) == 0 for count in pieces) else 1


def init_state(setup: PrimeSetup, frozen: Frozen, critic_head: Params | None, key: jax.Array) -> PrimeState:
    """The state before the first step.  `key` is consumed; `frozen`'s arrays are copied, not taken."""
    policy_key, prm_key, critic_key = jax.random.split(key, 3)
    policy, policy_opt = setup.policy.init(frozen.reference, policy_key)
    prm = prm_opt = critic = critic_opt = None
    if setup.prm is not None:
        prm, prm_opt = setup.prm.init(frozen.prm_reference, prm_key)
    if setup.critic is not None:
        trunk, _ = setup.critic.init(frozen.reference, critic_key)
        critic = {"trunk": trunk, "head": critic_head}
        critic_opt = setup.critic.optimizer.init(critic)
    return PrimeState(policy, policy_opt, prm, prm_opt, critic, critic_opt, jnp.zeros((), jnp.int32))


def make_prime_step(
    setup: PrimeSetup, *, shardings: PrimeState | None = None
) -> Callable[[PrimeState, Frozen, PrimeBatch], tuple[PrimeState, Metrics, jax.Array]]:
    """Compiles ``(state, frozen, batch) -> (state, metrics, process rewards [B, T])``.

    Args:
      setup: models, optimisers, options.
      shardings: how the new state lies on a mesh, leaf by leaf as the old one does; None on one device.

    `state` is donated.  Nothing inside waits for the host; metrics are float32 scalars on the device.
    A non-finite gradient leaves its learner unchanged and is counted in ``*/skipped``.
    """

    def step(state: PrimeState, frozen: Frozen, batch: PrimeBatch) -> tuple[PrimeState, Metrics, jax.Array]:
        with jax.named_scope("score"):
            old_logp = _old_logp(setup, state, frozen, batch)
        with jax.named_scope("prm"):
            prm, prm_opt, rewards, gate, prm_metrics = prm_phase(setup, state, frozen, batch)
        with jax.named_scope("advantages"):
            values = _old_values(setup, state, frozen, batch)
            penalty = kl_rewards(setup, frozen, batch, old_logp)
            advantages, returns, adv_metrics = compute_advantages(
                setup.options.advantage, batch, rewards, gate, penalty, values
            )
        with jax.named_scope("critic"):
            critic, critic_opt, critic_metrics = critic_phase(setup, state, frozen, batch, values, returns)
        with jax.named_scope("policy"):
            policy, policy_opt, policy_metrics = policy_phase(setup, state, frozen, batch, advantages, old_logp)
        new = PrimeState(policy, policy_opt, prm, prm_opt, critic, critic_opt, state.step + 1)
        if shardings is not None:
            new = jax.lax.with_sharding_constraint(new, shardings)
        return new, {**prm_metrics, **adv_metrics, **critic_metrics, **policy_metrics}, rewards

    return jax.jit(step, donate_argnums=0)


def make_prm_step(
    setup: PrimeSetup, *, shardings: PrimeState | None = None
) -> Callable[[PrimeState, Frozen, PrimeBatch], tuple[PrimeState, Metrics]]:
    """Compiles a step that updates the PRM alone, for its warm-up on the initial policy's rollouts."""

    def step(state: PrimeState, frozen: Frozen, batch: PrimeBatch) -> tuple[PrimeState, Metrics]:
        prm, prm_opt, _, _, metrics = prm_phase(setup, state, frozen, batch)
        new = dataclasses.replace(state, prm=prm, prm_opt=prm_opt)
        if shardings is not None:
            new = jax.lax.with_sharding_constraint(new, shardings)
        return new, metrics

    return jax.jit(step, donate_argnums=0)


# ------------------------------------------------------------------------------------------- scoring


def policy_logp(setup: PrimeSetup, policy: Params, frozen: Frozen, batch: PrimeBatch) -> jax.Array:
    """Log-probs [B, T] of the response under the policy at the sampling temperature; 0 off the response."""
    params = setup.policy.params(policy, frozen.reference)
    return _token_logprobs(setup.policy.config, params, batch, setup.options.rollout.temperature)


def prm_logp(setup: PrimeSetup, prm: Params, frozen: Frozen, batch: PrimeBatch) -> jax.Array:
    """Log-probs [B, T] of the response under the PRM; no temperature."""
    assert setup.prm is not None
    params = setup.prm.params(prm, frozen.prm_reference)
    return _token_logprobs(setup.prm.config, params, batch)


def _token_logprobs(config: ModelConfig, params: Params, batch: PrimeBatch, temperature: float = 1.0) -> jax.Array:
    return token_logprobs(config, params, batch.tokens, batch.mask, temperature=temperature, start=batch.start)


def _score_prm(setup: PrimeSetup, prm: Params, frozen: Frozen, batch: PrimeBatch) -> jax.Array:
    return _score_in_pieces(lambda piece: prm_logp(setup, prm, frozen, piece), batch, setup, setup.options.prm)


def _score_in_pieces(
    score: Callable[[PrimeBatch], jax.Array],
    batch: PrimeBatch,
    setup: PrimeSetup,
    options: PRMOptions | PolicyOptions,
) -> jax.Array:
    """Scores [B, T] without gradient, in the pieces in which the update runs.

    So scoring needs no more memory than training; and equal parameters give equal bits in both, which products of
    other shapes would not.
    """
    if options.minibatches * options.microbatches == 1:
        return jax.lax.stop_gradient(score(batch))
    ways = setup.ways

    def minibatch(rows: PrimeBatch) -> jax.Array:
        return merge_rows(jax.lax.map(score, split_rows(rows, options.microbatches, ways)), ways)

    scores = jax.lax.map(minibatch, split_rows(batch, options.minibatches, ways))
    return jax.lax.stop_gradient(merge_rows(scores, ways))


def _prm_reference_logp(setup: PrimeSetup, state: PrimeState, frozen: Frozen, batch: PrimeBatch) -> jax.Array:
    if setup.options.prm.reference == "frozen":
        config, params = setup.prm_config, frozen.prm_reference
    else:
        # Without the sampling temperature: the PRM has none, and the ratio must compare like with like.
        config, params = setup.policy.config, setup.policy.params(state.policy, frozen.reference)
    return _score_in_pieces(lambda piece: _token_logprobs(config, params, piece), batch, setup, setup.options.prm)


def _old_logp(setup: PrimeSetup, state: PrimeState, frozen: Frozen, batch: PrimeBatch) -> jax.Array | None:
    """The sampling policy's log-probs, or None where the update's own forward pass gives the same numbers."""
    options = setup.options.policy
    single = options.epochs == 1 and options.minibatches == 1
    if single and not (options.kl_coef and options.kl_placement == "reward"):
        return None
    return _score_in_pieces(lambda piece: policy_logp(setup, state.policy, frozen, piece), batch, setup, options)


# ----------------------------------------------------------------------------------------------- PRM


def prm_phase(
    setup: PrimeSetup, state: PrimeState, frozen: Frozen, batch: PrimeBatch
) -> tuple[Params | None, Any, jax.Array, jax.Array, Metrics]:
    """Updates the PRM and scores the batch.

    The scores that measure the PRM (pairwise accuracy, trust gate) are those of each row before the PRM
    learned from it.

    Returns:
      (trainable, optimiser state, process rewards [B, T] before normalisation, gate scalar, metrics).
    """
    options, advantage = setup.options.prm, setup.options.advantage
    if setup.prm is None or state.prm is None:
        given = jnp.zeros(batch.mask.shape, jnp.float32) if batch.process is None else batch.process
        return None, None, given, jnp.ones(()), {}
    ref_logp = _prm_reference_logp(setup, state, frozen, batch)
    prm, prm_opt = state.prm, state.prm_opt
    metrics: Metrics = {}
    if options.update in ("none", "reverse"):
        fresh = _score_prm(setup, prm, frozen, batch)
    if options.update != "none":
        opponents = None
        if options.update == "reverse":
            opponents = _response_scores(fresh, ref_logp, batch, options.beta)
        prm, prm_opt, harvested, metrics = _update_prm(setup, state, frozen, batch, ref_logp, opponents)
        if options.update != "reverse":
            fresh = harvested
    scored = {
        "none": lambda: fresh,
        "after": lambda: fresh,
        "reverse": lambda: harvested,
        "before": lambda: _score_prm(setup, prm, frozen, batch),
    }[options.update]()

    accuracy = rl.pairwise_accuracy(
        _response_scores(fresh, ref_logp, batch, options.beta),
        batch.outcome,
        batch.group_ids,
        num_groups=batch.mask.shape[0],
        mask=batch.keep,
    )
    gate = _gate(advantage, accuracy, batch)
    rewards = rl.implicit_token_rewards(
        scored, ref_logp, batch.mask, beta=options.beta, include_last=advantage.include_last
    )
    if advantage.granularity == "step":
        num_steps = batch.mask.shape[1]
        per_step, _ = rl.step_rewards(rewards, batch.step_ids, num_steps=num_steps, how="sum")
        rewards = rl.token_rewards_from_steps(per_step, batch.step_ids)
    rewards = jax.lax.stop_gradient(rewards)
    counted = batch.mask & batch.keep[:, None]
    metrics = metrics | {
        "prm/pairwise_accuracy": accuracy,
        "prm/gate": gate,
        "prm/log_ratio": _mean(jnp.where(counted, scored - ref_logp, 0.0), counted),
        "prm/reward_abs": _mean(jnp.abs(jnp.where(counted, rewards, 0.0)), counted),
    }
    return prm, prm_opt, rewards, gate, metrics


def _gate(options: AdvantageOptions, accuracy: jax.Array, batch: PrimeBatch) -> jax.Array:
    """The factor of the process rewards; groups in which outcomes differ are what the accuracy was measured on."""
    if not options.gate:
        return jnp.ones(())
    if not options.gate_z:
        return rl.trust_gate(accuracy)
    groups = batch.mask.shape[0]
    extremes = [
        jax.ops.segment_max(jnp.where(batch.keep, sign * batch.outcome, -jnp.inf), batch.group_ids, groups)
        for sign in (1.0, -1.0)
    ]
    mixed = jnp.isfinite(extremes[0]) & (extremes[0] > -extremes[1])
    return rl.trust_gate(accuracy, count=mixed.sum(), z=options.gate_z)


def prm_loss(
    options: PRMOptions,
    logp: jax.Array,
    ref_logp: jax.Array,
    batch: PrimeBatch,
    opponents: jax.Array | None,
    num_groups: int,
) -> rl.Loss:
    """The online PRM loss of `options.loss` on log-probs [B, T]; gradients flow into `logp` alone."""
    rows = batch.mask & batch.keep[:, None]
    if options.loss == "ce":
        rewards = rl.implicit_token_rewards(logp, ref_logp, rows, beta=options.beta)
        return rl.outcome_ce_loss(rewards, batch.outcome, rows)
    scores = _response_scores(logp, ref_logp, batch, options.beta)
    if options.loss == "dpo":
        return rl.all_pairs_loss(scores, batch.outcome, batch.group_ids, num_groups=num_groups, mask=batch.keep)
    return rl.detached_pairwise_loss(
        scores,
        batch.outcome,
        batch.group_ids,
        num_groups=num_groups,
        weighting=_WEIGHTINGS[options.loss],
        mask=batch.keep,
        opponent_scores=opponents,
    )


def _update_prm(
    setup: PrimeSetup,
    state: PrimeState,
    frozen: Frozen,
    batch: PrimeBatch,
    ref_logp: jax.Array,
    opponents: jax.Array | None,
) -> tuple[Params, Any, jax.Array, Metrics]:
    """Epochs of minibatches: (trainable, optimiser state, log-probs harvested in epoch one, metrics)."""
    assert setup.prm is not None
    learner, options = setup.prm, setup.options.prm
    num_groups = batch.mask.shape[0]

    def loss_fn(trainable: Params, piece: dict[str, Any]) -> tuple[rl.Loss, jax.Array]:
        logp = prm_logp(setup, trainable, frozen, piece["batch"])
        loss = prm_loss(options, logp, piece["ref_logp"], piece["batch"], piece.get("opponents"), num_groups)
        return rl.Loss(loss.total, loss.weight, {}), jax.lax.stop_gradient(logp)

    def update(carry: tuple[Params, Any], piece: dict[str, Any]) -> tuple[tuple[Params, Any], Any]:
        trainable, opt = carry
        grads, loss, logp = accumulate_gradients(
            loss_fn, trainable, piece, pieces=options.microbatches, ways=setup.ways
        )
        trainable, opt, health = guarded_update(learner.optimizer, grads, opt, trainable)
        return (trainable, opt), (logp, {"loss": loss.mean(), **loss.summary(), **health})

    data = {"batch": batch, "ref_logp": ref_logp}
    if opponents is not None:
        data["opponents"] = opponents
    (prm, prm_opt), outs = _epochs(setup, update, (state.prm, state.prm_opt), data, options)
    logp = merge_rows(outs[0][0], setup.ways)  # of the first epoch: before the PRM has seen the row
    return prm, prm_opt, logp, _summary("prm", outs[1])


# ---------------------------------------------------------------------------------------- advantages


def kl_rewards(setup: PrimeSetup, frozen: Frozen, batch: PrimeBatch, old_logp: jax.Array | None) -> jax.Array | None:
    """``-kl_coef * (log policy - log reference)`` [B, T] on sampled tokens, or None unless asked for."""
    options = setup.options.policy
    if not options.kl_coef or options.kl_placement != "reward":
        return None
    assert old_logp is not None
    ref_logp = _policy_reference_logp(setup, frozen, batch)
    return -options.kl_coef * rl.token_kl(old_logp, ref_logp, batch.mask, estimator="k1")


def compute_advantages(
    options: AdvantageOptions,
    batch: PrimeBatch,
    process_rewards: jax.Array,
    gate: jax.Array,
    penalty: jax.Array | None,
    values: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None, Metrics]:
    """Advantages [B, T] from process rewards [B, T] and the batch's outcomes.

    Args:
      options: estimator, coefficients, normaliser.
      batch: rows with ``keep=False`` take no part in any statistic and get advantage 0.
      process_rewards: [B, T], not yet normalised.
      gate: scalar in [0, 1] that scales them.
      penalty: [B, T] added to the dense rewards as it is, or None.
      values: [B, T] of the critic, needed by ppo.

    Returns:
      (advantages [B, T], value targets [B, T] or None, metrics); none carries a gradient.
    """
    mask = batch.mask & batch.keep[:, None]
    outcome = jnp.asarray(batch.outcome, jnp.float32)
    num_groups = batch.mask.shape[0]  # an upper bound: empty groups count for nothing
    use_process = options.process_coef != 0.0
    dense = jnp.zeros(mask.shape, jnp.float32)
    if use_process:
        normalized = process_rewards
        if options.normalizer == "return":
            normalized = rl.normalize_by_return(process_rewards, mask)
        dense = options.process_coef * gate * normalized
    shaped = dense if penalty is None else dense + penalty
    targets = None
    if options.estimator in _VARIANTS:
        advantages = rl.rloo_advantages(
            shaped, outcome, mask, batch.group_ids, num_groups=num_groups, variant=_VARIANTS[options.estimator],
            outcome_coef=options.outcome_coef, discount=options.discount, whiten=options.whiten,
        )  # fmt: skip
    elif options.estimator == "grpo":
        # Equation 7 adds the two parts; each is divided by its own deviation, so that coefficients
        # and the gate must be applied behind it.
        zeros = jnp.zeros_like(dense)
        advantages = options.outcome_coef * rl.grpo_advantages(
            zeros, outcome, mask, batch.group_ids, num_groups=num_groups, discount=options.discount
        )
        if use_process:
            advantages += (
                options.process_coef
                * gate
                * rl.grpo_advantages(
                    process_rewards,
                    jnp.zeros_like(outcome),
                    mask,
                    batch.group_ids,
                    num_groups=num_groups,
                    discount=options.discount,
                )
            )
        if penalty is not None:
            advantages += rl.discounted_returns(penalty, mask, discount=options.discount)
    elif options.estimator == "reinforce":
        advantages = rl.reinforce_advantages(
            shaped, outcome, mask, outcome_coef=options.outcome_coef, discount=options.discount
        )
    else:
        assert values is not None
        rewards = shaped + options.outcome_coef * rl.outcome_token_rewards(outcome, mask)
        advantages = rl.generalized_advantages(
            rewards, values, mask, discount=options.discount, lambda_=options.gae_lambda
        )
        targets = jax.lax.stop_gradient(advantages + values)
        if options.whiten:
            advantages = rl.whiten(advantages, mask)
    advantages = jax.lax.stop_gradient(jnp.where(mask, advantages, 0.0))
    metrics = {"advantage/abs": _mean(jnp.abs(advantages), mask)}
    if use_process:
        dense_return = rl.discounted_returns(dense, mask)
        metrics["advantage/process_return_abs"] = _mean(jnp.abs(dense_return), mask)
    return advantages, targets, metrics


# -------------------------------------------------------------------------------------------- critic


def critic_values(setup: PrimeSetup, critic: Params | None, frozen: Frozen, batch: PrimeBatch) -> jax.Array | None:
    """Values [B, T]: entry t values the prefix before token t, 0 off the response.  None: no critic."""
    if setup.critic is None or critic is None:
        return None
    params = setup.critic.params(critic["trunk"], frozen.reference)
    hidden = hidden_states(setup.critic.config, params, batch.tokens)
    values = value_head(critic["head"], hidden)[..., 0].astype(jnp.float32)  # [B, T], after token t
    before = jnp.pad(values[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(batch.mask, before, 0.0)


def _old_values(setup: PrimeSetup, state: PrimeState, frozen: Frozen, batch: PrimeBatch) -> jax.Array | None:
    """The critic's values [B, T] before its update, in the pieces of the update; None: no critic."""
    if setup.critic is None or state.critic is None:
        return None

    def score(piece: PrimeBatch) -> jax.Array:
        values = critic_values(setup, state.critic, frozen, piece)
        assert values is not None
        return values

    return _score_in_pieces(score, batch, setup, setup.options.policy)


def critic_phase(
    setup: PrimeSetup,
    state: PrimeState,
    frozen: Frozen,
    batch: PrimeBatch,
    old_values: jax.Array | None,
    targets: jax.Array | None,
) -> tuple[Params | None, Any, Metrics]:
    """Moves the critic towards the value targets, with the policy's minibatches and epochs."""
    if setup.critic is None or old_values is None or targets is None:
        return None, None, {}
    learner, policy = setup.critic, setup.options.policy
    clip = setup.options.critic.clip

    def loss_fn(critic: Params, piece: dict[str, Any]) -> tuple[rl.Loss, None]:
        values = critic_values(setup, critic, frozen, piece["batch"])
        assert values is not None
        mask = piece["batch"].mask & piece["batch"].keep[:, None]
        old = None if clip is None else piece["old"]
        return rl.value_loss(values, piece["targets"], mask, old_values=old, clip=clip), None

    def update(carry: tuple[Params, Any], piece: dict[str, Any]) -> tuple[tuple[Params, Any], Metrics]:
        critic, opt = carry
        grads, loss, _ = accumulate_gradients(loss_fn, critic, piece, pieces=policy.microbatches, ways=setup.ways)
        critic, opt, health = guarded_update(learner.optimizer, grads, opt, critic)
        return (critic, opt), {"loss": loss.mean(), **health}

    data = {"batch": batch, "old": jax.lax.stop_gradient(old_values), "targets": targets}
    start = (state.critic, state.critic_opt)
    (critic, critic_opt), outs = _epochs(setup, update, start, data, policy)
    return critic, critic_opt, _summary("critic", outs)


# -------------------------------------------------------------------------------------------- policy


def policy_phase(
    setup: PrimeSetup,
    state: PrimeState,
    frozen: Frozen,
    batch: PrimeBatch,
    advantages: jax.Array,
    old_logp: jax.Array | None,
) -> tuple[Params, Any, Metrics]:
    """Epochs of minibatches of the clipped surrogate with its divergence and entropy terms."""
    learner, options = setup.policy, setup.options.policy
    in_loss = bool(options.kl_coef) and options.kl_placement == "loss"
    data: dict[str, Any] = {"batch": batch, "advantages": advantages}
    if old_logp is not None:
        data["old_logp"] = old_logp
    if in_loss:
        data["ref_logp"] = _policy_reference_logp(setup, frozen, batch)

    def loss_fn(trainable: Params, piece: dict[str, Any]) -> tuple[rl.Loss, None]:
        params = learner.params(trainable, frozen.reference)
        logp, entropy = token_logprobs_and_entropy(
            learner.config, params, piece["batch"].tokens, piece["batch"].mask,
            temperature=setup.options.rollout.temperature, start=piece["batch"].start,
        )  # fmt: skip
        old = piece.get("old_logp", jax.lax.stop_gradient(logp))
        mask = piece["batch"].mask & piece["batch"].keep[:, None]
        return policy_loss(options, logp, old, piece["advantages"], mask, entropy, piece.get("ref_logp")), None

    def update(carry: tuple[Params, Any], piece: dict[str, Any]) -> tuple[tuple[Params, Any], Metrics]:
        trainable, opt = carry
        grads, loss, _ = accumulate_gradients(loss_fn, trainable, piece, pieces=options.microbatches, ways=setup.ways)
        trainable, opt, health = guarded_update(learner.optimizer, grads, opt, trainable)
        return (trainable, opt), {"loss": loss.mean(), **loss.summary(), **health}

    start = (state.policy, state.policy_opt)
    (policy, policy_opt), outs = _epochs(setup, update, start, data, options)
    return policy, policy_opt, _summary("policy", outs)


def policy_loss(
    options: PolicyOptions,
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    entropy: jax.Array,
    ref_logp: jax.Array | None,
) -> rl.Loss:
    """Clipped surrogate + kl_coef * divergence - entropy_coef * entropy.

    Args:
      options: coefficients and clips.
      logp, entropy: [B, T] of the learning policy; both get gradients.
      old_logp, advantages, ref_logp: [B, T] constants; `ref_logp` None leaves the divergence out.
      mask: [B, T] bool.

    Returns:
      Loss with the surrogate's weight and the metrics of all terms.
    """
    loss = rl.clipped_surrogate(
        logp, old_logp, advantages, mask, clip_low=options.clip_low, clip_high=options.clip_high,
        dual_clip=options.dual_clip, ratio=options.ratio,
    )  # fmt: skip
    bonus = rl.entropy_bonus(entropy, mask)
    total, metrics = loss.total, {**loss.metrics, **bonus.metrics}
    if options.entropy_coef:
        # The exact entropy of every next-token distribution, not an estimate from the sampled token.
        total = total + options.entropy_coef * bonus.mean() * loss.weight
    if ref_logp is not None:
        penalty = rl.kl_penalty(logp, ref_logp, mask, estimator=options.kl_estimator)
        total = total + options.kl_coef * penalty.mean() * loss.weight
        metrics["kl"] = rl.Mean(jax.lax.stop_gradient(penalty.total), penalty.weight)
    return rl.Loss(total, loss.weight, metrics)


def _policy_reference_logp(setup: PrimeSetup, frozen: Frozen, batch: PrimeBatch) -> jax.Array:
    config, temperature = setup.policy.config, setup.options.rollout.temperature
    return _score_in_pieces(
        lambda piece: _token_logprobs(config, frozen.reference, piece, temperature),
        batch,
        setup,
        setup.options.policy,
    )


# ------------------------------------------------------------------------------------------- helpers


def _epochs(
    setup: PrimeSetup,
    update: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    data: Any,
    options: PRMOptions | PolicyOptions,
) -> tuple[Any, Any]:
    """Runs `update` over minibatches, `epochs` times; outputs get leading axes [epochs, minibatches].

    Rows of a group lie together: each minibatch holds whole groups as long as their number divides.
    """
    minibatches, epochs = options.minibatches, options.epochs
    if minibatches == 1 and epochs == 1:
        carry, out = update(carry, data)
        return carry, jax.tree.map(lambda x: x[None, None], out)
    split = split_rows(data, minibatches, setup.ways)

    def epoch(carry: Any, _: None) -> tuple[Any, Any]:
        return jax.lax.scan(update, carry, split)

    return jax.lax.scan(epoch, carry, None, length=epochs)


def _summary(prefix: str, outs: dict[str, jax.Array]) -> Metrics:
    """Means over optimiser steps, but the number of skipped ones as a sum."""
    return {f"{prefix}/{name}": value.sum() if name == "skipped" else value.mean() for name, value in outs.items()}


def _response_scores(logp: jax.Array, ref_logp: jax.Array, batch: PrimeBatch, beta: float) -> jax.Array:
    return beta * jnp.where(batch.mask, logp - ref_logp, 0.0).sum(axis=-1)


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)
