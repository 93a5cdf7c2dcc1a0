"""Step classes read after a few layers where that suffices: PonderNet's halting with PALBERT's deterministic exit.

arXiv 2107.05407, 2204.03276. A solution leaves at the first exit at which every one of its steps has halted with
probability of at least the quantile, and only the others are read by more layers.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.errors import UserError
from prm_jax.models import ModelConfig
from prm_jax.option_ranges import at_least, within
from prm_jax.prm.forward import apply_head, init_head, read_hidden
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import HeadedKind, Needs, Output, Spec, Weights
from prm_jax.runs.learner import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyExit(HeadedKind):
    """Heads with a class and a halting probability after some of the layers."""

    kind: Literal["early_exit"] = "early_exit"
    exits: Annotated[int, at_least(2)] = 3
    """Number of evenly spaced exits, the last one after all layers."""
    quantile: Annotated[float, within(0, 1, low_open=True)] = 0.5
    """A step has halted when the chance of having stopped reaches this; 1: always all layers."""
    prior: Annotated[float, within(0, 1, low_open=True, high_open=True)] = 0.3
    """Chance of stopping at each exit towards which halting is pulled."""
    kl_coef: Annotated[float, at_least(0)] = 0.1
    """Weight of that pull."""

    learns_from: ClassVar[Needs] = "labels"
    output: ClassVar[Output] = "probability"
    default_aggregate: ClassVar = "min"
    whole: ClassVar[bool] = False

    @property
    def stages(self) -> int:
        """One per exit."""
        return self.exits

    def init(self, spec: Spec, key: jax.Array) -> tuple[Params, Params]:
        """A head per exit with three outputs: wrong, right, halt."""
        if spec.config.num_layers < self.exits:
            raise UserError(
                f"--prm.exits {self.exits}: the model has {spec.config.num_layers} layers, after which it can be left"
            )
        keys = jax.random.split(key, self.exits)
        return {f"exit_{k}": init_head(spec, one, num_outputs=3) for k, one in enumerate(keys)}, {}

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
        """[R, S, exits, 3] float32: logits of (wrong, right) and of halting at every exit."""
        return jnp.stack([self._read(spec, weights, batch, k) for k in range(self.exits)], axis=2)

    def training_loss(self, spec: Spec, found: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
        """The expected cross-entropy over exits, and the divergence of halting from its prior."""
        del spec, constant
        gap = found[..., 1] - found[..., 0]
        right = batch.labels[..., None]
        losses = jax.nn.softplus(-gap) * right + jax.nn.softplus(gap) * (1 - right)
        return rl.halting_loss(
            losses, found[..., 2], batch.label_mask, prior=self.prior, kl_coef=self.kl_coef
        )  # fmt: skip

    def scores(self, spec: Spec, found: jax.Array, batch: Batch) -> jax.Array:
        """[R, S] in [0, 1]: the probability that the step is right, read where the solution exits."""
        del spec
        place = rl.quantile_exit(rl.halting_distribution(found[..., 2]), quantile=self.quantile)
        place = jnp.where(batch.step_mask, place, 0).max(-1)  # [R]
        own = jnp.take_along_axis(found, place[:, None, None, None], axis=2)[:, :, 0]
        return _chances(own, batch)

    def stage(
        self, spec: Spec, weights: Weights, batch: Batch, number: int, carry: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """See `Kind.stage`; `carry` is the log-probability of not having halted before."""
        found = self._read(spec, weights, batch, number)
        stay = carry - jax.nn.softplus(found[..., 2])
        halted = 1 - jnp.exp(stay) >= self.quantile - 1e-7
        done = jnp.where(batch.step_mask, halted, True).all(-1) | (number == self.exits - 1)
        return _chances(found, batch), done, stay

    def layers(self, spec: Spec, number: int) -> int:
        """Layers up to an exit."""
        return -(-spec.config.num_layers * (number + 1) // self.exits)

    def _read(self, spec: Spec, weights: Weights, batch: Batch, number: int) -> jax.Array:
        """[R, S, 3] what the head of an exit says after its layers."""
        depth = self.layers(spec, number)
        model: Any = {**weights.model, "layers": jax.tree.map(lambda x: x[:depth], weights.model["layers"])}
        part = dataclasses.replace(spec, config=_first_layers(spec.config, depth))
        steps, _ = read_hidden(part, dataclasses.replace(weights, model=model), batch)
        return apply_head(spec, weights.head[f"exit_{number}"], steps)


def _chances(found: jax.Array, batch: Batch) -> jax.Array:
    return jnp.where(batch.step_mask, jax.nn.sigmoid(found[..., 1] - found[..., 0]), 0.0)


def _first_layers(config: ModelConfig, depth: int) -> ModelConfig:
    """The architecture of a model's first layers."""
    return dataclasses.replace(
        config, num_layers=depth, layer_windows=config.layer_windows[:depth],
        unrotated_layers=tuple(layer for layer in config.unrotated_layers if layer < depth),
    )  # fmt: skip
