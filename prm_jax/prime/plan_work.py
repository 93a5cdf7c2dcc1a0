"""Operations, collectives and time per PRIME step and device, by arithmetic; a roofline, not a measurement."""

import dataclasses
import math

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from prm_jax.models import ModelConfig
from prm_jax.models.blockwise_attention import block_size
from prm_jax.models.sharding import axis_sizes, rows_over
from prm_jax.prime.accelerators import Accelerator
from prm_jax.prime.plan_memory import Workload, attention_of, expert_ways, model_bytes, projection_params


@dataclasses.dataclass(frozen=True)
class Pass:
    """Operations of one pass over some tokens, on all devices: projections, attention, output head."""

    projections: float
    attention: float
    head: float

    def scaled(self, factor: float) -> "Pass":
        """All three times a factor."""
        return Pass(self.projections * factor, self.attention * factor, self.head * factor)

    def per_device(self, work: Workload) -> float:
        """Operations of one device; those of rows that a piece cannot divide over the devices are repeated."""
        shards = work.row_shards(work.piece_rows("policy"))
        return self.total() / (shards * work.mesh.shape["tensor"])

    def total(self) -> float:
        """On all devices, nothing repeated."""
        return self.projections + self.attention + self.head


def forward(work: Workload, config: ModelConfig) -> Pass:
    """One forward pass over the rows of a step, with log-probs of every token."""
    tokens = float(work.rows * work.columns)
    reach = float(work.columns)  # keys per query that are multiplied, causal or not
    if attention_of(work, config) != "naive":
        reach = (work.columns + block_size(work.columns)) / 2
    features = config.num_heads * config.head_dim
    return Pass(
        2 * tokens * config.num_layers * projection_params(config),
        4 * tokens * config.num_layers * features * reach,
        2 * tokens * config.hidden_size * config.vocab_size,
    )


def backward(work: Workload, config: ModelConfig, *, lora: bool) -> Pass:
    """The backward pass; LoRA leaves out the gradients of frozen kernels, rematerialisation adds a forward pass."""
    once = forward(work, config)
    again = {"none": 0, "dots": 0, "full": 1, "attention": 1}[config.remat]
    naive = attention_of(work, config) == "naive"
    # The head recomputes its logits, and every other implementation of attention its scores. The last product of a
    # layer is not computed again: its result is the next layer's input, which is kept.
    tokens = float(work.rows * work.columns)
    width = config.intermediate_size * max(config.experts_per_token, 1)
    last = 2 * tokens * config.num_layers * width * config.hidden_size
    attention = 2 + (again or config.remat == "dots") if naive else 2.5 + (config.remat in ("full", "dots"))
    products = 1 if lora else 2
    projections = once.projections * (products + again) - again * last
    return Pass(projections, once.attention * attention, once.head * (products + 1))


def scored_passes(work: Workload) -> dict[str, ModelConfig]:
    """Passes without gradient besides those of an online PRM's own scores; the compiler merges equal ones.

    Passes are equal if they score the same weights at the same temperature in the same pieces of the batch. A pass in
    one piece is also equal to an update's own forward pass, but only where layers are unrolled.
    """
    options, policy = work.options, work.options.policy
    bypassed = options.off_policy.objective == "bypass"
    pieces = {name: (work.pieces(name).minibatches, work.microbatches(name)) for name in ("policy", "PRM")}
    one_temperature = options.rollout.temperature == 1
    unrolled = work.config.scan_unroll >= work.config.num_layers
    within_update = unrolled and pieces["policy"] == (1, 1) and policy.epochs == 1
    as_reward = bool(policy.kl_coef) and policy.kl_placement == "reward"
    old = as_reward or not (bypassed or (policy.epochs == 1 and policy.minibatches == 1))
    found = {}
    if old and not within_update:
        found["policy scoring"] = work.config
    merged = one_temperature and pieces["policy"] == pieces["PRM"]
    if work.online_prm:
        frozen = options.prm.reference == "frozen"
        if frozen or not (merged and (old or within_update)):
            found["reference scoring"] = work.prm_config if frozen else work.config
        merged &= frozen and not (options.prm.path or options.prm.trained)
    if policy.kl_coef and not (work.online_prm and merged):
        found["divergence from the reference"] = work.config
    return found


def step_flops(work: Workload) -> dict[str, Pass]:
    """Operations of one step by phase; ``generation`` is one round of sampling."""
    policy, prm, options = work.config, work.prm_config, work.options
    once = forward(work, policy)
    epochs = options.policy.epochs
    phases = {
        "policy forward": once.scaled(epochs),
        "policy backward": backward(work, policy, lora=options.model.lora_rank > 0).scaled(epochs),
    }
    phases |= {name: forward(work, config) for name, config in scored_passes(work).items()}
    if work.online_prm:
        learning, through_prm = options.prm, forward(work, prm)
        rounds = 0 if learning.update == "none" else learning.epochs
        scoring = {"none": 1, "after": 0, "before": 1, "reverse": 1}[learning.update]
        phases["PRM forward"] = through_prm.scaled(rounds + scoring)
        phases["PRM backward"] = backward(work, prm, lora=learning.lora_rank > 0).scaled(rounds)
    if work.critic:
        trunk = dataclasses.replace(once, head=0.0)
        back = dataclasses.replace(backward(work, policy, lora=options.model.lora_rank > 0), head=0.0)
        phases["critic"] = Pass(
            trunk.projections * (1 + epochs) + back.projections * epochs,
            trunk.attention * (1 + epochs) + back.attention * epochs, 0.0,
        )  # fmt: skip
    phases["generation"] = generation(work)
    return phases


def generation(work: Workload) -> Pass:
    """One round of sampling: prompts once, then a token per row and step; every row reaches its maximum length."""
    config, rollout = work.config, work.options.rollout
    factor = rollout.oversample_factor if rollout.filter == "oversample" else 1
    prompts = float(rollout.prompts_per_step * factor)
    written = prompts * rollout.samples_per_prompt * rollout.max_new_tokens
    fed = prompts * rollout.max_prompt_tokens + written
    seen = prompts * rollout.max_prompt_tokens**2 + written * work.columns
    features = config.num_heads * config.head_dim
    return Pass(
        2 * fed * config.num_layers * projection_params(config),
        4 * seen * config.num_layers * features,
        2 * written * config.hidden_size * config.vocab_size,
    )


def collective_minimum(work: Workload) -> float:
    """Bytes that one device must send per step under sharded parameters or rows.

    Every pass gathers the parameters once in the compute dtype (forward and backward of what learns, forward of what
    is scored); every gradient is reduced once per optimiser step, in that dtype too. Where "expert" divides
    experts, every pass sends the tokens to them and back.
    """
    shape = work.mesh.shape
    shards, replicas = shape["fsdp"], shape["data"]
    total = 0.0
    for name, (config, learner) in work.learners().items():
        pieces = work.pieces(name)
        whole = model_bytes(config, _unsharded(work), config.compute_dtype)
        passes = 2 * pieces.epochs * pieces.minibatches * work.microbatches(name)
        total += passes * whole * (shards - 1) / shards + 2 * pieces.epochs * _exchanged(work, config)
        if learner.lora is None:  # adapters are too small to count
            steps = pieces.epochs * pieces.minibatches
            total += whole * steps * ((shards - 1) / shards + 2 * (replicas - 1) / replicas / shards)
    for name, config in scored_passes(work).items():
        scorer = "PRM" if name == "reference scoring" else "policy"
        whole = model_bytes(config, _unsharded(work), config.compute_dtype)
        passes = work.pieces(scorer).minibatches * work.microbatches(scorer)
        total += passes * whole * (shards - 1) / shards + _exchanged(work, config)
    return total


def _exchanged(work: Workload, config: ModelConfig) -> float:
    """Bytes of tokens that one device sends to experts and back in one pass over a step's rows."""
    ways = expert_ways(work, config)
    tokens = work.rows * work.columns / rows_over(work.mesh)
    width = config.hidden_size * jnp.dtype(config.compute_dtype).itemsize
    return 2 * (ways - 1) * tokens * config.num_layers * width


def _unsharded(work: Workload) -> AbstractMesh:
    """The mesh with the axes alone whose parts of the parameters stay where they are, "tensor" and "expert"."""
    shape = work.mesh.shape
    sizes = axis_sizes(1, 1, shape["tensor"], shape.get("expert", 1))
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def step_seconds(work: Workload, device: Accelerator) -> dict[str, float]:
    """Roofline time per step and phase: the slowest of arithmetic, memory and links."""
    float32 = work.config.compute_dtype == "float32"
    rate = device.flops * (device.float32_share if float32 else 1.0)
    flops = step_flops(work)
    generated = flops.pop("generation").per_device(work) / rate
    trained = sum(part.per_device(work) for part in flops.values()) / rate
    shape = work.mesh.shape
    stored = work.config.dtype if work.options.model.lora_rank else "float32"
    weights = model_bytes(work.config, work.mesh, stored)
    reads = work.options.rollout.max_new_tokens * weights / device.bandwidth
    collectives = collective_minimum(work) / device.link if math.prod(shape.values()) > 1 else 0.0
    return {"generation": max(generated, reads), "training": max(trained, collectives)}
