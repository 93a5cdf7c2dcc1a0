"""Consensus of two labellers: solutions in which both name the same first wrong step, or none (arXiv 2501.07301).

The second labeller may be a language model as judge, a person, or a process reward model.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prm_jax.data import records
from prm_jax.data.step_data import Label, StepRecord, read_objects
from prm_jax.errors import UserError

_FIELDS = ("scores", "labels", "first_error", "label")


class Consensus(NamedTuple):
    """What was kept, and why the rest was not.

    Attributes:
      kept: solutions whose first wrong step is the same for both.
      differ: number of solutions in which it differs.
      unknown: number of solutions whose labels do not determine it.
      missing: number of solutions that the second labeller has not seen.
    """

    kept: list[StepRecord]
    differ: int
    unknown: int
    missing: int

    def __str__(self) -> str:
        total = len(self.kept) + self.differ + self.unknown + self.missing
        reasons = {
            "because the other labels name another first wrong step": self.differ,
            "because their labels do not determine the first wrong step": self.unknown,
            "because the other labels do not include them": self.missing,
        }
        left = "".join(f", {count} left out {why}" for why, count in reasons.items() if count)
        return f"{len(self.kept)} of {total} solutions kept{left}"


def first_error(labels: Sequence[Label] | None, *, threshold: float = 0.5) -> int | None:
    """The first wrong step according to labels.

    A step whose label is unknown counts as right when a later one is right: labels by rollouts skip steps after which a
    right answer was still reached.

    Args:
      labels: one per step, None where it is unknown; or None for no labels at all.
      threshold: labels below it are wrong.

    Returns:
      Its index, -1 for none, None where the labels do not determine it.
    """
    known = [] if labels is None else [(i, label) for i, label in enumerate(labels) if label is not None]
    if not known or labels is None:
        return None
    wrong = next((i for i, label in known if label < threshold), None)
    if wrong is None:  # unknown steps after the last right one may be wrong
        return -1 if known[-1][0] == len(labels) - 1 else None
    before = max((i for i, _ in known if i < wrong), default=-1)
    return wrong if before == wrong - 1 else None


def read_first_errors(path: str | pathlib.Path, *, threshold: float = 0.5) -> dict[str, int]:
    """The first wrong steps that another labeller found, by the solutions' ids.

    Args:
      path: any data file. Each row has an "id" and one of: "scores", one per step, as ``prm-jax score`` writes them;
        "labels", one per step, null where unknown; "first_error", or "label" as in ProcessBench, the index of the first
        wrong step, -1 for none.
      threshold: scores and labels below it are wrong.

    Returns:
      Id -> index of the first wrong step, -1 for none; without ids whose labels do not determine it.

    Raises:
      UserError: a file that cannot be read, or an object without these fields; the message names line and field.
    """
    found: dict[str, int | None] = {}
    count = 0
    for where, record in read_objects(pathlib.Path(path)):
        count += 1
        name = str(records.field(record, "id", where))
        if name in found:
            raise UserError(f"{where}:id: {name!r} occurs twice")
        found[name] = _first_error(record, where, threshold)
    if not count:
        raise UserError(f"{path} has no records in it")
    return {name: index for name, index in found.items() if index is not None}


def _first_error(record: Mapping[str, Any], where: str, threshold: float) -> int | None:
    field = next((name for name in _FIELDS if name in record), None)
    if field is None:
        raise UserError(f"{where}: expected one of the fields {', '.join(_FIELDS)}, found {', '.join(sorted(record))}")
    value, place = record[field], f"{where}:{field}"
    if field in ("first_error", "label"):
        if type(value) is not int or value < -1:
            raise UserError(f"{place}: expected the index of the first wrong step, or -1, found {records.kind(value)}")
        return value
    if not isinstance(value, list):
        raise UserError(f"{place}: expected a list with a number for each step, found {records.kind(value)}")
    for index, number in enumerate(value):
        if number is None and field == "labels":
            continue
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise UserError(f"{place}[{index}]: expected a number, found {records.kind(number)}")
    return first_error(value, threshold=threshold)


def consensus(solutions: Sequence[StepRecord], other: Mapping[str, int]) -> Consensus:
    """Keeps the solutions in which two labellers agree.

    Args:
      solutions: with labels.
      other: id -> first wrong step, -1 for none.

    Returns:
      `Consensus`.

    Raises:
      UserError: no id is known to both.
    """
    kept, differ, unknown, missing = [], 0, 0, 0
    for solution in solutions:
        own = first_error(solution.labels)
        if solution.id not in other:
            missing += 1
        elif own is None:
            unknown += 1
        elif own == other[solution.id]:
            kept.append(solution)
        else:
            differ += 1
    if solutions and missing == len(solutions):
        seen = next(iter(other), None)
        raise UserError(
            f"the other labels name none of the {missing} solutions: these are called {solutions[0].id!r} and so on, "
            f"those {'nothing' if seen is None else repr(seen)}"
        )
    return Consensus(kept, differ, unknown, missing)
