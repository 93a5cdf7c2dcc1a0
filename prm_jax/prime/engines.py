"""What a run samples with, from its options."""

import dataclasses

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from prm_jax.errors import UserError
from prm_jax.models.sharding import rows_over
from prm_jax.prime.options import Options
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.sizes import samples_in_slots, slots_per_process
from prm_jax.prime.start import Start
from prm_jax.prime.turns import Turns, make_turns
from prm_jax.rollouts.remote_source import RemoteSource
from prm_jax.rollouts.server_options import is_url
from prm_jax.rollouts.slot_options import SlotTuning
from prm_jax.rollouts.slot_source import EngineSource, SlotSource
from prm_jax.runs import processes


def sampling_parts(options: Options, start: Start, mesh: Mesh | None) -> tuple[EngineSource | None, Turns | None]:
    """(the engines of a run, what answers to the policy's actions); see `Sampler`.

    Raises:
      UserError: turns without slots, a server that cannot be used, or devices that are not there.
    """
    rollout = options.rollout
    if rollout.max_lag:
        background_engines(options, start, mesh)  # used later; what it refuses must not be found after the warm start
    turns = make_turns(rollout.turns, start.task, start.tokenizer, rollout.max_new_tokens)
    if turns is None:
        return make_engines(options, start, mesh), None
    if rollout.engine not in ("auto", "slots") or rollout.max_lag:
        raise UserError(
            f"responses in turns (an environment of the task, or --rollout.turns.tool) are sampled in slots: found "
            f"--rollout.engine {rollout.engine} and --rollout.max-lag {rollout.max_lag}, expected slots and 0"
        )
    return SlotSource(
        start.config, start.tokenizer, turns.stop, slots=slots_of(options, mesh),
        columns=rollout.max_prompt_tokens + rollout.max_new_tokens,
        tuning=dataclasses.replace(_tuning(options), hold=(0,)),
    ), turns  # fmt: skip


def make_engines(options: Options, start: Start, mesh: Mesh | None) -> EngineSource | None:
    """The engines of ``--rollout.engine``; None for ``models.generate``.

    Args:
      options: of the run.
      start: task, tokenizer and architecture.
      mesh: devices of the run, or None for one.
    """
    rollout = options.rollout
    if is_url(rollout.engine):
        return _server(options, start)
    if not samples_in_slots(rollout, {} if mesh is None else mesh.shape):
        return None
    slots = slots_of(options, mesh)
    return SlotSource(
        start.config, start.tokenizer, start.task.stop, slots=slots,
        columns=rollout.max_prompt_tokens + rollout.max_new_tokens, tuning=_tuning(options),
    )  # fmt: skip


def background_engines(options: Options, start: Start, mesh: Mesh | None) -> SlotSource:
    """The engine of ``--rollout.max-lag``: on the devices that only sample, or on those of the run.

    Raises:
      UserError: more devices than there are, or some that train too.
    """
    rollout, own = options.rollout, mesh
    if processes.count() > 1:
        raise UserError(
            f"--rollout.max-lag samples in the background of one process, but {processes.count()} train: leave it out, "
            "or train in one process"
        )
    if rollout.devices:
        training = set(jax.devices()[:1]) if mesh is None else set(mesh.devices.flat)
        sampling = jax.devices()[-rollout.devices :]
        if len(sampling) < rollout.devices or training & set(sampling):
            raise UserError(
                f"--rollout.devices {rollout.devices} needs as many devices that do not train: there are "
                f"{len(jax.devices())}, and --mesh.* uses {len(training)}"
            )
        own = Mesh(
            np.array(sampling).reshape(-1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
        )  # fmt: skip
    return SlotSource(
        start.config, start.tokenizer, start.task.stop, slots=slots_of(options, own),
        columns=rollout.max_prompt_tokens + rollout.max_new_tokens, mesh=own,
        tuning=_tuning(options),
    )  # fmt: skip


def slots_of(options: Options, mesh: Mesh | None) -> int:
    """The number of slots per process."""
    count = processes.count()
    ways = 1 if mesh is None else max(1, rows_over(mesh) // count)
    return slots_per_process(options.rollout, ways=ways, processes=count, platform=jax.default_backend())


def _tuning(options: Options) -> SlotTuning:
    kind = options.rollout.cache_dtype
    return SlotTuning(cache_dtype=None if kind == "auto" else kind)


def _server(options: Options, start: Start) -> RemoteSource:
    """The server of the run, probed with the task's first prompts."""
    if jax.process_count() > 1:
        raise UserError(
            f"--rollout.engine {options.rollout.engine} serves one process, but {jax.process_count()} train: sample in "
            "the processes themselves (slots or generate), or train in one process"
        )
    rollout = options.rollout
    sampler = Sampler(start.task, start.tokenizer, start.config, rollout.max_prompt_tokens, rollout.max_new_tokens)
    problems = sampler.fitting([start.task.train[i] for i in range(min(len(start.task.train), rollout.server.probe))])
    return RemoteSource(
        rollout.engine, start.config, start.tokenizer, start.task.stop, options=rollout.server,
        connection=options.connection, probe_prompts=[sampler.encode(problem) for problem in problems],
        model_path=options.model.path, adapters=options.model.lora_rank > 0,
    )  # fmt: skip
