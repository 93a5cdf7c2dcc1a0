"""A reward model that calls a tool, reads what the tool answers, and then scores: Themis, arXiv 2310.01045.

It learns, by one loss, to write the calls and to rank solutions; answers of the tool are read and not learned.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import rl
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.option_ranges import at_least
from prm_jax.prm.forward import at_last, text_logprobs
from prm_jax.prm.kinds.outcome import ScoreKind
from prm_jax.prm.reward_model_options import BaseOptions, OptimizerOptions, TextLayout
from prm_jax.prm.rows import Batch, Shape, build_rows, collate
from prm_jax.prm.spec import Needs, Output, Spec, Weights
from prm_jax.prm.tool_traces import write_traces
from prm_jax.verifiers.tools import ToolName, check_markers, make_tool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Themis(ScoreKind):
    """Preferences within a group, read after a trace of tool calls."""

    kind: Literal["themis"] = "themis"
    rank_weight: Annotated[float, at_least(0)] = 0.5
    """Weight of the preferences beside the likelihood of the trace."""
    tool: ToolName = "calculator"
    """What the model calls while it scores: calculator, python, or none for traces without calls."""
    markers: tuple[str, ...] = ()
    """Strings around a call, or around a call and its answer; none: the tool's own."""
    max_new_tokens: Annotated[int, at_least(1)] = 128
    """Maximum length of a trace with the tool's answers, in tokens."""
    max_calls: Annotated[int, at_least(1)] = 4
    """Maximum number of calls in a trace."""
    rows: Annotated[int, at_least(1)] = 64
    """Traces that are written at once."""

    learns_from: ClassVar[Needs] = "groups"
    output: ClassVar[Output] = "score"
    generates: ClassVar[bool] = True

    def problems(self, model: BaseOptions, train: OptimizerOptions) -> list[str]:
        """The markers must fit the tool; both means of the loss are of the whole batch; the model writes."""
        del model
        found = []
        try:
            make_tool(self.tool, self.markers, option="--prm.markers")
        except UserError as error:
            found.append(str(error))
        if train.microbatches > 1:
            found.append("--prm.kind themis adds two means of the batch: --train.microbatches must be 1")
        if train.trains == "head":
            found.append("--prm.kind themis learns to write traces: use --train.trains all")
        return found

    def check_tokenizer(self, tokenizer: Any) -> None:
        """The model must be able to write the markers of calls."""
        check_markers(make_tool(self.tool, self.markers), tokenizer, option="--prm.markers")

    def layout(self, text: TextLayout) -> TextLayout:
        """The problem, then the solution, the trace and an end as the answer."""
        return dataclasses.replace(text, separator="", between="", strip=False, pieces="prompt", end=True)

    def forward(self, spec: Spec, weights: Weights, batch: Batch) -> tuple[jax.Array, jax.Array]:  # type: ignore[override]
        """([R, S] float32, the head after every step; [N, T] float32, log-probabilities of what the model wrote)."""
        return super().forward(spec, weights, batch), text_logprobs(spec, weights, batch)

    def training_loss(
        self, spec: Spec, found: tuple[jax.Array, jax.Array], batch: Batch, constant: jax.Array
    ) -> rl.Loss:
        """The mean negative log-likelihood of a token of the traces, plus the weighted mean loss of the pairs."""
        del spec, constant
        scores, logp = found
        trace = rl.weighted_nll(logp, jnp.ones(logp.shape[:1]), batch.slots >= 0)
        ranking = rl.all_pairs_loss(
            at_last(scores, batch), batch.outcome, batch.group_ids, num_groups=batch.outcome.shape[0]
        )
        weight = jnp.maximum(ranking.weight, 1.0)
        total = (trace.mean() + self.rank_weight * ranking.mean()) * weight
        means = {name: rl.Mean(loss.total, loss.weight) for name, loss in (("trace", trace), ("ranking", ranking))}
        return rl.Loss(total, weight, means)

    def scores(self, spec: Spec, found: tuple[jax.Array, jax.Array], batch: Batch) -> jax.Array:
        """[R, S], unbounded; the difference of two is the logit of a preference."""
        del spec
        return jnp.where(batch.step_mask, found[0], 0.0)

    def sampled_scores(self, prm: Any, records: Sequence[StepRecord], *, ways: int = 1) -> Iterator[np.ndarray]:
        """[S] for each solution: the score after the trace, which the model writes where the record has none."""
        tool = make_tool(self.tool, self.markers)
        size = -(-self.rows // ways) * ways
        traced = write_traces(
            prm, records, tool, max_new_tokens=self.max_new_tokens, max_calls=self.max_calls, rows=size
        )
        length = prm.spec.config.context
        rows, report = build_rows(traced, prm.tokenizer, prm.layout, max_length=length, whole=True)
        if report.too_long:
            raise UserError(
                f"{report.too_long} solutions with their traces exceed the model's context of {length} tokens: train "
                "with a smaller --prm.max-new-tokens"
            )
        read = jax.jit(lambda weights, batch: at_last(super(Themis, self).forward(prm.spec, weights, batch), batch))
        width = -(-max(len(row.tokens) for row in rows) // 8) * 8
        shape = Shape(size, width, size, max(len(row.reads) for row in rows))
        for start in range(0, len(rows), size):
            batch = collate(rows[start : start + size], shape, packed=False)
            for record, score in zip(records[start:], jax.device_get(read(prm.weights, batch)), strict=False):
                yield np.full(len(record.steps), score, np.float32)
