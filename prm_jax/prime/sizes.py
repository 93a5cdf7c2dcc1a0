"""Numbers of steps, rollouts and pieces that follow from a run's options."""

import math
from collections.abc import Mapping

from prm_jax.prime.options import Options, RolloutOptions
from prm_jax.rollouts.server_options import is_url
from prm_jax.rollouts.slot_options import default_slots


def warm_up_rollouts(options: Options) -> int:
    """Number of rollouts of the source's warm-up: whole groups."""
    size = options.rollout.samples_per_prompt
    return -(-options.prm.pretrain_rollouts // size) * size


def warm_up_prompts(options: Options) -> int:
    """Prompts per optimiser step of the warm-up."""
    return max(1, options.prm.pretrain_batch // options.rollout.samples_per_prompt)


def warm_up_steps(options: Options) -> int:
    """Number of optimiser steps of the warm-up; 0 without one."""
    prompts = warm_up_rollouts(options) // options.rollout.samples_per_prompt
    return options.prm.pretrain_epochs * max(1, prompts // warm_up_prompts(options)) if prompts else 0


def optimizer_steps(
    options: Options, epochs: int, minibatches: int, *, warm_up: bool = False, replayed: int = 0
) -> int:  # fmt: skip
    """Optimiser steps of a whole run, over which a learning rate decays.

    Args:
      options: of the run.
      epochs, minibatches: of the learner's update.
      warm_up: count those of the warm-up.
      replayed: further ones per training step, on replayed rollouts.
    """
    return options.steps * (epochs * minibatches + replayed) + (warm_up_steps(options) if warm_up else 0)


def samples_in_slots(rollout: RolloutOptions, mesh: Mapping[str, int]) -> bool:
    """Whether responses without turns share slots, of which each device needs a copy of the parameters.

    Args:
      rollout: the engine.
      mesh: sizes of the run's axes; {} for one device.
    """
    divided = mesh.get("fsdp", 1) > 1 or mesh.get("expert", 1) > 1
    return not is_url(rollout.engine) and rollout.engine != "generate" and not (rollout.engine == "auto" and divided)


def slots_per_process(rollout: RolloutOptions, *, ways: int, processes: int, platform: str) -> int:
    """``--rollout.slots``, or as many as suit a process's share of a step's responses.

    Args:
      rollout: sizes.
      ways: devices of a process that share its slots.
      processes: that share the responses.
      platform: "cpu", "gpu" or "tpu".
    """
    rows = rollout.prompts_per_step * rollout.samples_per_prompt
    # On a CPU a step takes time in proportion to the slots, so that those of a few long responses are dear.
    most = 64 if platform == "cpu" else 256
    return rollout.slots or default_slots(-(-rows // processes), ways, most=most)


def replay_places(options: Options) -> tuple[int, int]:
    """Rollouts in the online PRM's replay buffer: (recent ones, those of the warm-up); (0, 0) without replay."""
    prm = options.prm
    if not prm.replay:
        return 0, 0
    return prm.replay, warm_up_rollouts(options) if prm.replay_warm_up else 0


def pieces_of_tokens(units: int, tokens: int, budget: int) -> int:
    """The smallest number of equal pieces that have at most `budget` tokens each; all units where none is so small.

    Args:
      units: rows, or chunks of packed rows, on one device.
      tokens: of one unit.
      budget: tokens per piece and device.
    """
    return next((n for n in range(1, units) if units % n == 0 and units // n * tokens <= budget), units)


def chunk_rows(options: Options, ways: int, devices: int = 1) -> int:
    """Responses per chunk: those of the smallest piece of any update on one device.

    0 where the pieces of two updates have no common part; ``checks`` refuses that.
    """
    rollout, policy, prm = options.rollout, options.policy, options.prm
    pieces = math.lcm(policy.minibatches * policy.microbatches, prm.minibatches * prm.microbatches)
    chunks = math.lcm(ways * pieces, devices)
    rows = rollout.prompts_per_step * rollout.samples_per_prompt
    return rows // chunks if rows % chunks == 0 else 0
