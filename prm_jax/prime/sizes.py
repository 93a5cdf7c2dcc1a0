"""Numbers of steps and rollouts that follow from a run's options."""

from prm_jax.prime.options import Options


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


def optimizer_steps(options: Options, epochs: int, minibatches: int, *, warm_up: bool = False) -> int:
    """Optimiser steps of a whole run, over which a learning rate decays; those of the warm-up included."""
    return options.steps * epochs * minibatches + (warm_up_steps(options) if warm_up else 0)
