"""The arrays of one PRIME step: rollouts, the training state, frozen weights, and what rewards are made from."""

import dataclasses
from typing import Any

import jax

from prm_jax.runs.learner import Params

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """The responses of a batch packed into R rows of W columns, for the models alone; see `prime.layout`.

    The B responses are consecutive chunks of `chunk`, and so are the packed rows: those of a chunk hold its responses,
    each with its prompt as one segment.

    Attributes:
      tokens: [R, W] int32.
      segment_ids: [R, W] int32, -1 on padding.
      scored: [R, W] bool, True on response tokens.
      place: [B] int32, first column of each response's segment, counted through the rows of its chunk.
      chunk: static.
    """

    tokens: jax.Array  # [R, W]
    segment_ids: jax.Array  # [R, W]
    scored: jax.Array  # [R, W]
    place: jax.Array  # [B]
    chunk: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rollouts of one step; rows are ``[prompt][response][padding]``, the samples of a prompt are consecutive.

    Attributes:
      tokens: [B, T] int32.
      mask: [B, T] bool, True on response tokens that the model drew, including the first end token; text that it was
        given within a response leaves holes.
      keep: [B] bool, False on rows that do not count: filtered groups, failed verifications.
      outcome: [B] float32 in [0, 1].
      group_ids: [B] int32 in [0, P), the prompt of each row.
      step_ids: [B, T] int32, the reasoning step of each response token, -1 elsewhere.
      judged: [B] bool, rows whose outcome is known, filtered or not; None: those of `keep`.
      process: [B, T] float32 rewards that the source computed on the host, or None.
      initial_value: [B] float32 value of the prompt, from a source of values, or None.
      confidence: [B] float32 in [0, 1], the confidence that each response states (1/2: none), or None.
      weights: [B] float32 >= 0, the share of the policy's training signal that each response gets, mean 1 over a
        group; None: equal.
      behaviour_logp: [B, T] float32, log-probability with which the sampler drew each token, NaN where unknown; None:
        unknown.
      version: [B, T] int32, number of completed updates of the weights that drew each token; None: unknown.
      packed: the same responses in fewer rows, or None.
      start: static; no response begins before this column, so that nothing before it goes through the head.
    """

    tokens: jax.Array  # [B, T]
    mask: jax.Array  # [B, T]
    keep: jax.Array  # [B]
    outcome: jax.Array  # [B]
    group_ids: jax.Array  # [B]
    step_ids: jax.Array  # [B, T]
    judged: jax.Array | None = None  # [B]
    process: jax.Array | None = None  # [B, T]
    initial_value: jax.Array | None = None  # [B]
    confidence: jax.Array | None = None  # [B]
    weights: jax.Array | None = None  # [B]
    behaviour_logp: jax.Array | None = None  # [B, T]
    version: jax.Array | None = None  # [B, T]
    packed: Packed | None = None
    start: int = dataclasses.field(default=0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a step changes. A part that a run does not use is None.

    Attributes:
      policy, policy_opt: the policy's trainable arrays and its optimiser's state.
      source: the state of the source of process rewards.
      critic, critic_opt: of the critic, ``{"trunk", "head"}``, and its optimiser.
      step: scalar int32, number of steps that learned something.
    """

    policy: Params
    policy_opt: Any
    source: Any
    critic: Params | None
    critic_opt: Any
    step: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """Parameters that never change; the same arrays may be used in both places.

    Attributes:
      reference: the policy's initial weights, also the base of its adapters and of the critic.
      constants: frozen arrays of the source of process rewards, such as the PRM's reference.
    """

    reference: Params
    constants: Any = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RewardInputs:
    """What functions for rewards, advantages and the policy's loss may read; B responses, T tokens.

    Attributes:
      tokens: [B, T] int32.
      mask: [B, T] bool, True on response tokens that the model drew.
      keep: [B] bool, False on rows that do not count.
      step_ids: [B, T] int32, -1 outside the response.
      outcome: [B] float32 in [0, 1].
      group_ids: [B] int32.
      logp: [B, T] float32, the sampling policy's log-probs; None unless a function from outside reads it.
      ref_logp: [B, T] float32, those of the policy's initial weights; None as above.
      process: [B, T] float32 rewards as the source gave them.
      gate: float32 in [0, 1] by which the process rewards are trusted: a scalar, or [B, 1] with a gate per group.
      initial_value: [B] float32, the value of the prompt; the group's mean outcome unless the source knows better.
      values: [B, T] float32 of the critic before each token, or None.
      penalty: [B, T] float32 added to the dense rewards unnormalised (a divergence), or None.
      entropy: [B, T] float32 of the learning policy, in the policy's loss only.
      confidence: [B] float32, see `Batch`.
      weights: [B] float32, see `Batch`.
      behaviour_logp: [B, T] float32, see `Batch`.
      groups: static upper bound of `group_ids`, which a minibatch keeps; None: the number of rows.
    """

    tokens: jax.Array
    mask: jax.Array
    keep: jax.Array
    step_ids: jax.Array
    outcome: jax.Array
    group_ids: jax.Array
    logp: jax.Array | None
    ref_logp: jax.Array | None
    process: jax.Array
    gate: jax.Array
    initial_value: jax.Array
    values: jax.Array | None = None
    penalty: jax.Array | None = None
    entropy: jax.Array | None = None
    confidence: jax.Array | None = None
    weights: jax.Array | None = None
    behaviour_logp: jax.Array | None = None
    groups: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def counted(self) -> jax.Array:
        """[B, T] bool, response tokens of rows that count."""
        return self.mask & self.keep[:, None]

    @property
    def num_groups(self) -> int:
        """Static upper bound of the number of groups; empty ones are ignored everywhere."""
        return self.mask.shape[0] if self.groups is None else self.groups

    @property
    def num_steps(self) -> int:
        """Static upper bound of the number of steps in a response."""
        return self.mask.shape[1]
