"""The value of the state after every step: the chance of success.

Tanh values: AlphaMath, arXiv 2405.03553; quantiles: arXiv 2103.00083; ensembles and their lower confidence bound: arXiv
2110.04135.
"""

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl, stats
from prm_jax.option_ranges import at_least
from prm_jax.prm.forward import apply_head, init_head, judged, read_hidden
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import HeadedKind, Needs, Output, Spec, Weights
from prm_jax.runs.learner import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value(HeadedKind):
    """Regression of step values on labels or outcomes."""

    kind: Literal["value"] = "value"
    value: Literal["bce", "tanh", "quantile", "twin", "ensemble"] = "bce"
    """bce: success probability by cross-entropy; tanh: tanh value by squared error, targets in [-1, 1]; quantile:
    quantiles by the pinball loss; twin: two probabilities, of which the smaller is the score; ensemble: several with
    different initialisations, scored by a lower confidence bound."""
    members: Annotated[int, at_least(1)] = 4
    """Members of an ensemble. They differ only by their initialisation, so give the head two layers."""
    pessimism: Annotated[float, at_least(0)] = 1.0
    """Standard deviations subtracted from an ensemble's mean."""
    quantiles: Annotated[int, at_least(1)] = 5
    """Number of quantiles, at levels (k + 1/2) / n; the score is their mean."""

    learns_from: ClassVar[Needs] = "either"
    output: ClassVar[Output] = "value"
    default_aggregate: ClassVar = "last"
    whole: ClassVar[bool] = False

    def init(self, spec: Spec, key: jax.Array) -> tuple[Params, Params]:
        """A head with one output, one per quantile, or several with different initialisations."""
        several = {"quantile": self.quantiles, "twin": 2, "ensemble": self.members}
        apart = self.value in ("twin", "ensemble")
        return init_head(spec, key, num_outputs=several.get(self.value, 1), random=apart), {}

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
        """[R, S, outputs] float32, unbounded."""
        return apply_head(spec, weights.head, read_hidden(spec, weights, batch)[0])

    def training_loss(self, spec: Spec, found: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
        """Regression of every step's value on its label, or on the outcome where the step has none.

        The outcome of the rollout is an unbiased target of the value under the policy that sampled it.
        """
        del spec, constant
        known = judged(batch)
        target = jnp.where(batch.label_mask, batch.labels, batch.outcome[:, None])
        mask = batch.step_mask & (batch.label_mask | known[:, None])
        if self.value == "quantile":
            return stats.pinball_loss(found, target, mask, levels=self.levels())
        if self.value == "tanh":
            return rl.value_loss(found[..., 0], 2 * target - 1, mask, kind="tanh_mse")
        outputs = [rl.value_loss(found[..., k], target, mask, kind="bce") for k in range(found.shape[-1])]
        return rl.Loss(sum((x.total for x in outputs), jnp.float32(0)), outputs[0].weight)

    def scores(self, spec: Spec, found: jax.Array, batch: Batch) -> jax.Array:
        """[R, S]: the estimated chance of success (tanh values moved to [0, 1]; quantiles averaged; the lower twin; an
        ensemble's lower confidence bound, at least 0).
        """
        del spec
        if self.value == "quantile":
            chance = found.mean(-1)
        elif self.value == "tanh":
            chance = 0.5 * (jnp.tanh(found[..., 0]) + 1)
        elif self.value == "twin":
            chance = jax.nn.sigmoid(rl.twin(found[..., 0], found[..., 1], how="min"))
        elif self.value == "ensemble":
            members = jax.nn.sigmoid(jnp.moveaxis(found, -1, 0))
            chance = jnp.maximum(rl.pessimistic_rewards(members, coefficient=self.pessimism)[0], 0.0)
        else:
            chance = jax.nn.sigmoid(found[..., 0])
        return jnp.where(batch.step_mask, chance, 0.0)

    def levels(self) -> jax.Array:
        """The levels of the quantiles, (k + 1/2) / n."""
        return (jnp.arange(self.quantiles, dtype=jnp.float32) + 0.5) / self.quantiles
