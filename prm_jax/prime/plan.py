"""A run's memory, work and time before it starts, by arithmetic on the options and the model's configuration."""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh

from prm_jax.data import load_task
from prm_jax.data.problems import Task
from prm_jax.doctor import host
from prm_jax.errors import UserError
from prm_jax.models import ModelConfig
from prm_jax.models.loading import fresh_config, read_config
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.models.sharding import axis_sizes, check_expert_axis, rows_over
from prm_jax.prime import plan_memory
from prm_jax.prime.accelerators import GIB
from prm_jax.prime.options import Options
from prm_jax.prime.plan_memory import Workload, make_workload
from prm_jax.prime.sizes import samples_in_slots
from prm_jax.prime.start import initial_prm, uses_online_prm

CERTAIN_SHARE = 0.5
"""Share of the working memory that a refusal counts: the tests hold the estimate to a factor of two of the compiler's
own figure. Parameters and optimisers are exact and count whole."""

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs per device and step.

    Attributes:
      work: the sizes that it was computed from.
      state: bytes by cause that live during the whole run; exact.
      update: bytes by cause during the largest update, besides the state.
      rollout: bytes by cause during sampling, besides the state.
    """

    work: Workload
    state: dict[str, float]
    update: dict[str, float]
    rollout: dict[str, float]

    @property
    def peak(self) -> float:
        """Largest number of bytes in use."""
        return sum(self.state.values()) + max(sum(self.update.values()), sum(self.rollout.values()))

    @property
    def least(self) -> float:
        """Bytes below which the run cannot work: the state, and part of the working memory."""
        working = max(sum(self.update.values()), sum(self.rollout.values()))
        return sum(self.state.values()) + CERTAIN_SHARE * working

    def causes(self) -> list[tuple[str, float]]:
        """(cause, bytes) of the peak, largest first."""
        working = max(self.update, self.rollout, key=lambda causes: sum(causes.values()))
        return sorted({**self.state, **working}.items(), key=lambda item: -item[1])


@dataclasses.dataclass(frozen=True)
class Remedy:
    """An option that lowers the peak: its spelling on the command line, and the bytes per device that it saves."""

    option: str
    saves: float


def make_plan(
    options: Options,
    config: ModelConfig,
    *,
    devices: int = 1,
    platform: str = "tpu",
    prm_config: ModelConfig | None = None,
    online_prm: bool | None = None,
    processes: int = 1,
) -> Plan:
    """The memory of a run.

    Args:
      options: of the run.
      config: the policy's architecture, its ``dtype`` that of the weights in the file; see
        ``models.loading.read_config``. Run-time fields are those of the options.
      devices: number of devices; the mesh must use all of them.
      platform: "tpu", "gpu" or "cpu", which decides how attention and log-probs are computed.
      prm_config: the PRM's architecture where it has one of its own.
      online_prm: whether an implicit PRM learns; None: what the options say.
      processes: that share the devices evenly.

    Raises:
      UserError: a mesh that does not have that many devices, or that does not divide a dimension of the model,
        or that divides experts which it does not have.
    """
    mesh = planned_mesh(options.mesh, devices)
    check_expert_axis(mesh, config.num_experts, config.architecture)
    work = make_workload(options, config, prm_config, mesh, platform, online_prm, processes)
    return Plan(work, plan_memory.state_bytes(work), plan_memory.update_bytes(work), plan_memory.rollout_bytes(work))


def planned_configs(
    options: Options, *, vocab_size: int = 0, task: Task | None = None
) -> tuple[ModelConfig, ModelConfig | None]:
    """(the policy's architecture, that of a PRM of its own or None) from configurations alone; no weights are read.

    Args:
      options: of the run.
      vocab_size: of a fresh model; 0: that of the task's tokenizer.
      task: instead of the one that the options name.

    Raises:
      UserError: a configuration that is missing or not supported; a fresh model for a task without a tokenizer.
    """
    prm_config = None
    prm_path = initial_prm(options)
    if prm_path and uses_online_prm(options):
        prm_config = read_config(dataclasses.replace(options.model, path=prm_path))
    if options.model.path:
        return read_config(options.model), prm_config
    if not vocab_size:
        task = load_task(options.task.name, **options.task.options) if task is None else task
        tokenizer = task.tokenizer()
        if tokenizer is None:
            raise UserError(
                f"the task {task.name!r} has no tokenizer of its own: name a model with --model.path, or in prm-jax "
                "plan the size of a fresh model's vocabulary with --vocab-size"
            )
        vocab_size = tokenizer.vocab_size
    return fresh_config(options.model, vocab_size), prm_config


def planned_mesh(sizes: MeshOptions, devices: int) -> AbstractMesh:
    """The mesh of the options on a number of devices that need not exist.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    if devices < 1:
        raise UserError(f"--devices {devices}: expected at least 1")
    given = axis_sizes(sizes.data, sizes.fsdp, sizes.tensor, sizes.expert)
    shown = " ".join(f"--mesh.{name} {size}" for name, size in given.items())
    if any(size < 1 and size != -1 for size in given.values()) or list(given.values()).count(-1) > 1:
        raise UserError(f"{shown}: sizes must be positive, and at most one -1 (all remaining devices)")
    known = math.prod(size for size in given.values() if size != -1)
    found = {name: devices // known if size == -1 else size for name, size in given.items()}
    if math.prod(found.values()) != devices:
        raise UserError(
            f"{shown} makes {math.prod(found.values()) or known} devices, but there are {devices} (--devices): choose "
            "sizes whose product is the number of devices, or -1 for one of them"
        )
    return AbstractMesh(tuple(found.values()), tuple(found))


def remedies(current: Plan) -> list[Remedy]:
    """Options that lower the peak, the one that saves most first; each is computed alone."""
    found = []
    for option, changed in _variants(current.work):
        other = _replanned(current, changed)
        if other is not None and current.peak - other.peak > 0.01 * current.peak:
            found.append(Remedy(option, current.peak - other.peak))
    return sorted(found, key=lambda remedy: -remedy.saves)


def check_fits(
    options: Options,
    config: ModelConfig,
    devices: Sequence[Any],
    *,
    prm_config: ModelConfig | None = None,
    online_prm: bool | None = None,
) -> None:
    """Refuses a run that cannot fit into its devices' memory, and warns where the estimate does not fit.

    Args:
      options, config, prm_config, online_prm: see `make_plan`.
      devices: that the run uses. Their memory is the runtime's limit, and on CPUs an equal share of the host's; where
        it is not known nothing is checked.

    Raises:
      UserError: even the lower bound is above the memory; the message names the largest causes and what would help.
    """
    memory = device_memory(devices)
    if memory is None:
        return
    found = make_plan(
        options, config, devices=len(devices), platform=devices[0].platform, prm_config=prm_config,
        online_prm=online_prm,
    )  # fmt: skip
    if found.peak <= memory:
        return
    largest = ", ".join(f"{cause} {gib(size)}" for cause, size in found.causes()[:3])
    helps = "; ".join(f"{remedy.option} (saves {gib(remedy.saves)})" for remedy in remedies(found)[:3])
    advice = f"What helps most: {helps or 'more devices (--mesh.fsdp)'}. prm-jax plan shows all causes"
    if found.least > memory:
        raise UserError(
            f"this run cannot fit: it needs at least {gib(found.least)} per device by arithmetic, of which there are "
            f"{gib(memory)}. Largest: {largest}. {advice}"
        )
    _LOG.warning(
        "this run may not fit: it needs about %s per device by arithmetic, of which there are %s. Largest: %s. %s",
        gib(found.peak), gib(memory), largest, advice,
    )  # fmt: skip


def device_memory(devices: Sequence[Any]) -> float | None:
    """Bytes per device that a run can use, or None where it is not known."""
    if devices[0].platform == "cpu":
        return host()["memory_gib"] * GIB / len(devices)
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices if _is_local(device)]
    known = [limit for limit in limits if limit]
    return float(min(known)) if known else None


def _is_local(device: Any) -> bool:
    return device.process_index == jax.process_index()


def _variants(work: Workload) -> list[tuple[str, Callable[[Options], Options]]]:
    """(spelling, change of the options) of everything that may help."""
    options, mesh = work.options, work.mesh
    devices = math.prod(mesh.shape.values())
    rank = 16
    found = [
        ("--model.remat full", _change("model", remat="full")),
        ("--model.compute-dtype bfloat16", _change("model", compute_dtype="bfloat16")),
        ("--model.attention auto", _change("model", attention="auto")),
        (f"--model.lora-rank {rank}", _change("model", lora_rank=rank)),
        (f"--prm.lora-rank {rank}", _change("prm", lora_rank=rank)),
        ("--rollout.filter resample", _change("rollout", filter="resample")),
        _mesh_of(mesh, fsdp=devices),
        _mesh_of(mesh, data=devices),
    ]
    ways = math.gcd(devices, work.config.num_experts)
    if ways > 1:
        found.append(_mesh_of(mesh, expert=ways, fsdp=devices // ways))
    found += _smaller_states(work)
    if options.model.quantize == "none" and (options.prm.lora_rank or not work.online_prm):
        found.append(("--model.quantize int4", _change("model", quantize="int4")))
    if options.model.lora_rank:
        found = [(name, change) for name, change in found if not name.startswith("--model.lora")]
    if options.prm.lora_rank or not work.online_prm:
        found = [(name, change) for name, change in found if not name.startswith("--prm.lora")]
    if options.rollout.filter != "oversample":
        found = [(name, change) for name, change in found if not name.startswith("--rollout.filter")]
    if options.rollout.slots:
        found.append(("--rollout.slots 0 (the default)", _change("rollout", slots=0)))
    if samples_in_slots(options.rollout, mesh.shape) and options.rollout.cache_dtype == "auto":
        found.append(("--rollout.cache-dtype int8", _change("rollout", cache_dtype="int8")))
    if work.online_prm and options.prm.replay:
        found.append(("--prm.replay 0", _change("prm", replay=0)))
    return found + _smaller_pieces(work)


def _mesh_of(mesh: AbstractMesh, **sizes: int) -> tuple[str, Callable[[Options], Options]]:
    """Another mesh; axes that are not named get one device."""
    sizes |= {axis: 1 for axis in mesh.axis_names if axis not in sizes}
    return " ".join(f"--mesh.{axis} {size}" for axis, size in sizes.items()), _change("mesh", **sizes)


def _smaller_pieces(work: Workload) -> list[tuple[str, Callable[[Options], Options]]]:
    """Options that divide updates into pieces of fewer rows."""
    budgets = (work.options.policy.microbatch_tokens, work.options.prm.microbatch_tokens)
    if any(budgets):
        if max(budgets) <= work.columns:
            return []
        least = work.columns
        change = _both_learners(microbatches=1, microbatch_tokens=least)
        return [(f"--policy.microbatch-tokens {least} --prm.microbatch-tokens {least}", change)]
    pieces = _most_pieces(work)
    if not pieces:
        return []
    policy, prm = pieces
    return [(
        f"--policy.microbatches {policy} --prm.microbatches {prm}",
        lambda given: _change("prm", microbatches=prm)(_change("policy", microbatches=policy)(given)),
    )]  # fmt: skip


def _both_learners(**fields: Any) -> Callable[[Options], Options]:
    return lambda given: _change("prm", **fields)(_change("policy", **fields)(given))


def _smaller_states(work: Workload) -> list[tuple[str, Callable[[Options], Options]]]:
    """Options that store optimiser states in fewer bytes, or in the host's memory."""
    options, found = work.options, []
    learning = [("policy", options.policy)] + [("prm", options.prm)] * work.online_prm
    for name, part in learning:
        if part.moments != "int8":
            found.append((f"--{name}.moments int8", _change(name, moments="int8")))
        replays = name == "prm" and options.prm.replay  # updates between which a state would move back and forth
        if not part.offload and work.platform != "cpu" and not replays:
            found.append((f"--{name}.offload", _change(name, offload=True)))
    if work.platform != "cpu" and not (options.model.lora_rank or options.prm.lora_rank):
        found.append(("--model.offload-reference", _change("model", offload_reference=True)))
    return found


def _most_pieces(work: Workload) -> tuple[int, int] | None:
    """Microbatches of policy and PRM with the fewest rows each, of those that divide and keep every device busy."""
    shards = rows_over(work.mesh)
    options = work.options
    counts = []
    for part in (options.policy, options.prm):
        unit = work.rows // part.minibatches
        if part is options.prm and options.prm.loss != "ce":
            unit = options.rollout.prompts_per_step // part.minibatches
        fitting = [n for n in range(1, unit + 1) if unit % n == 0 and (unit // n) % shards == 0]
        counts.append(max([part.microbatches, *fitting]))
    more = counts != [options.policy.microbatches, options.prm.microbatches]
    return (counts[0], counts[1]) if more else None


def _change(group: str, **fields: Any) -> Callable[[Options], Options]:
    def change(options: Options) -> Options:
        part = dataclasses.replace(getattr(options, group), **fields)
        return dataclasses.replace(options, **{group: part})

    return change


def _replanned(current: Plan, change: Callable[[Options], Options]) -> Plan | None:
    """The plan with changed options, or None where they cannot work for this model."""
    work, options = current.work, change(current.work.options)
    try:
        return make_plan(
            options, work.config, devices=math.prod(work.mesh.shape.values()), platform=work.platform,
            prm_config=work.prm_config, online_prm=work.online_prm, processes=work.processes,
        )  # fmt: skip
    except UserError:
        return None


def gib(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / GIB:.3g} GiB" if size >= GIB / 100 else f"{size / 2**20:.3g} MiB"
