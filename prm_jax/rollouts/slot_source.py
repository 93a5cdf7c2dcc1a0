"""The slot engine of a run: made once, and given new weights, keys and temperatures between uses."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax

from prm_jax.models import ModelConfig
from prm_jax.rollouts.engine import Engine, EngineStats
from prm_jax.rollouts.sampling_options import SamplingOptions
from prm_jax.rollouts.slot_options import SlotTuning
from prm_jax.rollouts.slots import SlotEngine

if TYPE_CHECKING:
    from jax.sharding import Mesh


class EngineSource(Protocol):
    """Provides the engine of a run for one use after another."""

    @property
    def streams(self) -> bool:
        """Whether requests may be added while others are sampled; otherwise they are sampled in rounds."""
        ...

    @property
    def ordered(self) -> bool:
        """Whether the last bits of a response depend on what else is asked, which then must not depend on timing."""
        ...

    def prepare(self, params: Any, sampling: SamplingOptions) -> Engine:
        """The engine, idle, with these weights."""
        ...

    def draw_with(self, key: jax.Array) -> None:
        """Requests that are submitted from now on draw from this key."""
        ...

    def release(self) -> None:
        """Frees the memory of an idle engine until it is prepared again."""
        ...

    def stats(self) -> EngineStats:
        """Counters of the engine."""
        ...

    def metrics(self) -> dict[str, float]:
        """More ``rollout/...`` metrics of what the engine has done since the last call."""
        ...


class SlotSource:
    """An `EngineSource` of one `SlotEngine` in this process.

    Args:
      config: the model.
      tokenizer: of the model.
      stop: strings that end a response.
      slots: B, see `SlotEngine`.
      columns: maximum length of a prompt with its response.
      mesh: devices of the engine; None for the parameters' own.
      tuning: see `SlotTuning`.
    """

    streams = True

    def __init__(
        self, config: ModelConfig, tokenizer: Any, stop: Sequence[str], *, slots: int, columns: int,
        mesh: "Mesh | None" = None, tuning: SlotTuning = SlotTuning(),
    ) -> None:  # fmt: skip
        self.config, self.tokenizer, self.stop, self.slots = config, tokenizer, tuple(stop), slots
        self.columns, self.mesh, self.tuning = min(columns, config.context), mesh, tuning
        self._engine: SlotEngine | None = None
        self._leaves: list[Any] = []

    @property
    def ordered(self) -> bool:
        """See `EngineSource`: True where responses are moved into fewer slots."""
        return self._engine is None or self._engine.several_sizes

    def prepare(self, params: Any, sampling: SamplingOptions) -> SlotEngine:
        """See `EngineSource`; made when it is first needed.

        Raises:
          UserError: its cache does not fit.
        """
        leaves = jax.tree.leaves(params)
        if self._engine is None:
            self._engine = SlotEngine(
                self.config, params, slots=self.slots, columns=self.columns, key=jax.random.key(0), sampling=sampling,
                stops=(self.stop,), tokenizer=self.tokenizer, mesh=self.mesh, tuning=self.tuning,
            )  # fmt: skip
        elif len(leaves) != len(self._leaves) or any(a is not b for a, b in zip(leaves, self._leaves, strict=True)):
            self._engine.update(params, self._engine.version + 1)
        self._leaves = leaves
        if sampling != self._engine.sampling:
            self._engine.draw_with(self._engine.key, sampling)
        return self._engine

    def draw_with(self, key: jax.Array) -> None:
        """See `EngineSource`."""
        assert self._engine is not None, "prepare the engine first"
        self._engine.draw_with(key)

    def release(self) -> None:
        """See `EngineSource`."""
        if self._engine is not None:
            self._engine.release()
            self._leaves = []

    def stats(self) -> EngineStats:
        """See `EngineSource`."""
        return EngineStats() if self._engine is None else self._engine.stats()

    def metrics(self) -> dict[str, float]:
        """See `EngineSource`: none."""
        return {}
