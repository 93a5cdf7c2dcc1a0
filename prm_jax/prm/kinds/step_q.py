"""Step-wise preferences on the log-ratio: which of two steps after the same prefix is better.

Step-DPO, arXiv 2406.18629; step-level Q values of agents, arXiv 2409.09345.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import jax

from prm_jax import rl
from prm_jax.data.step_data import StepRecord
from prm_jax.option_ranges import at_least, within
from prm_jax.prm.data import step_pairs
from prm_jax.prm.kinds.implicit import LogRatioKind
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import Needs, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepQ(LogRatioKind):
    """DPO on single steps."""

    kind: Literal["step_q"] = "step_q"
    pairs: Literal["first_error", "siblings"] = "first_error"
    """first_error: every right step against every wrong step after a shared prefix; siblings: only the best against
    the worst of them."""
    pair_margin: Annotated[float, at_least(0)] = 0.5
    """Least difference of the labels of two steps."""
    label_smoothing: Annotated[float, within(0, 0.5, high_open=True)] = 0.0
    """Label smoothing of the loss, in [0, 1/2)."""

    learns_from: ClassVar[Needs] = "step_pairs"
    only_last: ClassVar[bool] = True

    def select_records(self, records: Sequence[StepRecord]) -> list[StepRecord]:
        """Pairs of records that differ in their last step."""
        return step_pairs(records, how=self.pairs, margin=self.pair_margin)

    def training_loss(self, spec: Spec, found: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
        """DPO: a group is a pair of rows that differ in their last step, which alone has tokens."""
        del spec, constant
        return rl.all_pairs_loss(
            self.beta * found.sum(-1), batch.outcome, batch.group_ids, num_groups=batch.outcome.shape[0],
            label_smoothing=self.label_smoothing,
        )  # fmt: skip
