"""Implicit process rewards: the log-ratio to a reference, learned from outcomes.

Free Process Rewards without Process Labels, arXiv 2412.01981.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.option_ranges import above, within
from prm_jax.prm.data import mismatched
from prm_jax.prm.forward import better_pairs, judged, step_log_ratios, token_log_ratios
from prm_jax.prm.reward_model_options import BaseOptions, OptimizerOptions
from prm_jax.prm.rows import Batch, Row, Shape, collate
from prm_jax.prm.spec import Kind, Needs, Output, Spec, Weights, without_head


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogRatioKind(Kind):
    """Base of kinds whose score is beta times the log-ratio of a step to the reference."""

    beta: Annotated[float, above(0)] = 0.05
    """Scale of the log-ratio."""
    reference: Literal["kept", "dropped", "base"] = "kept"
    """What the log-ratio compares with. kept: the start of the training, saved with the model; dropped: the start, in
    training only, so that scores are the model's log-probabilities; base: the base under the LoRA adapters (needs
    --model.lora-rank)."""

    output: ClassVar[Output] = "log_ratio"
    default_aggregate: ClassVar = "min"
    compares: ClassVar[bool] = True

    @property
    def keeps_reference(self) -> bool:
        """Unless it is dropped."""
        return self.reference != "dropped"

    def problems(self, model: BaseOptions, train: OptimizerOptions) -> list[str]:
        """There must be something that trains, and a base where the reference is one."""
        found = []
        if self.reference == "base" and not model.lora_rank:
            found.append("--prm.reference base is the base of adapters: give --model.lora-rank, or use kept")
        return found + without_head(self.kind, train)

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
        """[R, S] float32: log-ratios summed over each step, without beta."""
        return step_log_ratios(spec, weights, batch)

    def scores(self, spec: Spec, found: jax.Array, batch: Batch) -> jax.Array:
        """[R, S]: beta times the log-ratio of each step."""
        del spec
        return jnp.where(batch.step_mask, self.beta * found, 0.0)

    def token_rewards(self, spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
        """[N, T]: beta times the log-ratio of each token."""
        return self.beta * token_log_ratios(spec, weights, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implicit(LogRatioKind):
    """Outcome losses on the log-ratio."""

    kind: Literal["implicit"] = "implicit"
    loss: Literal["ce", "dpo", "nca", "kto", "kto_vanilla"] = "ce"
    """Cross-entropy on the outcome, DPO over all right-wrong pairs of a group, NCA over the same pairs, KTO as in its
    paper, or as in the released code of implicit PRMs."""
    label_smoothing: Annotated[float, within(0, 0.5, high_open=True)] = 0.0
    """Label smoothing of dpo, in [0, 1/2)."""

    learns_from: ClassVar[Needs] = "outcome"

    @property
    def needs(self) -> Needs:
        """Losses on pairs need right and wrong solutions of one problem."""
        return "groups" if self.loss in ("dpo", "nca") else "outcome"

    def problems(self, model: BaseOptions, train: OptimizerOptions) -> list[str]:
        """The vanilla KTO compares with means of the whole batch."""
        found = super().problems(model, train)
        if self.loss == "kto_vanilla" and train.microbatches > 1:
            found.append("--prm.loss kto_vanilla compares with means of the batch: --train.microbatches must be 1")
        return found

    def extra_batch(self, rows: Sequence[Row], shape: Shape) -> Batch | None:
        """Responses after other prompts, for KTO's reference point."""
        if self.loss != "kto":
            return None
        shape = dataclasses.replace(shape, rows=shape.solutions)
        return collate(mismatched(rows, width=shape.width), shape, packed=False)

    def batch_constant(self, spec: Spec, weights: Weights, extra: Batch) -> jax.Array:
        """KTO's reference point: the mean log-ratio of mismatched pairs of all pieces, at least 0."""
        weights = jax.lax.stop_gradient(weights)

        def one(piece: Batch) -> tuple[jax.Array, jax.Array]:
            return self.forward(spec, weights, piece).sum(-1), judged(piece)

        ratios, known = jax.lax.map(one, extra)
        return rl.kto_reference_point(ratios.reshape(-1), known.reshape(-1))

    def training_loss(self, spec: Spec, found: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
        """The loss of log-ratios [R, S]; `constant` is KTO's reference point."""
        del spec
        ratios, known = found, judged(batch)
        if self.loss == "ce":
            return rl.outcome_ce_loss(self.beta * ratios, batch.outcome, batch.step_mask & known[:, None])
        total = ratios.sum(-1)
        if self.loss in ("kto", "kto_vanilla"):
            variant = "paper" if self.loss == "kto" else "vanilla"
            return rl.kto_loss(
                total, batch.outcome > 0.5, constant, beta=self.beta, variant=variant, mask=known  # type: ignore[arg-type]
            )  # fmt: skip
        scores, count = self.beta * total, batch.outcome.shape[0]
        if self.loss == "dpo":
            return rl.all_pairs_loss(
                scores, batch.outcome, batch.group_ids, num_groups=count, label_smoothing=self.label_smoothing
            )
        better = better_pairs(batch)
        return rl.nca_loss(
            jnp.broadcast_to(scores[:, None], better.shape), jnp.broadcast_to(scores[None], better.shape), mask=better
        )
