"""Tuning and counters of `SlotEngine`."""

import dataclasses
import math

from prm_jax.errors import UserError
from prm_jax.rollouts.engine import EngineStats


@dataclasses.dataclass(frozen=True)
class SlotTuning:
    """How `SlotEngine` spends time and memory. No choice but `cache_dtype` changes a response beyond rounding.

    Attributes:
      steps_per_call: maximum number of decode steps between two looks at what has ended.
      refill_share: share of the slots that must be free before a call ends early to refill them.
      prefill_tokens: prompts are read in batches of about this many tokens, at least one prompt.
      cache_dtype: of keys and values; None for the model's compute dtype. "bfloat16" halves the memory of
        float32, "int8" (a scale per slot, head and column) takes about a quarter, "int4" (with smoothed keys) an
        eighth. The log-probabilities are still those that tokens were drawn from, and differ from those of the whole
        model.
      hold: stop sets whose responses keep their slots after a stop string, for `SlotEngine.extend`.
      sizes: shares of the slots that are compiled too: when few responses are left, they are moved into fewer slots.
        Pays where a step takes time in proportion to the slots. None for a half, a quarter and an eighth on a CPU, and
        for all slots only on accelerators and over a mesh. With several sizes the last bits of a response depend on
        what else is asked.
    """

    steps_per_call: int = 32
    refill_share: float = 0.125
    prefill_tokens: int = 256
    cache_dtype: str | None = None
    hold: tuple[int, ...] = ()
    sizes: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("steps_per_call", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: expected at least 1")
        if not 0 <= self.refill_share <= 1:
            raise UserError(f"refill_share is {self.refill_share}: expected a number in [0, 1]")
        if self.sizes is not None and not all(0 < share <= 1 for share in self.sizes):
            raise UserError(f"sizes is {self.sizes}: expected shares in (0, 1] of the slots")
        known = ("float32", "bfloat16", "float16", "int8", "int4")
        if self.cache_dtype not in (None, *known):
            raise UserError(f"cache_dtype is {self.cache_dtype!r}: expected {', '.join(known)} or None")


@dataclasses.dataclass
class SlotStats(EngineStats):
    """Counters of a `SlotEngine`; `slot_steps` are the decode steps times the slots in use.

    Attributes:
      steps: decode steps.
      moves: changes of the number of slots in use.
      prefill_tokens: tokens read by prefills, padding included.
      forced_tokens: in completed responses, given by the caller.
      wasted_tokens: in cancelled responses, or dropped when the weights changed.
    """

    steps: int = 0
    moves: int = 0
    prefill_tokens: int = 0
    forced_tokens: int = 0
    wasted_tokens: int = 0


def default_slots(rows: int, ways: int = 1, *, most: int = 256) -> int:
    """The number of slots for this many responses: as many, up to `most`, in multiples of 8 and of `ways`."""
    step = math.lcm(8, ways)
    return -(-min(rows, most) // step) * step
