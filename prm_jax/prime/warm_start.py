"""Supervised fine-tuning on written-out demonstrations: the warm start of a policy."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prm_jax import rl
from prm_jax.data.pipeline import BatchStream
from prm_jax.errors import UserError
from prm_jax.models import ModelConfig
from prm_jax.models.logprobs import token_statistics
from prm_jax.models.sharding import placed_shapes, rows_over, shard_batch, shard_params, shardings_for
from prm_jax.prime.options import Options
from prm_jax.prime.start import Start
from prm_jax.rollouts.forced_text import cut_at_spans
from prm_jax.rollouts.prompt_tokens import encode_prompt
from prm_jax.runs.expert_balance import expert_metrics, with_balance
from prm_jax.runs.fitting import FitOptions, Frontend, fit
from prm_jax.runs.learner import Learner, Params, accumulate_gradients, guarded_update, make_optimizer
from prm_jax.runs.run_dir import RunDir

SAVE_EVERY = 200
"""Steps between checkpoints; a step takes a fraction of a second where a warm start is used."""


def nll_loss(
    config: ModelConfig, params: Params, tokens: jax.Array, mask: jax.Array, *, balance_coef: float = 0.0
) -> rl.Loss:
    """Negative log-likelihood summed over `mask` [B, T]; the weight is the number of tokens.

    Of a sparse model, the balance of its experts is added and is among the metrics, see ``with_balance``.
    """
    found = token_statistics(config, params, tokens, mask, load=config.num_experts > 0)
    return with_balance(rl.Loss(-found.logp.sum(), mask.sum().astype(jnp.float32)), found.load, balance_coef)


def make_sft_step(
    learner: Learner, *, pieces: int = 1, shardings: Any = None, balance_coef: float = 0.0
) -> Callable[[Params, Any, Params | None, jax.Array, jax.Array], tuple[Params, Any, dict[str, jax.Array]]]:
    """Compiles ``(trainable, opt_state, base, tokens, mask) -> (trainable, opt_state, metrics)``.

    The first two arguments are donated. `shardings`: of the new (trainable, opt_state) on a mesh; None on one device;
    `balance_coef`: see ``nll_loss``.
    """

    def step(
        trainable: Params, opt_state: Any, base: Params | None, tokens: jax.Array, mask: jax.Array
    ) -> tuple[Params, Any, dict[str, jax.Array]]:
        def loss_fn(params: Params, piece: tuple[jax.Array, jax.Array]) -> tuple[rl.Loss, None]:
            return nll_loss(learner.config, learner.params(params, base), *piece, balance_coef=balance_coef), None

        grads, loss, _ = accumulate_gradients(loss_fn, trainable, (tokens, mask), pieces=pieces)
        trainable, opt_state, health = guarded_update(learner.optimizer, grads, opt_state, trainable)
        if shardings is not None:
            trainable, opt_state = jax.lax.with_sharding_constraint((trainable, opt_state), shardings)
        metrics = {"loss": loss.mean(), **expert_metrics(loss.summary()), **health}
        return trainable, opt_state, {f"sft/{name}": value for name, value in metrics.items()}

    return jax.jit(step, donate_argnums=(0, 1))


def warm_start(
    options: Options, start: Start, params: Params, *, run: RunDir, frontend: Frontend, mesh: Mesh | None = None
) -> Params:
    """Trains all parameters of a model on the task's demonstrations.

    Args:
      options: of the run; `options.sft` has the optimiser and the number of steps.
      start: task, tokenizer, architecture.
      params: initial parameters, on `mesh` where there is one; left as they are.
      run: the run directory; the phase ``warm_start`` of it is used, so that an interrupted warm start resumes.
      frontend: console and signals.
      mesh: devices, or None for one.

    Returns:
      The trained parameters.
    """
    sft = options.sft
    optimizer = make_optimizer(
        sft.learning_rate, schedule="cosine", warmup_steps=max(1, round(sft.warmup_fraction * sft.steps)),
        total_steps=sft.steps, weight_decay=sft.weight_decay, beta2=sft.beta2, grad_clip=sft.grad_clip,
    )  # fmt: skip
    learner = Learner(start.config, optimizer)

    def initial() -> Any:
        return learner.init(params, jax.random.key(0))  # no adapters: the key is not used

    shapes = jax.eval_shape(initial)
    shardings = None if mesh is None else shardings_for(shapes, mesh)
    compiled = make_sft_step(learner, shardings=shardings, balance_coef=sft.balance_coef)
    split = mesh is not None and sft.batch_size % rows_over(mesh) == 0

    def step(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        tokens, mask = shard_batch(batch, mesh) if mesh is not None and split else (batch[0], batch[1])
        trainable, opt_state, metrics = compiled(state[0], state[1], None, tokens, mask)
        return (trainable, opt_state), metrics

    with run.phase("warm_start") as phase:
        fitted = fit(
            lambda: initial() if mesh is None else shard_params(initial(), mesh),
            step,
            BatchStream(demonstration_batches(options, start), sft.steps),
            run=phase,
            options=FitOptions(sft.steps, save_every=SAVE_EVERY, max_bad_steps=1, keep_checkpoints=1),
            frontend=dataclasses.replace(frontend, title="warm start", hint="Lower --sft.learning-rate"),
            target=placed_shapes(shapes, shardings),
        )
    return fitted.state[0]


def demonstration_batches(options: Options, start: Start) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """``step -> (tokens [B, T], mask [B, T])`` of the task's demonstrations, a pure function of seed and step."""
    demonstrations = getattr(start.task, "demonstrations", None)
    if demonstrations is None:
        raise UserError(
            f"the task {start.task.name!r} writes no demonstrations for a warm start: set --sft.steps 0 and "
            "name a pretrained model with --model.path"
        )
    sft = options.sft
    width = options.rollout.max_prompt_tokens + options.rollout.max_new_tokens
    tokenizer = start.tokenizer

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((options.seed, 1_000_003, step))
        tokens = np.full((sft.batch_size, width), tokenizer.pad_id or 0, np.int32)
        mask = np.zeros((sft.batch_size, width), bool)
        for row, demonstration in enumerate(demonstrations(rng, sft.batch_size)):
            before = encode_prompt(tokenizer, demonstration[0])
            after, learned = _encode_response(tokenizer, *demonstration[1:])
            end = len(before) + len(after)
            if end > width:
                raise UserError(
                    f"a demonstration has {len(before)} + {len(after)} tokens, more than --rollout.max-prompt-tokens + "
                    f"--rollout.max-new-tokens = {width}; raise them"
                )
            tokens[row, :end] = [*before, *after]
            mask[row, len(before) : end] = learned
        return tokens, mask

    return batch


def _encode_response(
    tokenizer: Any, response: str, forced: Sequence[Sequence[int]] = ()
) -> tuple[list[int], list[bool]]:
    """(tokens with the end of text, whether each is learned).

    Forced spans are tokenized by themselves, as answers of tools are, and not learned.
    """
    tokens: list[int] = []
    learned: list[bool] = []
    for text, own in cut_at_spans(response, forced):
        piece = list(tokenizer.encode(text))
        tokens += piece
        learned += [own] * len(piece)
    return [*tokens, tokenizer.eos_id], [*learned, True]
