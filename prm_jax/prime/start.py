"""What a run starts from: the task, the tokenizer, the models and the optimisers that its options name."""

import dataclasses
from typing import Any

from prm_jax.data import load_task
from prm_jax.data.problems import Task
from prm_jax.errors import UserError
from prm_jax.models import LoRAConfig, ModelConfig, check_same_vocabulary
from prm_jax.models.loading import fresh_config, load_model
from prm_jax.prime.options import TaskOptions, TrainOptions
from prm_jax.prime.step import PrimeSetup
from prm_jax.runs.learner import Learner, Params, make_optimizer


@dataclasses.dataclass(frozen=True)
class Start:
    """A run's start.

    Attributes:
      task: problems and verdicts.
      tokenizer: of the policy, and so of every model.
      config: the policy's architecture.
      params: the policy's loaded parameters, or None for a fresh model.
      prm_config: the PRM's architecture.
      prm_params: the PRM's own loaded parameters, or None where it starts from the policy's start.
    """

    task: Task
    tokenizer: Any
    config: ModelConfig
    params: Params | None
    prm_config: ModelConfig
    prm_params: Params | None


def load_start(options: TrainOptions) -> Start:
    """Loads what the options name.

    Raises:
      UserError: an unknown task or option, missing or damaged weights, tokenizers that do not match.
    """
    task = make_task(options.task)
    if not len(task.eval):
        raise UserError(
            f"the task {options.task.name!r} has no evaluation problems; give it some, or a larger share of them"
        )
    if options.advantage.process == "checker" and task.step_labels(task.eval[0], "") is None:
        raise UserError(
            f"the task {options.task.name!r} cannot check steps, which --advantage.process checker needs; use implicit"
        )
    if options.model.path:
        config, params, tokenizer = load_model(options.model)
    else:
        tokenizer = task.tokenizer()
        if tokenizer is None:
            raise UserError(
                f"the task {options.task.name!r} has no tokenizer of its own, so that no fresh model can "
                "be made for it: name a pretrained one with --model.path"
            )
        config, params = fresh_config(options.model, tokenizer.vocab_size), None
    prm_config, prm_params = config, None
    if options.prm.path and uses_prm(options):
        prm_options = dataclasses.replace(options.model, path=options.prm.path, lora_rank=options.prm.lora_rank)
        prm_config, prm_params, prm_tokenizer = load_model(prm_options)
        # Rewards of tokens need one vocabulary.
        check_same_vocabulary(tokenizer, prm_tokenizer, names=("the policy", "the PRM"))
    return Start(task, tokenizer, config, params, prm_config, prm_params)


def make_task(options: TaskOptions) -> Task:
    """The task, with its options converted to the types that its maker declares."""
    return load_task({"name": options.name, **options.options})


def uses_prm(options: TrainOptions) -> bool:
    """Whether process rewards come from a PRM that learns beside the policy."""
    return options.advantage.process_coef != 0 and options.advantage.process == "implicit"


def make_setup(options: TrainOptions, start: Start) -> PrimeSetup:
    """The learners of a run."""
    policy, prm, critic = options.policy, options.prm, options.critic
    learner = Learner(
        start.config,
        make_optimizer(
            policy.learning_rate, warmup_steps=policy.warmup_steps, weight_decay=policy.weight_decay,
            beta2=policy.beta2, grad_clip=policy.grad_clip,
        ),
        _lora(options.model.lora_rank, options.model.lora_alpha),
    )  # fmt: skip
    prm_learner = None
    if uses_prm(options):
        prm_learner = Learner(
            start.prm_config,
            make_optimizer(
                prm.learning_rate, warmup_steps=prm.warmup_steps, weight_decay=prm.weight_decay,
                grad_clip=prm.grad_clip,
            ),
            _lora(prm.lora_rank, options.model.lora_alpha),
        )  # fmt: skip
    critic_learner = None
    if options.advantage.estimator == "ppo":
        critic_learner = Learner(
            start.config, make_optimizer(critic.learning_rate, grad_clip=critic.grad_clip), learner.lora
        )
    return PrimeSetup(learner, prm_learner, critic_learner, options)


def _lora(rank: int, alpha: float) -> LoRAConfig | None:
    return LoRAConfig(rank=rank, alpha=alpha) if rank else None
