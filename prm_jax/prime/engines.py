"""What a run samples with, from its options."""

from jax.sharding import Mesh

from prm_jax.models.sharding import rows_over
from prm_jax.prime.options import Options
from prm_jax.prime.start import Start
from prm_jax.rollouts.slot_source import EngineSource, SlotSource, default_slots


def make_engines(options: Options, start: Start, mesh: Mesh | None) -> EngineSource | None:
    """The engines of ``--rollout.engine``; None for ``models.generate``.

    Args:
      options: of the run.
      start: task, tokenizer and architecture.
      mesh: devices of the run, or None for one.
    """
    rollout, ways = options.rollout, 1 if mesh is None else rows_over(mesh)
    if rollout.engine == "generate":
        return None
    slots = rollout.slots or default_slots(rollout.prompts_per_step * rollout.samples_per_prompt, ways)
    return SlotSource(
        start.config, start.tokenizer, start.task.stop, slots=slots,
        columns=rollout.max_prompt_tokens + rollout.max_new_tokens, mesh=mesh,
    )  # fmt: skip
