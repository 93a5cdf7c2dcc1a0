"""Bytes per device of a PRIME step, by arithmetic on shapes: nothing is allocated, loaded or compiled.

Parameters, optimiser state, references and gradients are counted exactly, leaf by leaf, with the sharding rules that a
run uses. Activations are counted per token and layer; the tests compare them with compiled programs.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from prm_jax.errors import UserError
from prm_jax.models import ModelConfig, init_value_head
from prm_jax.models.attention_choice import resolve
from prm_jax.models.blockwise_attention import block_size
from prm_jax.models.loading import frozen_shapes, param_shapes, with_runtime
from prm_jax.models.local_copies import own_sizes
from prm_jax.models.rows import row_axes
from prm_jax.models.sharding import partition_spec, rows_over
from prm_jax.prime.options import Options
from prm_jax.prime.sizes import pieces_of_tokens, replay_places, samples_in_slots, slots_per_process
from prm_jax.prime.sources.replay import empty_replay
from prm_jax.prime.start import Start, initial_prm, uses_online_prm
from prm_jax.pytree_paths import named_leaves
from prm_jax.rollouts.server_options import is_url
from prm_jax.rollouts.slot_programs import cache_bytes
from prm_jax.runs.learner import Learner

Shapes = Any

UPDATE_COPIES = {"tpu": 1.0, "cpu": 3.0, "gpu": 3.0}
"""Copies of the trainable arrays while an update is applied, besides the gradient: updates and new moments, which
``learner.guarded_update`` makes array by array. Upper bounds of what compiled programs need: 0.9 on TPUs, 1.9 to 2.9 on
CPUs; on GPUs it is not known."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """The sizes that memory and work are computed from.

    Attributes:
      options: of the run.
      config, prm_config: architectures of policy and PRM, with their run-time fields and the dtype of their weights.
      mesh: axes "data", "fsdp" and "tensor", and "expert" where it divides experts.
      platform: "tpu", "gpu" or "cpu".
      online_prm: whether an implicit PRM learns during the run.
      processes: that share the devices evenly; each samples its own prompts on its own devices.
    """

    options: Options
    config: ModelConfig
    prm_config: ModelConfig
    mesh: AbstractMesh
    platform: str
    online_prm: bool
    processes: int = 1

    @property
    def rows(self) -> int:
        """Responses per step, on all devices."""
        return self.options.rollout.prompts_per_step * self.options.rollout.samples_per_prompt

    @property
    def columns(self) -> int:
        """Tokens per row."""
        return self.options.rollout.max_prompt_tokens + self.options.rollout.max_new_tokens

    @property
    def critic(self) -> bool:
        """Whether a value head on a copy of the policy learns."""
        advantage = self.options.advantage
        return advantage.estimator == "ppo" or (advantage.process_coef != 0 and self.options.reward.source == "critic")

    def piece_rows(self, name: str) -> int:
        """Rows of one piece of a learner's update, on all devices."""
        return max(1, self.rows // (self.pieces(name).minibatches * self.microbatches(name)))

    def microbatches(self, name: str) -> int:
        """Pieces of one optimiser step of a learner."""
        pieces = self.pieces(name)
        if not pieces.microbatch_tokens:
            return int(pieces.microbatches)
        rows = self.rows // pieces.minibatches
        return pieces_of_tokens(max(1, rows // self.row_shards(rows)), self.columns, pieces.microbatch_tokens)

    def row_shards(self, rows: int) -> int:
        """Parts into which the compiled step divides that many rows; an axis that does not divide them repeats work."""
        return math.prod(self.mesh.shape[axis] for axis in row_axes(self.mesh, rows))

    def learners(self) -> dict[str, tuple[ModelConfig, Learner]]:
        """What learns: "policy", and "PRM" and "critic" where there are any."""
        start: Any = Start(None, None, self.config, None, self.prm_config, None)  # type: ignore[arg-type]
        found = {"policy": (self.config, start.policy_learner(self.options))}
        if self.online_prm:
            found["PRM"] = (self.prm_config, start.prm_learner(self.options))
        if self.critic:
            found["critic"] = (self.config, start.critic_learner(self.options))
        return found

    def pieces(self, name: str) -> Any:
        """The options that divide the batch of a learner's update."""
        return self.options.prm if name == "PRM" else self.options.policy


def learner_shapes(config: ModelConfig, learner: Learner, *, critic: bool = False) -> tuple[Shapes, Shapes]:
    """Shapes of (trainable arrays, optimiser state); a critic has a value head too."""

    def init(base: Shapes) -> tuple[Shapes, Shapes]:
        key = jax.random.key(0)
        trainable, opt = learner.init(base, key)
        if critic:
            trainable = {"trunk": trainable, "head": init_value_head(config, key)}
            opt = learner.optimizer.init(trainable)
        return trainable, opt

    return jax.eval_shape(init, param_shapes(config))


def model_bytes(config: ModelConfig, mesh: AbstractMesh, dtype: str, *, layers_only: bool = False) -> int:
    """Bytes per device of a model's parameters in a dtype."""
    shapes = param_shapes(dataclasses.replace(config, dtype=dtype))  # type: ignore[arg-type]
    return bytes_per_device({"layers": shapes["layers"]} if layers_only else shapes, mesh)


def bytes_per_device(shapes: Shapes, mesh: AbstractMesh) -> int:
    """Bytes of the arrays on one device, sharded by the rules of ``models.sharding``.

    Raises:
      UserError: an axis does not divide a dimension that it must split.
    """
    total = 0
    for name, leaf in named_leaves(shapes).items():
        spec = partition_spec(name, leaf.shape, mesh)
        ways = math.prod(mesh.shape[axis] for axis in spec if axis is not None)
        total += leaf.size // ways * leaf.dtype.itemsize
    return total


def optimizer_bytes(config: ModelConfig, learner: Learner, mesh: AbstractMesh, *, critic: bool = False) -> int:
    """Bytes of a learner's optimiser state per device; in the host's memory where it is offloaded."""
    return bytes_per_device(learner_shapes(config, learner, critic=critic)[1], mesh)


def state_bytes(work: Workload) -> dict[str, float]:
    """Bytes per device of what lives during the whole run, by cause; exact."""
    found: dict[str, float] = {}
    for name, (config, learner) in work.learners().items():
        trainable, opt = learner_shapes(config, learner, critic=name == "critic")
        lora = "" if learner.lora is None else " adapters"
        found[f"{name}{lora or ' parameters'}"] = bytes_per_device(trainable, work.mesh)
        if not learner.offload:
            found[f"{name} optimiser"] = bytes_per_device(opt, work.mesh)
    recent, kept = replay_places(work.options)
    if work.online_prm and recent:
        shapes = jax.eval_shape(lambda: empty_replay(recent, kept, work.columns, jax.random.key(0)))
        found["PRM's replay buffer (--prm.replay)"] = bytes_per_device(shapes, work.mesh)
    lora_policy = work.options.model.lora_rank > 0
    name = "base, also the reference" if lora_policy else "reference (initial weights)"
    if not work.options.model.offload_reference:
        found[name] = bytes_per_device(frozen_shapes(work.config, work.options.model), work.mesh)
    if work.online_prm and (work.options.prm.path or work.options.prm.trained):
        model = dataclasses.replace(work.options.model, path=initial_prm(work.options))
        found["PRM's initial weights"] = bytes_per_device(frozen_shapes(work.prm_config, model), work.mesh)
    return found


def update_bytes(work: Workload) -> dict[str, float]:
    """Bytes per device that the largest moment of an update needs besides the state, by cause.

    The moments of each learner are its backward pass and the application of its update. Activations of the other
    learners count in both: the policy's forward pass depends on nothing that the PRM's update computes, and the
    compiler runs it early.
    """
    kept = {name: _kept_bytes(work, name, config) for name, (config, _) in work.learners().items()}
    moments = []
    for name, (config, learner) in work.learners().items():
        for own, causes in (
            (True, _backward(work, name, config, learner)),
            (False, _applied(work, name, config, learner)),
        ):
            waiting = {
                f"{other} activations for the backward pass": size
                for other, size in kept.items()
                if own or other != name
            }
            moments.append(waiting | causes)
    return max(moments, key=lambda causes: sum(causes.values()))


def rollout_bytes(work: Workload) -> dict[str, float]:
    """Bytes per device that sampling needs besides the state, by cause.

    Slots have keys and values for the longest prompt and response each; batches of `generate` share those of a prompt.
    A server needs nothing here. The loop over tokens reads each layer from a copy of its own. Several processes need
    another copy of the weights first: each gathers them to its own devices.
    """
    config, rollout, mesh = work.config, work.options.rollout, process_mesh(work)
    if is_url(rollout.engine):
        return {}
    factor = rollout.oversample_factor if rollout.filter == "oversample" else 1
    shards = rows_over(mesh)
    prompts = math.ceil(math.ceil(rollout.prompts_per_step * factor / work.processes) / shards)
    rows = prompts * rollout.samples_per_prompt
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * _itemsize(config)
    cache = float(per_token * (prompts * rollout.max_prompt_tokens + rows * rollout.max_new_tokens))
    if samples_in_slots(rollout, work.mesh.shape):
        slots = slots_per_process(rollout, ways=shards, processes=work.processes, platform=work.platform)
        rows = math.ceil(slots / shards)
        kind = config.compute_dtype if rollout.cache_dtype == "auto" else rollout.cache_dtype
        cache = float(cache_bytes(config, rows, work.columns, kind))
    dtype = config.dtype if work.options.model.lora_rank else "float32"
    copy = model_bytes(config, mesh, dtype) if work.processes > 1 else 0
    if work.platform == "cpu":
        dtype = config.compute_dtype
    return {
        "rollout cache": cache / _kv_shards(config, mesh),
        "rollout weights on each process's devices": copy,
        "rollout weights (copy by layer)": model_bytes(config, mesh, dtype, layers_only=True),
        "rollout logits": 3 * rows * config.vocab_size * 4,
    }


def process_mesh(work: Workload) -> AbstractMesh:
    """The mesh on which one process samples, see ``local_copies.local_mesh``."""
    if work.processes == 1:
        return work.mesh
    sizes = own_sizes(work.mesh, work.mesh.size // work.processes)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def _piece_rows(work: Workload, name: str) -> int:
    """Rows of one piece of an update on one device."""
    rows = work.piece_rows(name)
    return rows // work.row_shards(rows)


def _kept_bytes(work: Workload, name: str, config: ModelConfig) -> float:
    return activation_bytes(work, config, _piece_rows(work, name))[0] / work.mesh.shape["tensor"]


def _backward(work: Workload, name: str, config: ModelConfig, learner: Learner) -> dict[str, float]:
    """What one learner's backward pass needs besides its activations."""
    gradient = _gradient_bytes(work, name, config, learner)
    rows, width = _piece_rows(work, name), work.mesh.shape["tensor"]
    gathered = 0.0
    if work.mesh.shape["fsdp"] > 1:
        gathered = (dense_params(config) + expert_params(config) / expert_ways(work, config)) * _itemsize(config)
    stored = config.dtype if learner.lora is not None else "float32"
    casts = 0.0 if stored == config.compute_dtype else model_bytes(config, work.mesh, config.compute_dtype)
    return {
        f"{name} gradient": gradient,
        f"{name} gradient of earlier pieces": gradient if work.microbatches(name) > 1 else 0.0,
        f"{name} activations of one layer": activation_bytes(work, config, rows)[1] / width + gathered,
        f"{name} attention scores": sum(score_bytes(work, config, rows)) / width,
        f"{name} weights in the compute dtype": casts if config.remat == "none" else casts / config.num_layers,
        f"{name} logits blocks": logits_bytes(work, config, rows),
    }


def _applied(work: Workload, name: str, config: ModelConfig, learner: Learner) -> dict[str, float]:
    """What the application of one learner's update needs."""
    gradient = _gradient_bytes(work, name, config, learner)
    # An upper bound: arrays are fetched in turn, but compilers overlap some of it.
    fetched = optimizer_bytes(config, learner, work.mesh, critic=name == "critic") if learner.offload else 0
    return {
        f"{name} gradient": gradient,
        f"{name} optimiser, fetched from the host": fetched,
        f"{name} update before it is accepted": UPDATE_COPIES[work.platform] * gradient,
    }


def _gradient_bytes(work: Workload, name: str, config: ModelConfig, learner: Learner) -> float:
    trainable, _ = learner_shapes(config, learner, critic=name == "critic")
    return bytes_per_device(trainable, work.mesh)


def activation_bytes(work: Workload, config: ModelConfig, rows: int) -> tuple[float, float]:
    """(kept by all layers, of the layer at work) of `rows` rows; attention scores not included."""
    attended = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    mixed, hidden = config.num_heads * config.head_dim, config.hidden_size
    copies = config.experts_per_token * expert_ways(work, config)  # of a token, one per expert that may take it
    width = config.intermediate_size * max(copies, 1)
    whole = (6 + 2 * copies) * hidden + 2 * (attended + mixed) + 7 * width
    kept = {
        "none": whole, "full": hidden, "dots": 3 * hidden + attended + 2 * width, "attention": hidden + mixed,
    }[config.remat]  # fmt: skip
    at_work = 2 * hidden + attended + 3 * width + (0 if config.remat == "none" else whole)
    tokens = rows * work.columns * _itemsize(config)
    return tokens * config.num_layers * kept, tokens * at_work


def score_bytes(work: Workload, config: ModelConfig, rows: int) -> tuple[float, float]:
    """(kept by all layers, of the layer at work) of attention scores, which only some implementations keep."""
    chosen = attention_of(work, config)
    tokens = rows * work.columns * config.num_heads
    if chosen == "naive":
        scores = tokens * work.columns
        kept = scores * (4 + _itemsize(config)) * (config.num_layers if config.remat == "none" else 0)
        return kept, 2.5 * 4 * scores
    return tokens * 4 * config.num_layers, tokens * (block_size(work.columns) * 4 * 2 if chosen == "blockwise" else 0)


def logits_bytes(work: Workload, config: ModelConfig, rows: int) -> float:
    """Blocks of logits, their gradients and one copy; the head is computed block by block."""
    tokens = rows * work.columns
    if work.platform == "cpu":
        return 3 * 4 * tokens * min(config.vocab_size, 2048)
    return 3 * 4 * min(tokens, 2048) * config.vocab_size / work.mesh.shape["tensor"]


def attention_of(work: Workload, config: ModelConfig) -> str:
    """The attention implementation that the run uses."""
    return resolve(
        config.attention, platform=work.platform, dtype=config.compute_dtype, head_dim=config.head_dim,
        length=work.columns, softcap=config.attn_softcap is not None,
    )  # fmt: skip


def projection_params(config: ModelConfig, *, active: bool = True) -> int:
    """Parameters of one layer's matrix products; of experts, those of one token's experts, or all of them."""
    share = config.experts_per_token / config.num_experts if active and config.num_experts else 1
    return dense_params(config) + round(share * expert_params(config))


def dense_params(config: ModelConfig) -> int:
    """Parameters of one layer's matrix products that process every token; of experts, their router."""
    heads = config.num_heads + config.num_kv_heads
    attention = 2 * config.hidden_size * heads * config.head_dim
    mlp = config.num_experts if config.num_experts else 3 * config.intermediate_size
    return attention + config.hidden_size * mlp


def expert_params(config: ModelConfig) -> int:
    """Parameters of one layer's experts; 0 in dense models."""
    return 3 * config.num_experts * config.hidden_size * config.intermediate_size


def expert_ways(work: Workload, config: ModelConfig) -> int:
    """Devices among which a layer's experts are divided by themselves; each may take all their tokens."""
    return work.mesh.shape.get("expert", 1) if config.num_experts else 1


def parameter_counts(config: ModelConfig) -> tuple[int, int]:
    """(all parameters, those that process one token), which differ in sparse models."""
    total = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(config)))
    idle = projection_params(config, active=False) - projection_params(config)
    return total, total - config.num_layers * idle


def _kv_shards(config: ModelConfig, mesh: AbstractMesh) -> int:
    return math.gcd(config.num_kv_heads, mesh.shape["tensor"])


def _itemsize(config: ModelConfig) -> int:
    return jnp.dtype(config.compute_dtype).itemsize


def make_workload(
    options: Options, config: ModelConfig, prm_config: ModelConfig | None, mesh: AbstractMesh, platform: str,
    online_prm: bool | None = None, processes: int = 1,
) -> Workload:  # fmt: skip
    """A workload; the configurations get the options' run-time fields. `online_prm` None: what the options say.

    Raises:
      UserError: processes that cannot have equally many devices each.
    """
    if processes < 1 or mesh.size % processes:
        raise UserError(f"--processes {processes}: {mesh.size} devices cannot be shared evenly by so many processes")
    learns = uses_online_prm(options) if online_prm is None else online_prm
    policy, prm = (with_runtime(given, options.model) for given in (config, prm_config or config))
    return Workload(options, policy, prm, mesh, platform, learns, processes)
