"""Supervised fine-tuning on written-out demonstrations: the warm start of a policy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import rl
from prm_jax.models import ModelConfig, token_logprobs
from prm_jax.prime.options import SFTOptions
from prm_jax.runs.learner import Learner, Params, accumulate_gradients, guarded_update, make_optimizer


def nll_loss(config: ModelConfig, params: Params, tokens: jax.Array, mask: jax.Array) -> rl.Loss:
    """Negative log-likelihood summed over `mask` [B, T]; the weight is the number of tokens."""
    logp = token_logprobs(config, params, tokens, mask)
    return rl.Loss(-logp.sum(), mask.sum().astype(jnp.float32))


def make_sft_step(
    learner: Learner, *, pieces: int = 1
) -> Callable[[Params, Any, Params | None, jax.Array, jax.Array], tuple[Params, Any, dict[str, jax.Array]]]:
    """Compiles ``(trainable, opt_state, base, tokens, mask) -> (trainable, opt_state, metrics)``.

    The first two arguments are donated.
    """

    def step(
        trainable: Params, opt_state: Any, base: Params | None, tokens: jax.Array, mask: jax.Array
    ) -> tuple[Params, Any, dict[str, jax.Array]]:
        def loss_fn(params: Params, piece: tuple[jax.Array, jax.Array]) -> tuple[rl.Loss, None]:
            return nll_loss(learner.config, learner.params(params, base), *piece), None

        grads, loss, _ = accumulate_gradients(loss_fn, trainable, (tokens, mask), pieces=pieces)
        trainable, opt_state, health = guarded_update(learner.optimizer, grads, opt_state, trainable)
        return trainable, opt_state, {"sft/loss": loss.mean(), **{f"sft/{k}": v for k, v in health.items()}}

    return jax.jit(step, donate_argnums=(0, 1))


def train_sft(
    config: ModelConfig,
    params: Params,
    batches: Callable[[int], tuple[np.ndarray, np.ndarray]],
    options: SFTOptions,
    *,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    report_every: int = 20,
) -> Params:
    """Trains all parameters on ``batches(step) -> (tokens [B, T], mask [B, T])`` for `options.steps` steps.

    Args:
      config: the model's architecture.
      params: its start; left as it is.
      batches: the data of each step, a pure function of the step.
      options: steps, optimiser.
      on_step: called every `report_every` steps and after the last with (steps done, metrics).
      report_every: the host waits for the device only then.

    Returns:
      The trained parameters.
    """
    optimizer = make_optimizer(
        options.learning_rate,
        warmup_steps=max(1, round(options.warmup_fraction * options.steps)),
        weight_decay=options.weight_decay,
        beta2=options.beta2,
        grad_clip=options.grad_clip,
        schedule="cosine",
        total_steps=options.steps,
    )
    learner = Learner(config, optimizer)
    trainable, opt_state = learner.init(params, jax.random.key(0))  # no adapters: the key is not used
    step_fn = make_sft_step(learner)
    for step in range(options.steps):
        tokens, mask = batches(step)
        trainable, opt_state, metrics = step_fn(trainable, opt_state, None, jnp.asarray(tokens), jnp.asarray(mask))
        if (step + 1) % report_every == 0 or step + 1 == options.steps:
            on_step(step + 1, {name: float(value) for name, value in jax.device_get(metrics).items()})
    return trainable
