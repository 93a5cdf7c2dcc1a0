"""One compiled PRIME step: judge the batch, learn from it, assign credit, update critic and policy.

Process Reinforcement through Implicit Rewards (arXiv 2502.01456, algorithm 1), with every part replaceable: the source
of process rewards, the reward function (shaping), the advantage function (credit and estimator) and the policy's loss.
`prm_jax.prime.published` is the published algorithm alone, in one file to read and copy.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax import rl, stats
from prm_jax.models import compiler_options, init_value_head
from prm_jax.models.compilation import Program
from prm_jax.prime.advantages import AdvantageFn, critic_rewards, scaled_rewards, value_targets
from prm_jax.prime.batch import Batch, Frozen, Metrics, RewardInputs, State
from prm_jax.prime.consistency import filtered
from prm_jax.prime.critic import Critic
from prm_jax.prime.options import AdvantageOptions
from prm_jax.prime.pieces import masked_mean, mixed_groups
from prm_jax.prime.policy import PolicyPhase
from prm_jax.prime.shaping import RewardFn
from prm_jax.prime.sources.base import Judged, SourceBatch, judge
from prm_jax.prime.sources.base import initial_state as initial_source
from prm_jax.prime.sources.implicit import ImplicitPRM
from prm_jax.runs.host_memory import on_device
from prm_jax.target_device import platform_of

Step = Callable[[State, Frozen, Batch], tuple[State, Metrics, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Setup:
    """The static half of a step: models, optimisers and the functions that it is composed of.

    Attributes:
      policy: the policy's update.
      source: of process rewards; None in outcome-only training.
      critic: None unless the estimator is ppo.
      reward: process rewards after shaping.
      advantage: credit and estimator.
      options: coefficients and gate.
      reads_logp: give functions from outside the log-probs of policy and reference.
      one_reference: the source's frozen arrays are the policy's reference.
    """

    policy: PolicyPhase
    source: Any
    critic: Critic | None
    reward: RewardFn
    advantage: AdvantageFn
    options: AdvantageOptions
    reads_logp: bool = False
    one_reference: bool = False


def init_state(setup: Setup, frozen: Frozen, key: jax.Array) -> State:
    """The state before the first step. `key` is consumed; the arrays of `frozen` are copied, not taken."""
    policy_key, source_key, critic_key = jax.random.split(key, 3)
    policy, policy_opt = setup.policy.learner.init(frozen.reference, policy_key)
    source = None if setup.source is None else initial_source(setup.source, source_key)
    critic = critic_opt = None
    if setup.critic is not None:
        head = init_value_head(setup.critic.learner.config, jax.random.fold_in(key, 1))
        critic, critic_opt = setup.critic.init(frozen.reference, head, critic_key)
    return State(policy, policy_opt, source, critic, critic_opt, jnp.zeros((), jnp.int32))


def make_step(setup: Setup, *, shardings: State | None = None) -> Step:
    """Compiles ``(state, frozen, batch) -> (state, metrics, process rewards [B, T])``.

    Args:
      setup: models, optimisers, functions.
      shardings: of the new state on a mesh, leaf by leaf; None on one device.

    `state` is donated. Nothing inside waits for the host; metrics are float32 scalars on the device. An update that is
    not finite leaves its learner unchanged and is counted in ``*/skipped``. It is compiled with
    ``models.compiler_options``, so that rewards of an untrained PRM are exactly 0. Inside ``jax.jit``, ``jax.vmap`` or
    ``jax.lax.scan`` it is traced as a plain function, and the outer ``jax.jit`` needs those options for that.
    """

    def step(state: State, frozen: Frozen, batch: Batch) -> tuple[State, Metrics, jax.Array]:
        policy, frozen = setup.policy, on_device(frozen)
        if setup.one_reference:  # as one argument, so that the compiler scores with it once if the policy needs it too
            frozen = dataclasses.replace(frozen, constants=frozen.reference)
        with jax.named_scope("score"):
            old_logp = policy.old_logp(state, frozen, batch)
        with jax.named_scope("source"):
            judged, gate, source_metrics = judge_phase(setup, state, frozen, batch)
        with jax.named_scope("advantages"):
            inputs = reward_inputs(setup, state, frozen, batch, judged, gate, old_logp)
            inputs = filtered(inputs, setup.options.consistent if setup.options.process_coef else 1.0)
            rewards, advantages, adv_metrics = advantage_phase(setup, inputs)
        critic, critic_opt = state.critic, state.critic_opt
        critic_metrics: Metrics = {}
        if setup.critic is not None and state.critic is not None:
            assert inputs.values is not None
            with jax.named_scope("critic"):
                critic, critic_opt, critic_metrics = setup.critic.update(
                    state.critic, state.critic_opt, frozen.reference, batch, inputs.values,
                    value_targets(setup.options, rewards, inputs), critic_rewards(setup.options, rewards, inputs),
                    setup.options.discount,
                )  # fmt: skip
        with jax.named_scope("policy"):
            params, policy_opt, policy_metrics = policy.update(state, frozen, batch, advantages, inputs, old_logp)
        new = State(params, policy_opt, judged.state, critic, critic_opt, state.step + 1)
        if shardings is not None:
            new = jax.lax.with_sharding_constraint(new, shardings)
        metrics = {**source_metrics, **adv_metrics, **critic_metrics, **policy_metrics}
        return new, metrics, judged.rewards

    return Program(step, options=_compiler_options(setup, shardings))


def make_source_step(
    setup: Setup, *, shardings: State | None = None
) -> Callable[[State, Frozen, Batch], tuple[State, Metrics]]:
    """Compiles a step in which the source alone learns, for its warm-up on rollouts of the initial policy."""

    def step(state: State, frozen: Frozen, batch: Batch) -> tuple[State, Metrics]:
        judged, _, metrics = judge_phase(setup, state, on_device(frozen), batch)
        new = dataclasses.replace(state, source=judged.state)
        if shardings is not None:
            new = jax.lax.with_sharding_constraint(new, shardings)
        return new, metrics

    return Program(step, options=_compiler_options(setup, shardings))


def make_keep_step(
    setup: Setup, *, shardings: State | None = None
) -> Callable[[State, Frozen, Batch, jax.Array], State]:
    """Compiles a step in which an online PRM stores rollouts of its warm-up from a given place on, see `Replay`."""

    def step(state: State, frozen: Frozen, batch: Batch, first: jax.Array) -> State:
        frozen = on_device(frozen)
        policy = setup.policy.learner.params(state.policy, frozen.reference)
        given = SourceBatch(batch, policy, frozen.reference, frozen.constants)
        new = dataclasses.replace(state, source=setup.source.keep(state.source, given, first))
        return new if shardings is None else jax.lax.with_sharding_constraint(new, shardings)

    return Program(step, options=_compiler_options(setup, shardings))


def judge_phase(setup: Setup, state: State, frozen: Frozen, batch: Batch) -> tuple[Judged, jax.Array, Metrics]:
    """The source judges the batch and learns from it.

    Returns:
      (what it found, the gate: a scalar in [0, 1] or [B, 1] of them, metrics).
    """
    if setup.source is None:
        given = jnp.zeros(batch.mask.shape, jnp.float32) if batch.process is None else batch.process
        return Judged(state.source, given, given.sum(-1), {}, batch.initial_value), jnp.ones(()), {}
    policy = setup.policy.learner.params(state.policy, frozen.reference)
    judged = judge(setup.source, state.source, SourceBatch(batch, policy, frozen.reference, frozen.constants))
    gate, accuracy = process_gate(setup.options, judged.response, batch)
    counted = batch.mask & batch.keep[:, None]
    concentration = stats.credit_concentration(judged.rewards, counted)
    metrics = {
        **judged.metrics,
        "gold/spearman": stats.spearman(judged.response, batch.outcome, batch.keep),
        "gold/r_squared": stats.r_squared(judged.response, batch.outcome, batch.keep),
        "prm/concentration": jnp.where(batch.keep, concentration, 0.0).sum() / jnp.maximum(batch.keep.sum(), 1),
        "prm/pairwise_accuracy": accuracy,
        "prm/gate": masked_mean(gate[:, 0], batch.keep) if gate.ndim else gate,
        "prm/reward_abs": masked_mean(jnp.abs(jnp.where(counted, judged.rewards, 0.0)), counted),
    }
    return judged, gate, metrics


def reward_inputs(
    setup: Setup,
    state: State,
    frozen: Frozen,
    batch: Batch,
    judged: Judged,
    gate: jax.Array,
    old_logp: jax.Array | None,
) -> RewardInputs:
    """Everything that reward, advantage and loss functions may read."""
    logp = ref_logp = None
    if setup.reads_logp:  # what a function does not read is removed by the compiler
        logp = setup.policy.logp(state.policy, frozen, batch) if old_logp is None else old_logp
        ref_logp = setup.policy.reference_logp(frozen, batch)
    values = None
    if setup.critic is not None and state.critic is not None:
        values = setup.critic.old_values(state.critic, frozen.reference, batch)
    initial = judged.initial_value
    if initial is None:
        initial = _group_means(batch)
    return RewardInputs(
        tokens=batch.tokens, mask=batch.mask, keep=batch.keep, step_ids=batch.step_ids,
        outcome=jnp.asarray(batch.outcome, jnp.float32), group_ids=batch.group_ids, logp=logp, ref_logp=ref_logp,
        process=judged.rewards, gate=gate, initial_value=initial, values=values,
        penalty=setup.policy.kl_rewards(frozen, batch, old_logp), confidence=batch.confidence, weights=batch.weights,
        behaviour_logp=batch.behaviour_logp, groups=batch.mask.shape[0],
    )  # fmt: skip


def advantage_phase(setup: Setup, inputs: RewardInputs) -> tuple[jax.Array, jax.Array, Metrics]:
    """(process rewards after shaping [B, T], advantages [B, T], metrics); none carries a gradient.

    Rows that do not count take no part in any statistic and get advantage 0.
    """
    mask = inputs.counted
    if setup.options.process_coef == 0.0:
        rewards = jnp.zeros(mask.shape, jnp.float32)  # a shaping could make something of rewards that are 0
    else:
        rewards = jax.lax.stop_gradient(setup.reward(inputs))
    advantages = setup.advantage(rewards, inputs)
    if inputs.weights is not None:
        advantages = advantages * inputs.weights[:, None]
    advantages = jax.lax.stop_gradient(jnp.where(mask, advantages, 0.0))
    metrics = {"advantage/abs": masked_mean(jnp.abs(advantages), mask)}
    if setup.options.process_coef != 0.0:
        dense = rl.discounted_returns(scaled_rewards(setup.options, rewards, inputs), mask)
        metrics["advantage/process_return_abs"] = masked_mean(jnp.abs(dense), mask)
    return rewards, advantages, metrics


def process_gate(options: AdvantageOptions, scores: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(the factor of the process rewards, the accuracy of the scores [B] over the batch).

    The accuracy is measured on groups whose outcomes differ; others take the factor of the batch.
    """
    measure = functools.partial(
        rl.pairwise_accuracy, scores, batch.outcome, batch.group_ids, num_groups=batch.mask.shape[0], mask=batch.keep
    )
    accuracy = measure()
    if not options.gate:
        return jnp.ones(()), accuracy
    mixed = mixed_groups(batch, batch.keep)
    gate = rl.trust_gate(accuracy, count=mixed.sum() if options.gate_z else None, z=options.gate_z)
    if options.gate_per == "group":
        gate = jnp.where(mixed, rl.trust_gate(measure(average="none")), gate)[batch.group_ids][:, None]
    return gate, accuracy


def _group_means(batch: Batch) -> jax.Array:
    """[B] mean outcome of each row's group, over the rows that count."""
    groups = batch.mask.shape[0]
    total = jax.ops.segment_sum(jnp.where(batch.keep, batch.outcome, 0.0), batch.group_ids, groups)
    count = jax.ops.segment_sum(batch.keep.astype(jnp.float32), batch.group_ids, groups)
    return (total / jnp.maximum(count, 1.0))[batch.group_ids]


def _compiler_options(setup: Setup, shardings: State | None) -> dict[str, bool | str] | None:
    configs = [setup.policy.learner.config]
    if isinstance(setup.source, ImplicitPRM):
        configs.append(setup.source.learner.config)
    return compiler_options(*configs, platform=platform_of(shardings))
