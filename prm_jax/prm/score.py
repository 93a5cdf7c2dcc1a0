"""Scoring solutions with a process reward model, in batches of a bounded number of tokens."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import ArrayLike

from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.models import Tokenizer
from prm_jax.models.sharding import batch_sharding, rows_over
from prm_jax.prm import compiled
from prm_jax.prm.reward_model_options import Aggregate, TextLayout
from prm_jax.prm.rewards import step_scores
from prm_jax.prm.rows import Batch, Row, Shape, build_rows, collate, pad_table
from prm_jax.prm.spec import Output, Spec, Weights
from prm_jax.prm.text_layout import Reader

_AGGREGATES = Aggregate.__args__  # type: ignore[attr-defined]
_OF_PROBABILITIES = ("prod", "gmean", "mean_logit", "mean_odds")
_step_scores = jax.jit(step_scores, static_argnums=0, static_argnames="num_steps")


@dataclasses.dataclass(frozen=True)
class PRM:
    """A process reward model that scores.

    Attributes:
      spec: kind and architecture.
      weights: arrays, adapters merged.
      tokenizer: of model and reference.
      layout: how problem and steps become text.
      reader: makes the tokens instead of the layout (``load`` with ``convention="card"``).
      cumulative: the score of a step is the sum of the scores up to it.
    """

    spec: Spec
    weights: Weights
    tokenizer: Tokenizer
    layout: TextLayout
    reader: Reader | None = None
    cumulative: bool = False

    @property
    def aggregate(self) -> Aggregate:
        """How step scores become the response's, unless a caller says otherwise."""
        return self.spec.kind.how

    @property
    def output(self) -> Output:
        """What a step's score is."""
        return self.spec.kind.output

    def score(self, solutions: Sequence[StepRecord], **options: Any) -> "list[Scored]":
        """Scores every step and every solution; takes the options of `score_solutions`."""
        return score_solutions(self, solutions, **options)

    def score_tokens(
        self, tokens: ArrayLike, mask: ArrayLike, step_ids: ArrayLike, *, num_steps: int | None = None
    ) -> jax.Array:
        """Scores the steps of rows of tokens, such as a policy's rollouts.

        Args:
          tokens: [B, T] int, rows ``[prompt][response][padding]``.
          mask: [B, T] bool, True on response tokens.
          step_ids: [B, T] int, the step of each response token, -1 elsewhere.
          num_steps: S; None: as many as there are.

        Returns:
          [B, S] float32, 0 where there is no step.
        """
        if num_steps is None:
            num_steps = max(int(np.max(np.asarray(step_ids), initial=-1)) + 1, 1)
        scores, _ = _step_scores(self.spec, self.weights, tokens, mask, step_ids, num_steps=num_steps)
        return scores

    def check_rows(self, record: StepRecord, tokens: Sequence[int]) -> None:
        """Refuses rows of tokens that are not what the model was trained on.

        Args:
          record: a solution in steps.
          tokens: the row of the same solution, prompt and response, without padding.

        Raises:
          UserError: the model's own layout of the solution differs from the row before the end of either.
        """
        rows, _ = build_rows([record], self.tokenizer, self.layout, max_length=1 << 30)
        own, given = rows[0].tokens.tolist(), [int(token) for token in tokens]
        at = next((i for i, (a, b) in enumerate(zip(own, given, strict=False)) if a != b), None)
        if at is not None:
            mine, other = (self.tokenizer.decode(ids[at : at + 8]) for ids in (own, given))
            raise UserError(
                f"this reward model reads prompts and steps in another layout: at token {at} it expects {mine!r}, but "
                f"the row continues with {other!r}. Train it on rows like these (train-prm --text.pieces prompt "
                f"--text.separator '' --text.end), or score the text instead of the tokens"
            )


@dataclasses.dataclass(frozen=True)
class Scored:
    """One solution with its scores.

    Attributes:
      record: the solution.
      steps: one score per step, higher is better.
      response: the score of the whole.
      objectives: name -> score, of a model with several objectives.
      layers: of the model that were read, where that depends on the solution; 0 otherwise.
      quantiles: of each step's value, in ascending order, of a model that predicts them.
      intervals: of each step's value, from ``calibrate.with_intervals``.
    """

    record: StepRecord
    steps: tuple[float, ...]
    response: float
    objectives: dict[str, float] = dataclasses.field(default_factory=dict)
    quantiles: tuple[tuple[float, ...], ...] = ()
    intervals: tuple[tuple[float, float], ...] = ()
    layers: int = 0

    def to_json(self) -> dict[str, Any]:
        """What goes into a line of scores: ids, scores, and what is known about the solution."""
        record = self.record
        fields: dict[str, Any] = {"id": record.id, "group": record.group, "scores": self.steps, "score": self.response}
        fields["length"] = sum(map(len, record.steps))
        if record.labels is not None:
            fields["labels"] = record.labels
        if record.outcome is not None:
            fields["outcome"] = record.outcome
        for name in ("objectives", "quantiles", "intervals", "layers"):
            if getattr(self, name):
                fields[name] = getattr(self, name)
        if record.provenance:
            fields["provenance"] = dict(record.provenance)
        return fields


Raw = tuple[np.ndarray, dict[str, np.ndarray]]
"""What the model says about one solution: its step scores [S], and further arrays (``Kind.response_facts``)."""


def score_solutions(
    prm: PRM,
    records: Sequence[StepRecord],
    *,
    max_tokens: int = 8192,
    aggregate: Aggregate | None = None,
    cumulative: bool = False,
    skip_long: bool = False,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scored]:
    """Scores every step, and every solution as a whole.

    Args:
      prm: from ``load`` or ``finished``; where ``load`` put its weights on a mesh, solutions are split over it.
      records: at least one.
      max_tokens: tokens in one batch, padding included; a longer solution is a batch of its own.
      aggregate: how step scores become the solution's; None: as the model says.
      cumulative: give each step the sum of the scores up to it (of log-ratios: that of the prefix).
      skip_long: leave out solutions that are longer than the model's context, instead of refusing.
      on_batch: called with (number of solutions done, their total number).

    Returns:
      In the order of the records.

    Raises:
      UserError: an aggregate that is unknown or does not fit the scores, a solution longer than the context, or scores
        that are not finite.
    """
    check_aggregate(prm, aggregate)
    rows = rows_to_score(prm, records, skip_long=skip_long)
    found: dict[int, Raw] = {}
    for part in raw_scores(prm, rows, records, max_tokens=max_tokens):
        found |= part
        on_batch(len(found), len(rows))
    return summarise(prm, records, found, aggregate=aggregate, cumulative=cumulative)


def raw_scores(
    prm: PRM, rows: Sequence[Row], records: Sequence[StepRecord], *, max_tokens: int
) -> Iterator[dict[int, Raw]]:
    """Scores of rows, batch by batch: number of the record -> what the model says about it.

    Raises:
      UserError: scores that are not finite.
    """
    mesh = _mesh_under(prm.weights)
    ways = 1 if mesh is None else rows_over(mesh)
    if prm.spec.kind.generates:
        own = [records[row.record] for row in rows]
        for row, sampled in zip(rows, prm.spec.kind.sampled_scores(prm, own, ways=ways), strict=True):
            yield {row.record: (sampled, {})}
        return
    if prm.spec.kind.stages > 1:
        yield from _staged(prm, rows, records, max_tokens=max_tokens, ways=ways, mesh=mesh)
        return
    for batch, members in batches(rows, max_tokens=max_tokens, ways=ways):
        if mesh is not None:
            batch = jax.device_put(batch, batch_sharding(mesh))
        values, facts = jax.device_get(_compiled(prm.spec)(prm.weights, batch))
        found = {}
        for place, row in enumerate(members):
            own = values[place, : len(row.reads)]
            _check_finite(own, records[row.record])
            found[row.record] = (own, {name: value[place] for name, value in facts.items()})
        yield found


def _staged(
    prm: PRM, rows: Sequence[Row], records: Sequence[StepRecord], *, max_tokens: int, ways: int, mesh: Mesh | None
) -> Iterator[dict[int, Raw]]:
    """`raw_scores` in stages: what is not final after one goes into smaller batches of the next."""
    carry: dict[int, np.ndarray] = {row.record: np.zeros(len(row.reads), np.float32) for row in rows}
    for number in range(prm.spec.kind.stages):
        waiting: list[Row] = []
        layers = np.asarray(prm.spec.kind.layers(prm.spec, number), np.float32)
        for batch, members in batches(rows, max_tokens=max_tokens, ways=ways):
            before = np.zeros(batch.step_mask.shape, np.float32)
            for place, row in enumerate(members):
                before[place, : len(row.reads)] = carry[row.record]
            if mesh is not None:
                batch, before = jax.device_put((batch, before), batch_sharding(mesh))
            values, final, after = jax.device_get(_compiled_stage(prm.spec, number)(prm.weights, batch, before))
            found: dict[int, Raw] = {}
            for place, row in enumerate(members):
                own = values[place, : len(row.reads)]
                _check_finite(own, records[row.record])
                if final[place]:
                    found[row.record] = (own, {"layers": layers})
                else:
                    carry[row.record] = after[place, : len(row.reads)]
                    waiting.append(row)
            yield found
        rows = waiting


def summarise(
    prm: PRM,
    records: Sequence[StepRecord],
    found: Mapping[int, Raw],
    *,
    aggregate: Aggregate | None = None,
    cumulative: bool = False,
) -> list[Scored]:
    """Scored solutions from `raw_scores`; arguments as `score_solutions`."""
    how, order = aggregate or prm.aggregate, sorted(found)
    table, mask = pad_table([np.cumsum(found[i][0]) if cumulative or prm.cumulative else found[i][0] for i in order])
    _check_range(how, prm.output, table, mask)
    room = [(0, _power_of_two(size) - size) for size in table.shape]  # few shapes, so that little is compiled
    totals = np.asarray(compiled.aggregate_steps(np.pad(table, room), np.pad(mask, room), how=how))[: len(order)]
    responses = prm.spec.kind.response_scores(totals, [found[i][1] for i in order], [records[i].group for i in order])
    names = prm.spec.objectives
    return [
        Scored(
            records[i],
            tuple(float(x) for x in table[n][mask[n]]),
            float(responses[n]),
            dict(zip(names, found[i][1]["objectives"].tolist(), strict=True)) if names else {},
            _quantiles(found[i]),
            layers=int(found[i][1].get("layers", 0)),
        )
        for n, i in enumerate(order)
    ]


def _quantiles(found: Raw) -> tuple[tuple[float, ...], ...]:
    """The quantiles of each step that a model gives as "quantiles" [S, K]."""
    scores, facts = found
    rows = np.sort(facts["quantiles"][: len(scores)], axis=-1) if "quantiles" in facts else ()
    return tuple(tuple(float(x) for x in row) for row in rows)


def check_aggregate(prm: PRM, aggregate: Aggregate | None) -> None:
    """Refuses an aggregation that the model's scores do not allow, before anything is scored.

    Raises:
      UserError: it is unknown, or needs probabilities.
    """
    how = aggregate or prm.aggregate
    if how not in _AGGREGATES:
        raise UserError(f"unknown aggregate {how!r}; there are {', '.join(_AGGREGATES)}")
    if how in _OF_PROBABILITIES and prm.output in ("log_ratio", "score"):
        raise UserError(_needs_probabilities(how, prm.output))


def rows_to_score(prm: PRM, records: Sequence[StepRecord], *, skip_long: bool = False) -> list[Row]:
    """The solutions in tokens, whole.

    Raises:
      UserError: one is longer than the model's context, and `skip_long` is not set.
    """
    limit = prm.spec.config.context
    if not records:
        raise UserError("there are no solutions to score")
    reader = prm.reader or prm.spec.kind.reader(prm.layout)
    rows, _ = build_rows(records, prm.tokenizer, prm.layout, max_length=limit, whole=True, reader=reader)
    if len(rows) < len(records) and not skip_long:
        have = {row.record for row in rows}
        first = next(index for index in range(len(records)) if index not in have)
        raise UserError(
            f"{records[first].id}: this solution is longer than the {limit} tokens of the model's context (and so are "
            f"{len(records) - len(rows) - 1} others); leave such solutions out with --skip-long"
        )
    return rows


def _mesh_under(weights: Weights) -> Mesh | None:
    placed = getattr(jax.tree.leaves(weights)[0], "sharding", None)
    return placed.mesh if isinstance(placed, NamedSharding) and isinstance(placed.mesh, Mesh) else None


def batches(rows: Sequence[Row], *, max_tokens: int, ways: int = 1) -> Iterator[tuple[Batch, list[Row]]]:
    """Rows of similar length together; few different shapes, so that little is compiled.

    Args:
      rows: any number.
      max_tokens: tokens in one batch, padding included.
      ways: devices that divide the solutions of each batch; empty ones are added.

    Yields:
      (batch with one solution per row, its rows), the longest first.
    """
    steps = _power_of_two(max((len(row.reads) for row in rows), default=1))
    widths: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        widths.setdefault(_width(len(row.tokens)), []).append(row)
    for width, members in widths.items():
        count = min(max(1, max_tokens // width), _power_of_two(len(members)))
        for start in range(0, len(members), count):
            part, places = members[start : start + count], -(-count // ways) * ways
            yield collate(part, Shape(places, width, places, steps), packed=False), part


@functools.lru_cache(maxsize=8)
def _compiled(spec: Spec) -> Callable[[Weights, Batch], tuple[jax.Array, dict[str, jax.Array]]]:
    def run(weights: Weights, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        found = spec.kind.forward(spec, weights, batch)
        return spec.kind.scores(spec, found, batch), spec.kind.response_facts(spec, found, batch)

    return jax.jit(run)


@functools.lru_cache(maxsize=16)
def _compiled_stage(spec: Spec, number: int) -> Callable[..., Any]:
    return jax.jit(lambda weights, batch, carry: spec.kind.stage(spec, weights, batch, number, carry))


def _check_finite(values: np.ndarray, record: StepRecord) -> None:
    if not np.isfinite(values).all():
        step = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(
            f"{record.id}: the score of step {step} is {values[step]}, expected a finite number; the model is damaged, "
            "or bfloat16 is too coarse for it (--dtype float32)"
        )


def _check_range(how: str, output: str, table: np.ndarray, mask: np.ndarray) -> None:
    if how in _OF_PROBABILITIES and ((table < 0) | (table > 1))[mask].any():
        raise UserError(_needs_probabilities(how, output) + ", some of them outside [0, 1]")


def _needs_probabilities(how: str, output: str) -> str:
    return (
        f"the aggregate {how!r} is for probabilities: choose --aggregate min, last, mean or sum, because this model's "
        f"step scores are {output.replace('_', '-')}s"
    )


def _width(length: int) -> int:
    """The least of 32, 48, 64, 96, 128, ... that is long enough: at most a third of a row is padding beyond 32."""
    whole = max(32, _power_of_two(length))
    return max(32, 3 * whole // 4) if length <= 3 * whole // 4 else whole


def _power_of_two(number: int) -> int:
    return 1 << math.ceil(math.log2(max(1, number)))
