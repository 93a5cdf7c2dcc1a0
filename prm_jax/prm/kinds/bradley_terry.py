"""A score whose differences are the logits of preferences: Bradley and Terry, 1952."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.option_ranges import within
from prm_jax.prm.forward import at_last
from prm_jax.prm.kinds.outcome import ScoreKind
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import Needs, Output, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class BradleyTerry(ScoreKind):
    """Preferences within a group."""

    kind: Literal["bradley_terry"] = "bradley_terry"
    label_smoothing: Annotated[float, within(0, 0.5, high_open=True)] = 0.0
    """Label smoothing of the loss, in [0, 1/2)."""

    learns_from: ClassVar[Needs] = "groups"
    output: ClassVar[Output] = "score"

    def training_loss(self, spec: Spec, found: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
        """-log sigmoid(better - worse) over all pairs of a group with different outcomes."""
        del spec, constant
        return rl.all_pairs_loss(
            at_last(found, batch), batch.outcome, batch.group_ids, num_groups=batch.outcome.shape[0],
            label_smoothing=self.label_smoothing,
        )  # fmt: skip

    def scores(self, spec: Spec, found: jax.Array, batch: Batch) -> jax.Array:
        """[R, S], unbounded; the difference of two is the logit of a preference."""
        del spec
        return jnp.where(batch.step_mask, found, 0.0)
