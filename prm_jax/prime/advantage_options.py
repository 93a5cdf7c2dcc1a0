"""Options of credit assignment and of the gate of process rewards: the group ``--advantage.*`` of ``prm-jax train``."""

from dataclasses import dataclass
from typing import Annotated, Literal

from prm_jax.option_ranges import above, at_least, within


@dataclass(frozen=True)
class AdvantageOptions:
    """From process rewards and outcomes to advantages."""

    estimator: str = "rloo"
    """rloo: the paper's equation 5; rloo_released: the published code; grpo, reinforce: its equations 7 and 8;
    lambda_grpo: grpo with tokens weighted by shared prefixes; ppo: GAE with a critic; or package.module:function of
    (rewards, inputs)."""
    credit: Literal["return", "step", "cumulative", "min", "value"] = "return"
    """What a token is credited with. return: the rewards from here on (published); step: its own step's reward;
    cumulative: the rewards up to its step, against the group at the same step; min: the least reward from here on;
    value: the change of a value (sources values, critic, model)."""
    process_coef: Annotated[float, at_least(0)] = 1.0
    """Weight of the process rewards; 0 is outcome-only training, for which no PRM is kept at all."""
    outcome_coef: Annotated[float, at_least(0)] = 1.0
    """Weight of the outcome."""
    normalizer: Literal["return", "deviation", "none"] = "return"
    """Divide process rewards by the largest absolute return of the batch (published), by the root mean square of those
    that are not 0 (deviation), or not (which can destroy a policy); grpo divides by the group's deviation instead."""
    gate: bool = False
    """Scale the process rewards by max(0, 2 * a - 1), where a is the PRM's pairwise accuracy on these rollouts before
    it learns from them."""
    gate_per: Literal["batch", "group"] = "batch"
    """Take that accuracy over the batch, or for every group of samples from its own pairs; a group whose outcomes are
    all alike takes the batch's."""
    gate_z: Annotated[float, at_least(0)] = 0.0
    """Use the accuracy's lower confidence bound instead, this many standard errors below it, counting the groups with
    mixed outcomes; 0: the accuracy itself."""
    min_temperature: Annotated[float, above(0)] = 0.1
    """Temperature of the soft minimum of credit=min."""
    consistent: Annotated[float, within(0, 1, low_open=True)] = 1.0
    """Share of each group's right responses, and of its wrong ones, that the policy learns from: those whose process
    rewards agree best with the outcome (PROF); 1: all."""
    discount: Annotated[float, within(0, 1)] = 1.0
    """Discount of process rewards."""
    gae_lambda: Annotated[float, within(0, 1)] = 1.0
    """Lambda of GAE (ppo)."""
    whiten: bool = True
    """Normalise advantages over the batch (rloo, ppo)."""
