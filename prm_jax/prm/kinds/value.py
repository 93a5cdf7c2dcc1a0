"""The value of the state after every step: the chance of success.

Tanh values: AlphaMath, arXiv 2405.03553; quantiles: arXiv 2103.00083; ensembles and their lower confidence bound: arXiv
2110.04135; weights by the inverse variance of the labels: arXiv 2303.10165.
"""

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from prm_jax import rl, stats
from prm_jax.option_ranges import above, at_least
from prm_jax.prm.forward import apply_head, init_head, judged, read_hidden
from prm_jax.prm.reward_model_options import BaseOptions, OptimizerOptions
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

    weigh: bool = False
    """Weigh each label by the inverse variance of its mean over provenance.total rollouts (not quantile)."""
    variance_floor: Annotated[float, above(0)] = 0.05
    """Standard deviation below which a label is not trusted more; also what labels without a count are taken to have
    (weigh)."""

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
        if self.weigh and self.value != "quantile":
            return self._weighted_loss(found, target, mask, batch)
        if self.value == "quantile":
            return stats.pinball_loss(found, target, mask, levels=self.levels())
        if self.value == "tanh":
            return rl.value_loss(found[..., 0], 2 * target - 1, mask, kind="tanh_mse")
        outputs = [rl.value_loss(found[..., k], target, mask, kind="bce") for k in range(found.shape[-1])]
        return rl.Loss(sum((x.total for x in outputs), jnp.float32(0)), outputs[0].weight)

    def problems(self, model: BaseOptions, train: OptimizerOptions) -> list[str]:
        """Quantiles have no weights."""
        del model, train
        if self.weigh and self.value == "quantile":
            return ["--prm.weigh is for values with a mean: leave it out with --prm.value quantile"]
        return []

    def _weighted_loss(self, found: jax.Array, target: jax.Array, mask: jax.Array, batch: Batch) -> rl.Loss:
        """The regression with weights 1 / variance, whose mean over the steps in the batch is 1."""
        counts = jnp.where(batch.label_mask, batch.label_counts, 0.0)
        rate = (counts * target + 0.5) / (counts + 1.0)  # half a right and half a wrong rollout more
        variance = jnp.where(counts > 0, rate * (1 - rate) / jnp.maximum(counts, 1.0), 0.0)
        weights = stats.variance_weights(variance, jnp.zeros_like(variance), gamma=0.0, floor=self.variance_floor)
        weights = jnp.where(mask, weights, 0.0)
        weights = jax.lax.stop_gradient(weights * mask.sum() / jnp.maximum(weights.sum(), 1e-9))
        total = jnp.float32(0)
        for k in range(found.shape[-1]):
            if self.value == "tanh":
                error = jnp.square(jnp.tanh(found[..., k]) - (2 * target - 1))
            else:
                error = optax.sigmoid_binary_cross_entropy(found[..., k], target)
            total = total + jnp.where(mask, weights * error, 0.0).sum()
        return rl.Loss(total, mask.sum().astype(jnp.float32))

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

    def response_facts(self, spec: Spec, found: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """The quantiles, which intervals are made from."""
        del spec, batch
        return {"quantiles": found} if self.value == "quantile" else {}

    def levels(self) -> jax.Array:
        """The levels of the quantiles, (k + 1/2) / n."""
        return (jnp.arange(self.quantiles, dtype=jnp.float32) + 0.5) / self.quantiles
