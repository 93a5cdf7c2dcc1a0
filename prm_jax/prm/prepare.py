"""The data of a run: read, split by problem, made into rows; everything that is left out is counted."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prm_jax.data.consensus import consensus, read_first_errors
from prm_jax.data.records import BadLine
from prm_jax.data.step_data import StepRecord, read_step_data
from prm_jax.errors import UserError
from prm_jax.prm.data import select, split_by_problem
from prm_jax.prm.rows import Row, RowReport, build_rows
from prm_jax.prm.train_options import TrainPRMOptions


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Data ready for training.

    Attributes:
      rows: that the loss learns from.
      eval_rows: whole held-out solutions to score; [] if there are none.
      eval_loss_rows: held-out rows for the loss; [] where none has what the kind learns from.
      objectives: names of all objectives in the training rows.
      notes: what was cut or left out, by name.
    """

    rows: list[Row]
    eval_rows: list[Row]
    eval_loss_rows: list[Row]
    objectives: tuple[str, ...]
    notes: dict[str, str]


def prepare(
    options: TrainPRMOptions, tokenizer: Any, *, limit: int, records: Sequence[StepRecord] | None = None
) -> Prepared:
    """Reads the data, splits it by problem, and makes rows of it.

    Args:
      options: of the run.
      tokenizer: of the model.
      limit: the model's context, in tokens.
      records: what to learn from instead of the file of the options.

    Raises:
      UserError: see ``read_step_data``, ``build_rows`` and ``select``.
    """
    given = options.data
    skipped: list[BadLine] = []

    def read(path: str) -> list[StepRecord]:
        bad = skipped if given.skip_bad else None
        return read_step_data(path, format=given.format, neutral=given.neutral, skipped=bad)

    if records is None:
        records = read(given.path)
    if given.eval_path:
        held_out = read(given.eval_path)
    else:
        records, held_out = split_by_problem(records, given.eval_fraction)
        if not records:
            raise UserError(f"--data.eval-fraction {given.eval_fraction} takes all problems: none is left to train")
    length, layout = min(given.max_length, limit), options.prm.layout(options.text)
    notes: dict[str, str] = {}
    if skipped:
        notes["skipped"] = f"{len(skipped)} bad records; the first is {skipped[0]}"
    if given.agree_with:  # held-out solutions are not filtered
        agreed = consensus(records, read_first_errors(given.agree_with, threshold=given.agree_threshold))
        records, notes["consensus"] = agreed.kept, str(agreed)
        if not records:
            raise UserError(f"nothing to learn from: {agreed}, see {given.agree_with}")
    rows, report = _rows_of(options, records, tokenizer, length)
    notes["training"] = str(report)
    eval_rows: list[Row] = []
    eval_loss_rows: list[Row] = []
    if held_out:
        notes["evaluation"] = f"{len(held_out)} solutions"
        try:
            if not options.prm.generates:
                eval_rows, eval_report = build_rows(held_out, tokenizer, layout, max_length=length, whole=True)
                notes["evaluation"] = str(eval_report)
            eval_loss_rows, _ = _rows_of(options, held_out, tokenizer, length)
        except UserError as error:
            if not eval_rows:
                raise
            notes["evaluation"] += f"; no loss: {error}"
    return Prepared(rows, eval_rows, eval_loss_rows, options.prm.objectives(rows), notes)


def _rows_of(
    options: TrainPRMOptions, records: Sequence[StepRecord], tokenizer: Any, length: int
) -> tuple[list[Row], RowReport]:
    """The rows that the loss learns from, and what was left out."""
    kind = options.prm
    rows, report = build_rows(
        kind.select_records(records), tokenizer, kind.layout(options.text), max_length=length, whole=kind.whole,
        only_last=kind.only_last,
    )  # fmt: skip
    return select(kind.select_labels(rows), kind.needs, report), report
