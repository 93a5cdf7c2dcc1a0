"""From step data to the rows that a kind learns from, and the plan of an epoch's batches."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from prm_jax.data.problems import is_eval
from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.prm.rows import Batch, Row, RowReport, Shape, collate, pack
from prm_jax.prm.spec import Needs

_WANTED: dict[str, str] = {
    "labels": "a step label that is known (and, with --prm.mask-after-error, not after the first wrong step)",
    "outcome": "an outcome",
    "groups": "an outcome and another solution of its problem with a different one",
    "either": "a step label or an outcome",
    "objectives": "provenance.objectives, or an outcome and another solution of its problem with a different one",
    "step_pairs": "a step with a better or worse sibling after the same steps",
}


def split_by_problem(records: Sequence[StepRecord], fraction: float) -> tuple[list[StepRecord], list[StepRecord]]:
    """(training, evaluation): by a hash of the prompt, so that a problem is on the same side for every seed."""
    sides: tuple[list[StepRecord], list[StepRecord]] = ([], [])
    for record in records:
        sides[fraction > 0 and is_eval(record.prompt, fraction)].append(record)
    return sides


def select(rows: Sequence[Row], needs: Needs, report: RowReport) -> list[Row]:
    """The rows that contain what a kind learns from; the others are counted in the report.

    Raises:
      UserError: no row does, so that nothing could be learned.
    """
    mixed = _mixed_groups(rows)

    def has(row: Row) -> bool:
        judged, labelled = math.isfinite(row.outcome), bool(row.label_mask.any())
        pairs = judged and row.group in mixed
        return {
            "labels": labelled,
            "outcome": judged,
            "groups": pairs,
            "either": judged or labelled,
            "objectives": pairs or bool(row.objectives),
            "step_pairs": pairs,
        }[needs]

    kept = [row for row in rows if has(row)]
    report.unusable += len(rows) - len(kept)
    if not kept:
        raise UserError(f"nothing to learn from: none of {len(rows)} solutions has {_WANTED[needs]}")
    return kept


def step_pairs(records: Sequence[StepRecord], *, how: str, margin: float) -> list[StepRecord]:
    """Pairs of different steps after the same prompt and steps, of which one is better by its label.

    Args:
      records: with step labels.
      how: "first_error", all such pairs; "siblings", only the best against the worst of a state.
      margin: least difference of the labels.

    Returns:
      Two records per pair, in a group of their own, ending with the step in question: outcome 1 and 0.

    Raises:
      UserError: there are no pairs.
    """
    states: dict[tuple[str, tuple[str, ...]], dict[str, tuple[float, StepRecord]]] = defaultdict(dict)
    for record in records:
        for index, label in enumerate(record.labels or ()):
            if label is not None:
                siblings = states[record.group, record.steps[:index]]
                siblings.setdefault(record.steps[index], (label, record.head(index + 1)))
    pairs: list[StepRecord] = []
    for siblings in states.values():
        ranked = sorted(siblings.values(), key=lambda item: -item[0])
        chosen = [(ranked[0], ranked[-1])] if how == "siblings" else [(a, b) for a in ranked for b in ranked]
        for (high, good), (low, bad) in chosen:
            if high - low < margin or high <= low:
                continue
            group = f"{good.group}/{len(pairs) // 2}"
            for record, outcome in ((good, 1.0), (bad, 0.0)):
                name = f"{good.id}/{len(pairs)}"
                pairs.append(
                    dataclasses.replace(record, labels=None, outcome=outcome, group=group, id=name, provenance={})
                )
    if not pairs:
        raise UserError(
            f"nothing to learn from: none of {len(records)} solutions has {_WANTED['step_pairs']} whose label differs "
            f"by {margin:g} or more"
        )
    return pairs


@dataclasses.dataclass(frozen=True)
class Plan:
    """The batches of a run, a pure function of the rows, the options and the seed.

    Attributes:
      shape: of every microbatch.
      epochs: for every epoch, for every step, for every microbatch: numbers of rows.
      packed: several solutions per row.
    """

    shape: Shape
    epochs: list[list[list[list[int]]]]
    packed: bool

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(map(len, self.epochs))

    def microbatches(self, step: int) -> list[list[int]]:
        """Numbers of the rows of a step, counted over epochs."""
        for epoch in self.epochs:
            if step < len(epoch):
                return epoch[step]
            step -= len(epoch)
        raise IndexError(step)


def make_plan(
    rows: Sequence[Row],
    *,
    batch_size: int,
    microbatches: int = 1,
    epochs: int = 1,
    seed: int = 0,
    whole_groups: bool = False,
    packed: bool = True,
    shuffle: bool = True,
    objectives: tuple[str, ...] = (),
    ways: int = 1,
) -> Plan:
    """Distributes rows over steps.

    Args:
      rows: at least one.
      batch_size: solutions per step, a multiple of `microbatches`; the last step of an epoch may have fewer.
      microbatches: number of pieces per step.
      epochs: passes over the rows, each in its own order.
      seed: of the orders.
      whole_groups: keep the solutions of one problem together; a step may then have fewer solutions.
      packed: several solutions per row.
      shuffle: False keeps the order of the rows.
      objectives: names of the objectives that batches carry.
      ways: devices over which batches are split; it must divide the solutions of a piece, and rows are padded to a
        multiple of it.

    Raises:
      UserError: a problem has more solutions than a piece holds.
    """
    size = batch_size // microbatches
    units = _groups(rows) if whole_groups else [[index] for index in range(len(rows))]
    largest = max(map(len, units))
    if largest > size:
        raise UserError(
            f"a problem has {largest} solutions, which the loss compares in one piece, but --train.batch-size "
            f"{batch_size} over --train.microbatches {microbatches} leaves room for {size}"
        )
    planned = []
    for epoch in range(epochs):
        order = (
            np.random.default_rng((seed, 0x9E3779B9, epoch)).permutation(len(units)) if shuffle else range(len(units))
        )
        pieces: list[list[int]] = [[]]
        for unit in order:
            if len(pieces[-1]) + len(units[unit]) > size:
                pieces.append([])
            pieces[-1].extend(units[unit])
        planned.append([pieces[start : start + microbatches] for start in range(0, len(pieces), microbatches)])
    sizes = [len(row.tokens) for row in rows]
    width = -(-max(sizes) // 8) * 8
    count = size
    if packed:
        every = [[sizes[index] for index in piece] for steps in planned for step in steps for piece in step]
        count, width = _packed_shape(every, width, ways=ways)
    shape = Shape(count, width, size, max(len(row.reads) for row in rows), objectives)
    return Plan(shape, planned, packed)


def batch_of(plan: Plan, rows: Sequence[Row], step: int, *, microbatches: int = 1) -> Batch:
    """The arrays of a step: every leaf has a leading axis of `microbatches`, empty pieces at the end."""
    pieces = [collate([rows[i] for i in piece], plan.shape, packed=plan.packed) for piece in plan.microbatches(step)]
    pieces += [collate([], plan.shape, packed=plan.packed)] * (microbatches - len(pieces))
    return stack(pieces)


def stack(pieces: Sequence[Batch]) -> Batch:
    """Batches of one shape along a new leading axis."""
    fields = [field.name for field in dataclasses.fields(Batch)]
    return Batch(**{name: np.stack([getattr(piece, name) for piece in pieces]) for name in fields})


def mismatched(rows: Sequence[Row], *, width: int) -> list[Row]:
    """Every row's steps after the prompt of the previous row, for KTO's reference point.

    Rows whose neighbour belongs to the same problem lose their outcome, so that they do not count; rows are truncated
    to `width` tokens.
    """
    found = []
    for index, row in enumerate(rows):
        other = rows[index - 1]
        head = other.tokens[: other.prompt_end + 1]
        tokens = np.concatenate([head, row.tokens[row.prompt_end + 1 :]])[:width]
        step_ids = np.concatenate([np.full(len(head), -1, np.int32), row.step_ids[row.prompt_end + 1 :]])[:width]
        reads = np.minimum(row.reads + len(head) - row.prompt_end - 1, len(tokens) - 1).astype(np.int32)
        outcome = float("nan") if other.group == row.group else row.outcome
        found.append(dataclasses.replace(row, tokens=tokens, step_ids=step_ids, reads=reads, outcome=outcome))
    return found


def _packed_shape(pieces: Sequence[Sequence[int]], longest: int, *, ways: int) -> tuple[int, int]:
    """(rows, width) of the cheapest batch that holds any of the pieces, in rows of one to four longest lengths.

    Wide rows waste less space, but every token attends over its whole row.
    """
    found = []
    for halves in range(2, 9):
        width = -(-halves * longest // 16) * 8
        count = max(len(pack(lengths, width)) for lengths in pieces)
        found.append((-(-count // ways) * ways, width))
    return min(found, key=lambda shape: shape[0] * shape[1] * (1 + shape[1] / 4096))


def _groups(rows: Sequence[Row]) -> list[list[int]]:
    members: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        members[row.group].append(index)
    return list(members.values())


def _mixed_groups(rows: Sequence[Row]) -> set[int]:
    seen: dict[int, set[float]] = defaultdict(set)
    for row in rows:
        if math.isfinite(row.outcome):
            seen[row.group].add(row.outcome)
    return {group for group, outcomes in seen.items() if len(outcomes) > 1}
