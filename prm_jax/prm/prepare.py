"""The data of a run: read, divided by problem, made into rows, with a count of whatever is left out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prm_jax.data.consensus import consensus, read_first_errors
from prm_jax.data.step_data import StepRecord, read_step_data
from prm_jax.errors import UserError
from prm_jax.prm.data import select, split_by_problem, step_pairs
from prm_jax.prm.kinds import KINDS
from prm_jax.prm.options import TrainPRMOptions
from prm_jax.prm.rows import Row, RowReport, build_rows, through_first_error


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Data ready to learn from.

    Attributes:
      rows: that the loss learns from.
      eval_rows: whole held-out solutions, to be scored; [] without any.
      eval_loss_rows: held-out rows for the loss; [] where none has what the kind learns from.
      objectives: names of all objectives in the training rows.
      notes: what was cut or left out.
    """

    rows: list[Row]
    eval_rows: list[Row]
    eval_loss_rows: list[Row]
    objectives: tuple[str, ...]
    notes: dict[str, str]


def prepare(options: TrainPRMOptions, tokenizer: Any, *, limit: int) -> Prepared:
    """Reads the data, divides it by problem, and makes rows of it.

    Args:
      options: of the run.
      tokenizer: of the model.
      limit: the model's context, in tokens.

    Raises:
      UserError: see ``read_step_data``, ``build_rows`` and ``select``.
    """
    given = options.data
    records = read_step_data(given.path, format=given.format, neutral=given.neutral)
    if given.eval_path:
        held_out = read_step_data(given.eval_path, format=given.format, neutral=given.neutral)
    else:
        records, held_out = split_by_problem(records, given.eval_fraction)
        if not records:
            raise UserError(f"--data.eval-fraction {given.eval_fraction} takes all of the problems in {given.path}")
    length = min(given.max_length, limit)
    notes: dict[str, str] = {}
    if given.agree_with:  # held-out solutions stay as hard as they are
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
            eval_rows, eval_report = build_rows(held_out, tokenizer, options.text, max_length=length, whole=True)
            notes["evaluation"] = str(eval_report)
            eval_loss_rows, _ = _rows_of(options, held_out, tokenizer, length)
        except UserError as error:
            if not eval_rows:
                raise
            notes["evaluation"] += f"; no loss: {error}"
    names = sorted({name for row in rows for name in row.objectives}) if options.prm.kind == "armo" else []
    if options.prm.kind == "armo":
        if not names:
            raise UserError("kind armo regresses on objectives: no training solution has provenance.objectives")
        if options.prm.verbosity and options.prm.verbosity not in names:
            raise UserError(f"--prm.verbosity {options.prm.verbosity!r} is no objective; there are {', '.join(names)}")
    return Prepared(rows, eval_rows, eval_loss_rows, tuple(names), notes)


def _rows_of(
    options: TrainPRMOptions, records: Sequence[StepRecord], tokenizer: Any, length: int
) -> tuple[list[Row], RowReport]:
    """The rows that the loss learns from, and what was left out."""
    prm, kind = options.prm, KINDS[options.prm.kind]
    pairs = kind.needs == "step_pairs"
    if pairs:
        records = step_pairs(records, how=prm.pairs, margin=prm.pair_margin)
    rows, report = build_rows(records, tokenizer, options.text, max_length=length, whole=kind.whole, only_last=pairs)
    if prm.kind == "token" and prm.mask_after_error:
        rows = [through_first_error(row) for row in rows]
    needs = "groups" if prm.kind == "implicit" and prm.loss in ("dpo", "nca") else kind.needs
    return select(rows, needs, report), report
