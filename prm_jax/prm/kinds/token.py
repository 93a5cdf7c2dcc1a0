"""A class at the end of every step: right or wrong.

arXiv 2211.14275, 2312.08935, and TRL's stepwise supervision.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.option_ranges import within
from prm_jax.prm.forward import class_logits, init_head
from prm_jax.prm.rows import Batch, Row, through_first_error
from prm_jax.prm.spec import HeadedKind, Needs, Output, Spec, Weights
from prm_jax.runs.learner import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Token(HeadedKind):
    """Cross-entropy on step labels."""

    kind: Literal["token"] = "token"
    labels: Literal["soft", "hard"] = "soft"
    """Step labels as they are, or 1 above the threshold and 0 otherwise."""
    label_threshold: Annotated[float, within(0, 1, high_open=True)] = 0.5
    """A step is right when its label is greater (hard labels)."""
    mask_after_error: bool = True
    """Ignore the labels of steps after the first one with a label below 0.5."""

    learns_from: ClassVar[Needs] = "labels"
    output: ClassVar[Output] = "probability"
    default_aggregate: ClassVar = "min"
    whole: ClassVar[bool] = False

    def select_labels(self, rows: Sequence[Row]) -> list[Row]:
        """Without the labels after the first wrong step, if the options say so."""
        return [through_first_error(row) for row in rows] if self.mask_after_error else list(rows)

    def init(self, spec: Spec, key: jax.Array) -> tuple[Params, Params]:
        """A head with two classes, (wrong, right); none where two vocabulary entries are the classes."""
        return ({} if spec.label_ids else init_head(spec, key, num_outputs=2)), {}

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
        """[R, S, 2] float32 logits of (wrong, right)."""
        return class_logits(spec, weights, batch)

    def training_loss(self, spec: Spec, found: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
        """Cross-entropy, a mean over all labelled steps (as TRL's, which truncates soft labels to integers)."""
        del spec, constant
        threshold = self.label_threshold if self.labels == "hard" else None
        return rl.step_ce_loss(found, batch.labels, batch.label_mask, threshold=threshold)

    def scores(self, spec: Spec, found: jax.Array, batch: Batch) -> jax.Array:
        """[R, S] in [0, 1]: the probability that the step is right."""
        del spec
        return jnp.where(batch.step_mask, jax.nn.sigmoid(found[..., 1] - found[..., 0]), 0.0)
