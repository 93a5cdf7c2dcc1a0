"""The language model itself, fine-tuned on chosen solutions: it scores by likelihood, and is a policy.

Rejection sampling keeps right solutions; advantage weighting: arXiv 1910.00177; best-of-n extraction from the values of
candidates: Digi-Q, arXiv 2502.15760; the policy of self-training rounds: AlphaMath, arXiv 2405.03553.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import rl
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.option_ranges import above
from prm_jax.prm.forward import step_sums, text_logprobs
from prm_jax.prm.reward_model_options import BaseOptions, OptimizerOptions, TextLayout
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import Kind, Needs, Output, Spec, Weights, without_head


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imitation(Kind):
    """Weighted likelihood of solutions."""

    kind: Literal["imitation"] = "imitation"
    imitate: Literal["right", "advantage", "best_of_n"] = "right"
    """right: solutions whose outcome is above 1/2; advantage: all, weighted by exp(advantage / temperature) of their
    outcome over the problem's mean; best_of_n: of each problem the candidate with the highest value (provenance.score,
    or the last step's label), where it exceeds the mean by the threshold."""
    temperature: Annotated[float, above(0)] = 0.5
    """Temperature of the weights (advantage)."""
    threshold: float = 0.05
    """Least advantage of the best candidate (best_of_n)."""

    learns_from: ClassVar[Needs] = "outcome"
    output: ClassVar[Output] = "score"
    default_aggregate: ClassVar = "mean"

    def problems(self, model: BaseOptions, train: OptimizerOptions) -> list[str]:
        """The language model is what trains."""
        del model
        return without_head(self.kind, train)

    def layout(self, text: TextLayout) -> TextLayout:
        """A policy's rows: the prompt read apart, and an end after the last step."""
        return dataclasses.replace(text, pieces="prompt", end=True)

    def select_records(self, records: Sequence[StepRecord]) -> list[StepRecord]:
        """The solutions to imitate, each with its weight as its outcome."""
        kept = {"right": _right, "advantage": self._weighted, "best_of_n": self._best}[self.imitate](records)
        if not kept:
            what = {
                "right": "an outcome above 1/2", "advantage": "an outcome",
                "best_of_n": f"a value (provenance.score or a last label) {self.threshold:g} above its problem's mean",
            }[self.imitate]  # fmt: skip
            raise UserError(f"nothing to imitate: none of {len(records)} solutions has {what}")
        return kept

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
        """[N, T] float32 log-probabilities of the solutions' tokens, 0 elsewhere."""
        return text_logprobs(spec, weights, batch)

    def training_loss(self, spec: Spec, found: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
        """The mean negative log-likelihood of a token, each weighted as its solution."""
        del spec, constant
        owner = jnp.maximum(batch.slots, 0) // batch.step_mask.shape[1]
        return rl.weighted_nll(found, batch.outcome[owner], batch.slots >= 0)

    def scores(self, spec: Spec, found: jax.Array, batch: Batch) -> jax.Array:
        """[R, S]: mean log-probability of the step's tokens."""
        del spec
        count = step_sums(jnp.ones_like(found), batch)
        return jnp.where(batch.step_mask, step_sums(found, batch) / jnp.maximum(count, 1.0), 0.0)

    def _weighted(self, records: Sequence[StepRecord]) -> list[StepRecord]:
        found = []
        for own in _by_problem([record for record in records if record.outcome is not None]):
            outcomes = np.asarray([record.outcome for record in own], np.float32)
            weights = np.asarray(rl.advantage_weights(outcomes - outcomes.mean(), temperature=self.temperature))
            found += [dataclasses.replace(r, outcome=float(w)) for r, w in zip(own, weights, strict=True)]
        largest = max((record.outcome or 0.0 for record in found), default=1.0)  # outcomes are at most 1
        return [dataclasses.replace(record, outcome=(record.outcome or 0.0) / largest) for record in found]

    def _best(self, records: Sequence[StepRecord]) -> list[StepRecord]:
        found = []
        for own in _by_problem([record for record in records if _value(record) is not None]):
            values = np.asarray([_value(record) for record in own], np.float32)
            valid = np.ones(len(own), bool)
            advantages = rl.candidate_advantages(values, values.mean(), valid)
            index, weight = rl.best_of_n_targets(advantages, valid, threshold=self.threshold)
            if float(weight):
                found.append(dataclasses.replace(own[int(index)], outcome=1.0))
        return found


def _right(records: Sequence[StepRecord]) -> list[StepRecord]:
    return [dataclasses.replace(r, outcome=1.0) for r in records if r.outcome is not None and r.outcome > 0.5]


def _by_problem(records: Sequence[StepRecord]) -> list[list[StepRecord]]:
    groups: dict[str, list[StepRecord]] = defaultdict(list)
    for record in records:
        groups[record.group].append(record)
    return list(groups.values())


def _value(record: StepRecord) -> float | None:
    score = record.provenance.get("score")
    if isinstance(score, int | float):
        return float(score)
    return record.labels[-1] if record.labels else None
