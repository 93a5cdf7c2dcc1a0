"""Solutions as rows of tokens with their steps, labels, outcomes and groups; several solutions may share a row."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.text_layout import Reader, Tokens, lay_out, tokenize


@dataclasses.dataclass(frozen=True)
class Row:
    """One solution in tokens.

    Attributes:
      tokens: [T] int32, prompt and steps.
      step_ids: [T] int32, the step of each token; -1 for prompt, and for tokens that no step owns (those of
        ``StepRecord.forced``, and of the shared steps of a pair).
      reads: [S] int32, the token at which each step's score is read.
      labels: [S] float32, probability that the step is right; 0 where not known.
      label_mask: [S] bool, True where it is known.
      outcome: in [0, 1], nan where not known.
      group: number of the problem.
      objectives: name -> value, of models with several objectives.
      record: index of the record that it was made from.
      cut: number of steps that did not fit.
      label_counts: [S] float32, rollouts behind each label (``provenance.total``), 0 where not known; None for no step.
    """

    tokens: np.ndarray
    step_ids: np.ndarray
    reads: np.ndarray
    labels: np.ndarray
    label_mask: np.ndarray
    outcome: float
    group: int
    objectives: dict[str, float]
    record: int
    cut: int = 0
    label_counts: np.ndarray | None = None

    @property
    def prompt_end(self) -> int:
        """Position of the last token before the steps, -1 when there is none."""
        own = np.flatnonzero(self.step_ids >= 0)
        return int(own[0] if len(own) else self.reads[0]) - 1


@dataclasses.dataclass
class RowReport:
    """Counts of the records that were cut or left out.

    Attributes:
      records: all records.
      too_long: left out because the first step does not fit.
      cut: records that lost steps at the end.
      cut_steps: steps lost this way.
      cut_labels: labels lost this way.
      unusable: left out because they lack what the kind learns from.
    """

    records: int = 0
    too_long: int = 0
    cut: int = 0
    cut_steps: int = 0
    cut_labels: int = 0
    unusable: int = 0

    def __str__(self) -> str:
        notes = [
            f"{self.too_long} too long" if self.too_long else "",
            f"{self.cut} cut between steps ({self.cut_steps} steps, {self.cut_labels} labels)" if self.cut else "",
            f"{self.unusable} without what this kind learns from" if self.unusable else "",
        ]
        shown = ", ".join(note for note in notes if note)
        return f"{self.records} solutions" + (f": {shown}" if shown else "")


def build_rows(
    records: Sequence[StepRecord],
    tokenizer: Any,
    layout: TextLayout,
    *,
    max_length: int,
    whole: bool = False,
    only_last: bool = False,
    reader: Reader | None = None,
) -> tuple[list[Row], RowReport]:
    """Tokenises records.

    Args:
      records: at least one.
      tokenizer: of the model.
      layout: how a record becomes text. A record whose provenance has ``"finished": false`` gets no end token.
      max_length: longest row in tokens.  Steps that end later are dropped, whole steps only.
      whole: leave a record out that would have to be cut (its outcome belongs to all of it).
      only_last: only the last step's tokens belong to a step (pairs of steps after a shared prefix).
      reader: makes the tokens instead of the layout.

    Returns:
      (rows in the order of the records, what was cut or left out).

    Raises:
      UserError: no record fits, or a record that the layout cannot write; the message names it.
    """
    report = RowReport(records=len(records))
    groups: dict[str, int] = {}
    rows: list[Row] = []
    for index, record in enumerate(records):
        tokens = _tokens(record, tokenizer, layout, reader)
        kept = int(np.sum(tokens.reads < max_length))
        if kept == 0 or (kept < len(record.steps) and (whole or only_last)):
            report.too_long += 1
            continue
        labels, known = _labels(record)
        if kept < len(record.steps):
            report.cut += 1
            report.cut_steps += len(record.steps) - kept
            report.cut_labels += int(known[kept:].sum())
        row = Row(
            tokens=tokens.ids,
            step_ids=tokens.step_ids,
            reads=tokens.reads,
            labels=labels,
            label_mask=known,
            outcome=float("nan") if record.outcome is None else record.outcome,
            group=groups.setdefault(record.group, len(groups)),
            objectives=objectives_of(record),
            record=index,
            label_counts=_counts(record),
        )
        rows.append(_cut(row, kept, only_last=only_last))
    if not rows:
        raise UserError(
            f"none of {len(records)} solutions fits into {max_length} tokens with its first step; raise the length"
        )
    return rows, report


def objectives_of(record: StepRecord) -> dict[str, float]:
    """The named objectives in a record's provenance, {} without.

    Raises:
      UserError: they are not a mapping of names to finite numbers.
    """
    found = record.provenance.get("objectives", {})
    if not isinstance(found, dict) or not all(
        isinstance(value, int | float) and np.isfinite(value) for value in found.values()
    ):
        raise UserError(f"{record.id}: provenance.objectives must map names to finite numbers, found {found!r}")
    return {str(name): float(value) for name, value in found.items()}


def through_first_error(row: Row, *, threshold: float = 0.5) -> Row:
    """The row without the labels after the first wrong step (arXiv 2501.07301)."""
    wrong = np.flatnonzero(row.label_mask & (row.labels < threshold))
    if not len(wrong):
        return row
    mask = row.label_mask & (np.arange(len(row.labels)) <= wrong[0])
    return dataclasses.replace(row, label_mask=mask)


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Packs sequences into rows of `width` tokens: the longest first, each into the first row with room.

    Returns:
      Indices of the sequences in each row; every index once.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > width:
            raise ValueError(f"a sequence of {length} tokens does not fit into {width}")
        at = next((i for i, left in enumerate(room) if left >= length), None)
        if at is None:
            rows.append([index])
            room.append(width - length)
        else:
            rows[at].append(index)
            room[at] -= length
    return rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Solutions in packed rows: N rows of T tokens hold up to R solutions of up to S steps.

    Attributes:
      tokens: [N, T] int32.
      segment_ids: [N, T] int32: 1, 2, ... for the solutions of a row, 0 for padding.
      slots: [N, T] int32: r * S + s for a token of step s of solution r, -1 elsewhere.
      reads: [R, S] int32: where step s of solution r is read, as n * T + t; 0 where there is none.
      starts: [R] int32: its prompt's last token, as n * T + t; -1 for an empty prompt and where there is none.
      step_mask: [R, S] bool, True on steps that exist.
      labels: [R, S] float32.
      label_mask: [R, S] bool, True on known labels.
      outcome: [R] float32.
      group_ids: [R] int32 in [0, R); -1 where there is no solution, or its outcome is not known.
      objectives: [R, K] float32.
      objective_mask: [R, K] bool.
      label_counts: [R, S] float32, rollouts behind each label, 0 where not known.
    """

    tokens: Any
    segment_ids: Any
    slots: Any
    reads: Any
    starts: Any
    step_mask: Any
    labels: Any
    label_mask: Any
    outcome: Any
    group_ids: Any
    objectives: Any
    objective_mask: Any
    label_counts: Any


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static shape of a batch: N rows of T tokens, R solutions, S steps, names of K objectives."""

    rows: int
    width: int
    solutions: int
    steps: int
    objectives: tuple[str, ...] = ()


def collate(rows: Sequence[Row], shape: Shape, *, packed: bool = True) -> Batch:
    """Collates rows into one batch.

    Args:
      rows: at most R, in any order; solution r of the batch is rows[r].
      shape: large enough for them; the rest is padding, which is ignored.
      packed: several solutions per row, or one.

    Raises:
      ValueError: they do not fit.
    """
    n, width, count, steps = shape.rows, shape.width, shape.solutions, shape.steps
    names = shape.objectives
    lengths = [len(row.tokens) for row in rows]
    places = pack(lengths, width) if packed else [[index] for index in range(len(rows))]
    if len(places) > n or len(rows) > count:
        raise ValueError(f"{len(rows)} solutions in {len(places)} rows do not fit into {shape}")
    tokens, segments = np.zeros((n, width), np.int32), np.zeros((n, width), np.int32)
    slots = np.full((n, width), -1, np.int32)
    reads, starts = np.zeros((count, steps), np.int32), np.full(count, -1, np.int32)
    step_mask, label_mask = np.zeros((count, steps), bool), np.zeros((count, steps), bool)
    labels, outcome = np.zeros((count, steps), np.float32), np.zeros(count, np.float32)
    counts = np.zeros((count, steps), np.float32)
    local: dict[int, int] = {}
    group_ids = np.full(count, -1, np.int32)
    objectives, known = np.zeros((count, len(names)), np.float32), np.zeros((count, len(names)), bool)
    for line, members in enumerate(places):
        at = 0
        for segment, index in enumerate(members, start=1):
            row, size, own = rows[index], lengths[index], len(rows[index].reads)
            span = slice(at, at + size)
            tokens[line, span], segments[line, span] = row.tokens, segment
            slots[line, span] = np.where(row.step_ids >= 0, index * steps + row.step_ids, -1)
            reads[index, :own] = line * width + at + row.reads
            if row.prompt_end >= 0:
                starts[index] = line * width + at + row.prompt_end
            step_mask[index, :own], labels[index, :own] = True, row.labels
            label_mask[index, :own] = row.label_mask
            if row.label_counts is not None:
                counts[index, :own] = row.label_counts
            if np.isfinite(row.outcome):
                outcome[index] = row.outcome
                group_ids[index] = local.setdefault(row.group, len(local))
            for column, name in enumerate(names):
                if name in row.objectives:
                    objectives[index, column], known[index, column] = row.objectives[name], True
            at += size
    return Batch(
        tokens, segments, slots, reads, starts, step_mask, labels, label_mask, outcome, group_ids, objectives, known,
        counts,
    )  # fmt: skip


def pad_table(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(values [B, S] float32, mask [B, S] bool) of rows of different lengths, 0 behind their ends."""
    width = max(map(len, rows))
    table, mask = np.zeros((len(rows), width), np.float32), np.zeros((len(rows), width), bool)
    for index, values in enumerate(rows):
        table[index, : len(values)], mask[index, : len(values)] = values, True
    return table, mask


def _cut(row: Row, kept: int, *, only_last: bool) -> Row:
    """The row up to its first `kept` steps; `only_last`: only the last of them owns its tokens."""
    length = int(row.reads[kept - 1]) + 1
    step_ids = row.step_ids[:length].copy()
    if only_last:
        step_ids[step_ids < kept - 1] = -1
    return dataclasses.replace(
        row, tokens=row.tokens[:length], step_ids=step_ids, reads=row.reads[:kept], labels=row.labels[:kept],
        label_mask=row.label_mask[:kept], cut=len(row.reads) - kept,
        label_counts=None if row.label_counts is None else row.label_counts[:kept],
    )  # fmt: skip


def _tokens(record: StepRecord, tokenizer: Any, layout: TextLayout, reader: Reader | None) -> Tokens:
    try:
        if reader is not None:
            return reader(record.prompt, record.steps, tokenizer)
        end = layout.end and record.provenance.get("finished", True) is not False
        return tokenize(lay_out(record.prompt, record.steps, layout, tokenizer, record.forced), tokenizer, end=end)
    except UserError as error:
        raise UserError(f"{record.id}: {error}") from error


def _labels(record: StepRecord) -> tuple[np.ndarray, np.ndarray]:
    given = record.labels or (None,) * len(record.steps)
    known = np.asarray([label is not None for label in given], bool)
    return np.asarray([0.0 if label is None else label for label in given], np.float32), known


def _counts(record: StepRecord) -> np.ndarray | None:
    """The numbers of rollouts that the record's provenance names for its steps."""
    total = record.provenance.get("total")
    if not isinstance(total, list | tuple) or len(total) != len(record.steps):
        return None
    return np.asarray([x if isinstance(x, int | float) and x > 0 else 0 for x in total], np.float32)
