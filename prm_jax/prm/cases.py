"""Scored solutions for evaluation: scores, and what is known about the truth."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax.data import records as lines
from prm_jax.data.problems import problem_hash
from prm_jax.errors import UserError
from prm_jax.prm.rows import pad_table
from prm_jax.prm.score import Scored


@dataclasses.dataclass(frozen=True)
class Case:
    """One scored solution.

    Attributes:
      id: its name.
      group: its problem.
      scores: of each step, higher is better.
      response: of the whole.
      labels: of each step, probability that it is right, None where not known; None without any.
      outcome: in [0, 1], None where not known.
      length: of the solution, in characters.
      quantiles: of each step's value, in ascending order; () where the model gives none.
      provenance: further facts: "answer" (the final answer, for votes), "category", "update".
    """

    id: str
    group: str
    scores: tuple[float, ...]
    response: float
    labels: tuple[float | None, ...] | None
    outcome: float | None
    length: int
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quantiles: tuple[tuple[float, ...], ...] = ()

    def first_error(self) -> int | None:
        """Index of the first wrong step, -1 for none, None where the labels do not say."""
        for index, label in enumerate(self.labels or (None,)):
            if label is None:
                return None
            if label < 0.5:
                return index
        return -1


def case_of(scored: Scored) -> Case:
    """The case of a solution that was just scored."""
    record = scored.record
    length = sum(map(len, record.steps))
    return Case(
        record.id, record.group, scored.steps, scored.response, record.labels, record.outcome, length,
        record.provenance, scored.quantiles,
    )  # fmt: skip


def read_cases(path: str | pathlib.Path) -> list[Case]:
    """Reads the lines that ``prm-jax score`` wrote.

    Raises:
      UserError: a file that cannot be read or is empty, scores that are not finite numbers, or not one label per
        step; the message names file, line and field.
    """
    found = []
    for where, line in lines.lines(pathlib.Path(path)):
        found.append(_case(_parse(line, where), where))
    if not found:
        raise UserError(f"{path} has no scored solutions in it")
    return found


def table(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """(scores [B, S] float32, mask [B, S] bool)."""
    return pad_table([np.asarray(case.scores, np.float32) for case in cases])


def labelled(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """(labels [B, S] float32, known [B, S] bool), as wide as ``table``."""
    width = max(len(case.scores) for case in cases)
    labels, known = np.zeros((len(cases), width), np.float32), np.zeros((len(cases), width), bool)
    for row, case in enumerate(cases):
        for column, label in enumerate(case.labels or ()):
            if label is not None:
                labels[row, column], known[row, column] = label, True
    return labels, known


def halves(cases: Sequence[Case]) -> np.ndarray:
    """[B] bool: which half of the problems a case belongs to, by a hash, the same in every run."""
    return np.asarray([problem_hash(case.group) % 2 == 0 for case in cases])


def by_group(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases by problem, in order."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.group, []).append(case)
    return found


def _parse(line: bytes, where: str) -> Mapping[str, Any]:
    """One object; NaN and Infinity, which some writers put into JSON, are passed on and named in the checks below."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with fields, found {lines.kind(value)}")
    return value


def _case(record: Mapping[str, Any], where: str) -> Case:
    scores = lines.field(record, "scores", where)
    if not isinstance(scores, list) or not scores:
        raise UserError(f"{where}:scores: expected a list of numbers, one per step, found {lines.kind(scores)}")
    response = lines.field(record, "score", where)
    for name, value in [("score", response), *((f"scores[{i}]", x) for i, x in enumerate(scores))]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where}:{name}: expected a finite number, found {value!r}")
    labels, outcome = record.get("labels"), record.get("outcome")
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(scores)):
        count = len(labels) if isinstance(labels, list) else lines.kind(labels)
        raise UserError(
            f"{where}:labels: {count} labels for {len(scores)} steps; give one per step, null where unknown"
        )
    for value in (*(labels or ()), outcome):
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise UserError(f"{where}: labels and outcome must be in [0, 1], found {value!r}")
    provenance = record.get("provenance", {})
    if not isinstance(provenance, dict):
        raise UserError(f"{where}:provenance: expected an object, found {lines.kind(provenance)}")
    length = record.get("length", 0)
    if not isinstance(length, int) or length < 0:
        raise UserError(f"{where}:length: expected a number of characters, found {lines.kind(length)}")
    return Case(
        id=str(record.get("id", lines.short(where))),
        group=str(record.get("group", lines.short(where))),
        scores=tuple(map(float, scores)),
        response=float(response),
        labels=None if labels is None else tuple(None if x is None else float(x) for x in labels),
        outcome=None if outcome is None else float(outcome),
        length=length,
        provenance=provenance,
        quantiles=_quantiles(record.get("quantiles", []), len(scores), where),
    )


def _quantiles(rows: Any, steps: int, where: str) -> tuple[tuple[float, ...], ...]:
    try:
        table = np.asarray(rows, np.float64)
        if not rows or (table.ndim == 2 and len(table) == steps and np.isfinite(table).all()):
            return tuple(tuple(map(float, row)) for row in rows)
    except (TypeError, ValueError):
        pass
    raise UserError(f"{where}:quantiles: expected as many finite numbers for each of {steps} steps, found {rows!r:.60}")
