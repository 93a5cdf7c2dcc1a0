"""A score whose differences are the logits of preferences: Bradley and Terry, 1952.

Preferences between stated confidences, PPO-M: arXiv 2410.09724.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.data.step_data import StepRecord
from prm_jax.option_ranges import within
from prm_jax.prm.forward import at_last
from prm_jax.prm.kinds.outcome import ScoreKind
from prm_jax.prm.reward_model_options import BaseOptions, OptimizerOptions
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import Needs, Output, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class BradleyTerry(ScoreKind):
    """Preferences within a group."""

    kind: Literal["bradley_terry"] = "bradley_terry"
    label_smoothing: Annotated[float, within(0, 0.5, high_open=True)] = 0.0
    """Label smoothing of the loss, in [0, 1/2)."""
    confidence: str = ""
    """Text of a stated confidence, with {score}, such as "\\nConfidence: {score}". Then right solutions are preferred
    with a high confidence, and wrong ones with a low one (PPO-M); empty: solutions are compared as they are."""
    high: str = "9"
    """{score} of a high confidence."""
    low: str = "1"
    """{score} of a low confidence."""

    learns_from: ClassVar[Needs] = "groups"
    output: ClassVar[Output] = "score"

    def problems(self, model: BaseOptions, train: OptimizerOptions) -> list[str]:
        """A stated confidence has a place for the number."""
        del model, train
        if self.confidence and "{score}" not in self.confidence:
            return [f"--prm.confidence {self.confidence!r} has no {{score}}: where is the confidence written?"]
        if self.confidence and self.high == self.low:
            return [f"--prm.high and --prm.low are both {self.high!r}: there would be nothing to prefer"]
        return []

    def select_records(self, records: Sequence[StepRecord]) -> list[StepRecord]:
        """The solutions, or each of them with a high and a low confidence, in a group of its own."""
        if not self.confidence:
            return list(records)
        found = []
        for record in records:
            if record.outcome is None:
                continue
            right = record.outcome > 0.5
            for score, outcome in ((self.high, right), (self.low, not right)):
                last = record.steps[-1] + self.confidence.replace("{score}", score)
                found.append(
                    dataclasses.replace(
                        record, steps=(*record.steps[:-1], last), outcome=float(outcome), group=record.id,
                        id=f"{record.id}/{score}",
                    )
                )  # fmt: skip
        return found

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
