"""The outcome, predicted at the end of the response: an outcome reward model, arXiv 2110.14168."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.prm.forward import apply_head, at_last, init_head, judged, read_hidden
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import HeadedKind, Needs, Output, Spec, Weights
from prm_jax.runs.learner import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreKind(HeadedKind):
    """Base of kinds with a head of one output, of which only the value after the last step is trained."""

    default_aggregate: ClassVar = "last"
    step_scores: ClassVar[bool] = False

    def init(self, spec: Spec, key: jax.Array) -> tuple[Params, Params]:
        """A head with one output."""
        return init_head(spec, key, num_outputs=1), {}

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
        """[R, S] float32: the head after every step."""
        return apply_head(spec, weights.head, read_hidden(spec, weights, batch)[0])[..., 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome(ScoreKind):
    """Cross-entropy on the outcome."""

    kind: Literal["outcome"] = "outcome"

    learns_from: ClassVar[Needs] = "outcome"
    output: ClassVar[Output] = "probability"

    def training_loss(self, spec: Spec, found: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
        """Cross-entropy of the last step's score with the outcome."""
        del spec, constant
        return rl.outcome_ce_loss(at_last(found, batch)[:, None], batch.outcome, judged(batch)[:, None])

    def scores(self, spec: Spec, found: jax.Array, batch: Batch) -> jax.Array:
        """[R, S] in [0, 1]."""
        del spec
        return jnp.where(batch.step_mask, jax.nn.sigmoid(found), 0.0)
