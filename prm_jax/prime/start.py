"""What a run starts from: the task, the tokenizer, the models, and the learners of its options."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

from jax.sharding import Mesh

from prm_jax.data import load_task
from prm_jax.data.problems import Task
from prm_jax.errors import UserError
from prm_jax.models import LoRAConfig, ModelConfig, check_same_vocabulary
from prm_jax.models.loading import fresh_config, frozen_copy, load_model
from prm_jax.models.local_copies import local_copy
from prm_jax.models.qtensor import is_quantized
from prm_jax.models.sharding import rows_over, shard_params
from prm_jax.prime.advantages import AdvantageFn, make_advantage
from prm_jax.prime.batch import Frozen
from prm_jax.prime.critic import Critic
from prm_jax.prime.off_policy import resolved
from prm_jax.prime.options import Options
from prm_jax.prime.policy import PolicyLoss, PolicyPhase, make_policy_loss
from prm_jax.prime.shaping import RewardFn, make_reward
from prm_jax.prime.sizes import optimizer_steps
from prm_jax.prime.sources.base import constants_of
from prm_jax.prime.step import Setup
from prm_jax.runs import shared_files
from prm_jax.runs.expert_balance import check_balanced
from prm_jax.runs.host_memory import on_host
from prm_jax.runs.learner import Learner, Params, make_optimizer

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Start:
    """A run's start.

    Attributes:
      task: problems and verdicts.
      tokenizer: of the policy, and so of every model that shares its tokens.
      config: the policy's architecture.
      params: the policy's loaded parameters, or None for a fresh model.
      prm_config: the online PRM's architecture.
      prm_params: its own loaded parameters, or None where it starts from the policy's start.
      base: the policy's initial parameters on the devices, once they are known; see `placed`.
      prm_base: the online PRM's initial parameters on the devices.
      ways: number of devices that hold the rows of a batch.
      mesh: the devices, once they are known; None for one.
      loaded: what `once` has loaded.
      prm_trained: parameters with which the online PRM starts instead of those of its reference, or None.
    """

    task: Task
    tokenizer: Any
    config: ModelConfig
    params: Params | None
    prm_config: ModelConfig
    prm_params: Params | None
    base: Params = None
    prm_base: Params = None
    ways: int = 1
    mesh: Mesh | None = None
    loaded: dict[str, Any] = dataclasses.field(default_factory=dict)
    prm_trained: Params | None = None

    def once(self, name: str, load: Callable[[], T]) -> T:
        """What `load` returns; called once per run, although a step is composed before and after the warm start."""
        if name not in self.loaded:
            self.loaded[name] = load()
        return self.loaded[name]

    def placed(self, base: Params, mesh: Mesh | None, options: Options) -> "Start":
        """The start with its initial parameters on the devices."""
        ways = 1 if mesh is None else even_ways(options, rows_over(mesh))
        if mesh is not None:
            base = shard_params(base, mesh)
        if not is_quantized(base):
            base = frozen_copy(self.config, base, options.model)
        prm_base = base
        if self.prm_params is not None:
            prm_base = self.prm_params if mesh is None else shard_params(self.prm_params, mesh)
        if options.model.offload_reference:
            shared, base = prm_base is base, on_host(base)
            prm_base = base if shared else on_host(prm_base)
        if is_quantized(prm_base) and uses_online_prm(options) and not options.prm.lora_rank:
            raise UserError(
                "the PRM's initial weights are quantised, and without adapters all of them would train: give "
                "--prm.lora-rank, or weights that are not quantised"
            )
        params = None if self.params is None else base
        prm_params = None if self.prm_params is None else prm_base
        return dataclasses.replace(
            self, params=params, prm_params=prm_params, base=base, prm_base=prm_base, ways=ways, mesh=mesh
        )

    def policy_learner(self, options: Options) -> Learner:
        """The policy's architecture, optimiser and adapters."""
        policy = options.policy
        optimizer = make_optimizer(
            policy.learning_rate, schedule=policy.schedule, warmup_steps=policy.warmup_steps,
            total_steps=optimizer_steps(options, policy.epochs, policy.minibatches), weight_decay=policy.weight_decay,
            beta2=policy.beta2, grad_clip=policy.grad_clip, moments=policy.moments,
        )  # fmt: skip
        lora = _lora(options.model.lora_rank, options.model.lora_alpha)
        return Learner(self.config, optimizer, lora, policy.offload)

    def prm_learner(self, options: Options) -> Learner:
        """The online PRM's."""
        prm = options.prm
        optimizer = make_optimizer(
            prm.learning_rate, schedule=prm.schedule, warmup_steps=prm.warmup_steps,
            total_steps=optimizer_steps(
                options, prm.epochs, prm.minibatches, warm_up=True, replayed=prm.replay_batches if prm.replay else 0
            ),
            weight_decay=prm.weight_decay, grad_clip=prm.grad_clip, moments=prm.moments,
        )  # fmt: skip
        return Learner(self.prm_config, optimizer, _lora(prm.lora_rank, options.model.lora_alpha), prm.offload)

    def critic_learner(self, options: Options, *, warm_up: bool = False) -> Learner:
        """A critic's; `warm_up` if it learns before the policy does."""
        critic, policy = options.critic, options.policy
        optimizer = make_optimizer(
            critic.learning_rate, schedule=critic.schedule,
            total_steps=optimizer_steps(options, policy.epochs, policy.minibatches, warm_up=warm_up),
            grad_clip=critic.grad_clip, moments=critic.moments,
        )  # fmt: skip
        lora = _lora(options.model.lora_rank, options.model.lora_alpha)
        return Learner(self.config, optimizer, lora, critic.offload)

    def load_prover(self, options: Options, path: str) -> Params:
        """The parameters of another policy of the same architecture and vocabulary, which completes prefixes."""
        config, params, tokenizer = load_model(dataclasses.replace(options.model, path=path), mesh=self.mesh)
        check_same_vocabulary(self.tokenizer, tokenizer, names=("the policy", "the prover"))
        if config != self.config:
            raise UserError(
                f"the prover {path} (--reward.path) has another architecture than the policy; completions are "
                "sampled by the policy's program, so both must have the same"
            )
        return params if self.mesh is None else local_copy(params, self.mesh)


@dataclasses.dataclass(frozen=True)
class Overrides:
    """Parts of the step that a caller gives instead of the options; None: what the options say.

    Attributes:
      source: of process rewards.
      reward, advantage, policy_loss: see `prm_jax.prime.train`.
    """

    source: Any = None
    reward: RewardFn | None = None
    advantage: AdvantageFn | None = None
    policy_loss: PolicyLoss | None = None


def load_start(options: Options, task: Task | None = None, mesh: Mesh | None = None) -> Start:
    """Loads what the options name.

    Args:
      options: of the run.
      task: instead of the one that the options name.
      mesh: devices that weights are loaded onto, shard by shard; None: the default device.

    Raises:
      UserError: an unknown task or option, missing or damaged weights, tokenizers that do not match.
    """
    task = load_task(options.task.name, **options.task.options) if task is None else task
    if not len(task.eval):
        raise UserError(
            f"the task {task.name!r} has no evaluation problems; give it some, or a larger share of them"
        )
    if options.model.path:
        config, params, tokenizer = load_model(options.model, mesh=mesh)
    else:
        tokenizer = task.tokenizer()
        if tokenizer is None:
            raise UserError(
                f"the task {task.name!r} has no tokenizer of its own, so that no fresh model can be made for it: name "
                "a pretrained one with --model.path"
            )
        config, params = fresh_config(options.model, tokenizer.vocab_size), None
    prm_config, prm_params, prm_trained = config, None, None
    prm_path = initial_prm(options)
    if prm_path and uses_online_prm(options):
        prm_options = dataclasses.replace(options.model, path=prm_path, lora_rank=options.prm.lora_rank)
        prm_config, prm_params, prm_tokenizer = load_model(prm_options, mesh=mesh)
        # Rewards of tokens need one vocabulary.
        check_same_vocabulary(tokenizer, prm_tokenizer, names=("the policy", "the PRM"))
        if options.prm.trained:
            trained = dataclasses.replace(prm_options, path=options.prm.trained)
            trained_config, prm_trained, _ = load_model(trained, mesh=mesh)
            if trained_config != prm_config:
                raise UserError(
                    f"the PRM {options.prm.trained} (--prm.trained) has another architecture than its reference, and "
                    "cannot be trained further here; it can score with --reward.source model --reward.path"
                )
    return Start(task, tokenizer, config, params, prm_config, prm_params, prm_trained=prm_trained)


def initial_prm(options: Options) -> str:
    """Where the weights of the online PRM's reference are; "" for the policy's start.

    Raises:
      UserError: the trained PRM of the options is none that has a reference.
    """
    if not options.prm.trained:
        return options.prm.path
    reference = pathlib.Path(options.prm.trained) / "reference"
    if not shared_files.is_dir(reference):
        raise UserError(
            f"--prm.trained {options.prm.trained} has no directory 'reference', so that it is not an implicit PRM; "
            "expected the prm/ of an earlier run, or what train-prm --kind implicit made"
        )
    return str(reference)


def offloads(options: Options) -> dict[str, str]:
    """The options that keep arrays in host memory -> the moments that these are, "" for a reference."""
    found: dict[str, str] = {}
    if options.policy.offload:
        found["--policy.offload"] = options.policy.moments
    if options.prm.offload:
        found["--prm.offload"] = options.prm.moments
    if options.critic.offload:
        found["--critic.offload"] = options.critic.moments
    if options.model.offload_reference:
        found["--model.offload-reference"] = ""
    return found


def uses_online_prm(options: Options) -> bool:
    """Whether process rewards come from the implicit PRM that learns together with the policy."""
    return options.advantage.process_coef != 0 and options.reward.source == "implicit"


def even_ways(options: Options, ways: int) -> int:
    """`ways` if the pieces of every update can take whole groups from as many blocks of rows, otherwise 1.

    With 1 the pieces are consecutive rows: the same numbers, but each piece lies on few devices.
    """
    prompts = options.rollout.prompts_per_step
    pieces = [part.minibatches * part.microbatches for part in (options.prm, options.policy)]
    return ways if all(prompts % (ways * count) == 0 for count in pieces) else 1


def make_setup(options: Options, start: Start, source: Any, overrides: Overrides = Overrides()) -> Setup:
    """Composes the step of a run.

    Args:
      options: of the run.
      start: with its parameters placed.
      source: of process rewards, or None.
      overrides: functions from outside.

    Raises:
      UserError: an unknown shaping, estimator or loss, or one with another signature; a coefficient for experts that a
        model does not have.
    """
    check_balanced("--policy.balance-coef", options.policy.balance_coef, start.config)
    check_balanced("--prm.balance-coef", options.prm.balance_coef, start.prm_config)
    check_balanced("--sft.balance-coef", options.sft.balance_coef, start.config)
    loss = overrides.policy_loss or make_policy_loss(options.policy)
    policy = PolicyPhase(
        start.policy_learner(options), options.policy, loss, options.rollout.temperature, start.ways, resolved(options)
    )
    critic = None
    if options.advantage.estimator == "ppo" and overrides.advantage is None:
        critic = Critic(start.critic_learner(options), options.critic, options.policy, start.ways)
    named = (*options.reward.shaping, options.advantage.estimator, options.policy.loss)
    given = (overrides.reward, overrides.advantage, overrides.policy_loss)
    return Setup(
        policy=policy,
        source=source,
        critic=critic,
        reward=overrides.reward or make_reward(options.reward),
        advantage=overrides.advantage or make_advantage(options.advantage),
        options=options.advantage,
        reads_logp=any(":" in name or name == "brain" for name in named)
        or any(function is not None for function in given),
        one_reference=start.base is not None and constants_of(source) is start.base,
    )


def frozen_arrays(start: Start, source: Any) -> Frozen:
    """What the step needs and never changes."""
    return Frozen(start.base, () if source is None else constants_of(source))


def _lora(rank: int, alpha: float) -> LoRAConfig | None:
    return LoRAConfig(rank=rank, alpha=alpha) if rank else None


