"""Several objectives on frozen features, weighed by a gate that reads the prompt: ArmoRM, arXiv 2406.12845.

Stage one is a ridge regression for each objective, in closed form; stage two trains the gate on preferences.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl, stats
from prm_jax.errors import UserError
from prm_jax.option_ranges import above, within
from prm_jax.prm.forward import apply_head, at_last, init_head, read_hidden
from prm_jax.prm.reward_model_options import BaseOptions, OptimizerOptions
from prm_jax.prm.rows import Batch, Row
from prm_jax.prm.spec import HeadedKind, Needs, Output, Spec, Weights
from prm_jax.runs import processes
from prm_jax.runs.learner import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Armo(HeadedKind):
    """Regressions on objectives, and a gate."""

    kind: Literal["armo"] = "armo"
    ridge: Annotated[float, above(0)] = 1.0
    """L2 penalty of the objectives' regressions."""
    verbosity: str = ""
    """The objective that the others are made independent of; empty: none."""
    gate_temperature: Annotated[float, above(0)] = 1.0
    """Temperature of the gate's softmax."""
    label_smoothing: Annotated[float, within(0, 0.5, high_open=True)] = 0.0
    """Label smoothing of the gate's loss, in [0, 1/2)."""

    learns_from: ClassVar[Needs] = "objectives"
    output: ClassVar[Output] = "score"
    default_aggregate: ClassVar = "last"
    step_scores: ClassVar[bool] = False
    head_only: ClassVar[bool] = True

    def problems(self, model: BaseOptions, train: OptimizerOptions) -> list[str]:
        """The features must stay what the regressions were fitted to."""
        del model
        if train.trains == "all":
            return ["--train.trains all would change the features under armo's regressions: use head"]
        return []

    def objectives(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """All names in the training rows.

        Raises:
          UserError: there are none, or --prm.verbosity is not one of them.
        """
        names = tuple(sorted({name for row in rows for name in row.objectives}))
        if not names:
            raise UserError("kind armo regresses on objectives: no training solution has provenance.objectives")
        if self.verbosity and self.verbosity not in names:
            raise UserError(f"--prm.verbosity {self.verbosity!r} is not an objective; there are {', '.join(names)}")
        return names

    def init(self, spec: Spec, key: jax.Array) -> tuple[Params, Params]:
        """A gate of two layers, and regressions that are still zero."""
        count = len(spec.objectives)
        fixed = {
            "kernel": jnp.zeros((spec.config.hidden_size, count), jnp.float32),
            "transform": jnp.eye(count, dtype=jnp.float32),
        }
        return {"gate": init_head(spec, key, num_outputs=count, layers=max(2, self.head_layers))}, fixed

    def fit_fixed(self, spec: Spec, weights: Weights, batches: Iterable[tuple[Batch, int]]) -> Params:
        """Stage one: the regressions on the features of each solution's last step."""
        forward = jax.jit(self.forward, static_argnums=0)
        features, targets, known = [], [], []
        for batch, count in batches:
            features.append(processes.to_host(forward(spec, weights, batch)["features"])[:count])
            targets.append(batch.objectives[:count])
            known.append(batch.objective_mask[:count])
        return self.fit(spec, *(jnp.concatenate(parts) for parts in (features, targets, known)))

    def fit(self, spec: Spec, features: jax.Array, objectives: jax.Array, known: jax.Array) -> Params:
        """The regressions.

        Args:
          spec: names the objectives.
          features: [M, D], of each solution's last step.
          objectives: [M, K].
          known: [M, K] bool; a regression uses the rows that have its objective.

        Returns:
          ``{"kernel": [D, K], "transform": [K, K]}``; the transform removes the verbosity objective from the others as
          far as they correlate with it on these rows, and is the identity without one.
        """

        def one(target: jax.Array, weight: jax.Array) -> jax.Array:
            return stats.weighted_ridge(features, target, weight, l2=self.ridge).coefficients

        kernel = jax.vmap(one, in_axes=1, out_axes=1)(objectives, known.astype(jnp.float32))
        transform = jnp.eye(len(spec.objectives), dtype=jnp.float32)
        if self.verbosity:
            index = spec.objectives.index(self.verbosity)
            fitted = features @ kernel
            transform = stats.debias_transform(stats.decorrelate(fitted, fitted[:, index]), reference_index=index)
        return {"kernel": kernel, "transform": transform}

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> dict[str, jax.Array]:
        """Objectives [R, S, K], reward [R, S], features [R, D] of the last step."""
        steps, starts = read_hidden(spec, weights, batch)
        objectives = steps @ jax.lax.stop_gradient(weights.fixed["kernel"])
        logits = apply_head(spec, weights.head["gate"], starts)
        gates = rl.objective_gates(logits, temperature=self.gate_temperature)
        transform = jax.lax.stop_gradient(weights.fixed["transform"])
        reward = rl.gated_objectives(objectives, gates[:, None], transform=transform)
        return {"objectives": objectives, "reward": reward, "features": at_last(steps, batch)}

    def training_loss(
        self, spec: Spec, found: dict[str, jax.Array], batch: Batch, constant: jax.Array
    ) -> rl.Loss:
        """Bradley-Terry on the gated reward; only the gate moves."""
        del spec, constant
        return rl.all_pairs_loss(
            at_last(found["reward"], batch), batch.outcome, batch.group_ids, num_groups=batch.outcome.shape[0],
            label_smoothing=self.label_smoothing,
        )  # fmt: skip

    def scores(self, spec: Spec, found: dict[str, jax.Array], batch: Batch) -> jax.Array:
        """[R, S]: the gated reward after every step."""
        del spec
        return jnp.where(batch.step_mask, found["reward"], 0.0)

    def response_facts(self, spec: Spec, found: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """The objectives of the whole solution, to be shown."""
        del spec
        return {"objectives": at_last(found["objectives"], batch)}
