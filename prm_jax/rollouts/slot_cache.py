"""The device's side of `SlotEngine`: keys and values of the slots, and the programs that read and write them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from prm_jax.errors import UserError
from prm_jax.models import ModelConfig
from prm_jax.rollouts import slot_programs as programs

Place = tuple[int, programs.Cache, int]
"""A slot, a prefill, and the index of the slot's text in it."""

LANES = 8
"""Maximum number of texts that one call copies into slots."""


class SlotCache:
    """Keys and values of a number of slots that may shrink and grow between calls.

    Args:
      config: the model.
      sizes: numbers of slots that are compiled, in ascending order; the last is the maximum.
      dtype: of keys and values.
      sharding: from `slot_placement.cache_sharding`; None on one device.

    Attributes:
      size: current number of slots, one of `sizes`.
      columns: maximum length of a text with its response; 0 before the first `widen`.
    """

    def __init__(
        self, config: ModelConfig, sizes: Sequence[int], dtype: str, sharding: NamedSharding | None
    ) -> None:
        self.config, self.sizes, self.dtype, self.sharding = config, tuple(sizes), dtype, sharding
        self.size, self.columns = self.sizes[-1], 0
        self._cache: programs.Cache | None = None

    def widen(self, columns: int) -> None:
        """Makes room for longer texts; what the slots held is lost."""
        self._cache, self.columns, self.size = None, columns, self.sizes[-1]

    def free(self) -> None:
        """Frees the memory until the next use; what the slots held is lost."""
        self._cache, self.size = None, self.sizes[-1]

    @property
    def arrays(self) -> programs.Cache:
        """The cache, allocated when it is first used.

        Raises:
          UserError: it does not fit.
        """
        if self._cache is None:
            try:
                self._cache = programs.empty_cache(
                    self.config, slots=self.size, columns=self.columns, dtype=self.dtype, sharding=self.sharding
                )
                jax.block_until_ready(self._cache)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                size = programs.cache_bytes(self.config, self.size, self.columns, self.dtype)
                raise UserError(
                    f"{self.size} slots of {self.columns} columns need {size / 2**30:.2f} GiB for keys and values, "
                    "which do not fit: use fewer slots or columns, or cache_dtype bfloat16, int8 or int4"
                ) from error
        return self._cache

    def insert(self, places: Sequence[Place]) -> None:
        """Copies texts to slots, in calls of one shape per shape of the prefill."""
        by_prefill: dict[int, list[Place]] = {}
        for place in places:
            by_prefill.setdefault(id(place[1]), []).append(place)
        lanes = min(self.sizes[-1], LANES)
        for group in by_prefill.values():
            for start in range(0, len(group), lanes):
                part = group[start : start + lanes]
                rest = lanes - len(part)
                into = np.array([slot for slot, _, _ in part] + [self.size] * rest, np.int32)
                source = np.array([index for _, _, index in part] + [0] * rest, np.int32)
                self._cache = programs.insert(self.arrays, part[0][1], into, source, sharding=self.sharding)

    def resize(self, size: int, kept: Sequence[int]) -> None:
        """Changes the number of slots; old slot `kept[i]` becomes slot i, and the others are empty."""
        rows = np.zeros(size, np.int32)
        rows[: len(kept)] = kept
        self._cache, self.size = programs.gather(self.arrays, rows, sharding=self.sharding), size

    def run(
        self, packed: Any, slots: programs.Slots, forced: np.ndarray, rules: programs.Rules, live_at: int,
        *, feed_last: bool,
    ) -> tuple[programs.Slots, programs.Written]:  # fmt: skip
        """See `slot_programs.run`; the results as NumPy arrays."""
        self._cache, after, written = programs.run(
            self.config, packed, self.arrays, slots, forced, rules, np.int32(live_at), sharding=self.sharding,
            feed_last=feed_last,
        )  # fmt: skip
        return jax.device_get((after, written))
