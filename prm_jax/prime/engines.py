"""What a run samples with, from its options."""

from jax.sharding import Mesh

from prm_jax.models.sharding import rows_over
from prm_jax.prime.options import Options
from prm_jax.prime.start import Start
from prm_jax.rollouts.slot_source import EngineSource, SlotSource, default_slots
from prm_jax.runs import processes


def make_engines(options: Options, start: Start, mesh: Mesh | None) -> EngineSource | None:
    """The engines of ``--rollout.engine``; None for ``models.generate``.

    Args:
      options: of the run.
      start: task, tokenizer and architecture.
      mesh: devices of the run, or None for one.
    """
    rollout = options.rollout
    divided = mesh is not None and mesh.shape["fsdp"] > 1
    if rollout.engine == "generate" or (rollout.engine == "auto" and divided):
        return None
    slots = slots_of(options, mesh)
    return SlotSource(
        start.config, start.tokenizer, start.task.stop, slots=slots,
        columns=rollout.max_prompt_tokens + rollout.max_new_tokens,
    )  # fmt: skip


def slots_of(options: Options, mesh: Mesh | None) -> int:
    """The number of slots per process: ``--rollout.slots``, or as many as suit its share of a step's responses."""
    rollout, count = options.rollout, processes.count()
    ways = 1 if mesh is None else max(1, rows_over(mesh) // count)
    rows = rollout.prompts_per_step * rollout.samples_per_prompt
    return rollout.slots or default_slots(-(-rows // count), ways)
