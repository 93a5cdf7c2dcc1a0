"""Votes over critiques: scores of steps, labels from several judges, and critiques to learn from.

Ensembles of judges and reverse verification: AURORA, arXiv 2502.11520. Critiques that agree with known labels as
training data: ThinkPRM, arXiv 2504.16828.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from prm_jax import rl
from prm_jax.data.consensus import first_error
from prm_jax.data.step_data import StepRecord
from prm_jax.prm.critiques.formats import CritiqueFormat
from prm_jax.prm.critiques.sampling import Critique
from prm_jax.prm.rows import pad_table

How = Literal["probability", "majority"]


def votes_of(critiques: Sequence[Critique], steps: int, *, how: How = "probability") -> np.ndarray:
    """[S] float64: the mean verdict on each step, NaN where no critique says anything.

    Args:
      critiques: of one solution.
      steps: S.
      how: probability, the mean probability of "right"; majority, the share of critiques that find it likelier.
    """
    table = np.asarray([[np.nan if x is None else x for x in one.verdicts] for one in critiques], np.float64)
    table = table.reshape(len(critiques), steps)
    if how == "majority":
        table = np.where(np.isnan(table), np.nan, table > 0.5)
    known = ~np.isnan(table)
    total = np.where(known, table, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def scores_of_votes(votes: np.ndarray) -> np.ndarray:
    """[S] scores without gaps: a step without a verdict has the least of those before it, 1/2 where there is none.

    A judge that stops at the first wrong step says nothing about later ones, which then inherit its verdict.
    """
    least = np.fmin.accumulate(np.where(np.isnan(votes), np.inf, votes))
    return np.where(np.isnan(votes), np.where(np.isinf(least), 0.5, least), votes)


class Judges(NamedTuple):
    """Labels from E judges.

    Attributes:
      labels: for each solution one label per step: 1 right, 0 wrong, None without a verdict or at a tie.
      scores: for each solution the weighted share of "right" on each step, without gaps.
      weights: [E] of the judges.
    """

    labels: list[tuple[float | None, ...]]
    scores: list[np.ndarray]
    weights: np.ndarray


def judge(votes: Sequence[Sequence[np.ndarray]], *, weights: np.ndarray | None = None) -> Judges:
    """The weighted majority of several judges.

    Args:
      votes: of each of E judges, for each solution [S] in [0, 1] or NaN, from `votes_of`.
      weights: [E], from `outcome_weights`; None: equal.
    """
    padded = [pad_table([np.asarray(own, np.float32) for own in judged]) for judged in votes]
    table = np.stack([values for values, _ in padded])
    present = ~np.isnan(table) & padded[0][1]
    weights = np.ones(len(votes)) if weights is None else np.asarray(weights)
    right, share = (np.asarray(x) for x in rl.judge_labels(np.nan_to_num(table), present, weights=weights))
    heard = (present & (np.abs(weights)[:, None, None] > 0)).any(0)
    labels, scores = [], []
    for row, own in enumerate(votes[0]):
        steps = len(own)
        decided = heard[row, :steps] & (share[row, :steps] != 0.5)
        labels.append(tuple(float(right[row, s]) if decided[s] else None for s in range(steps)))
        scores.append(scores_of_votes(np.where(heard[row, :steps], share[row, :steps], np.nan)))
    return Judges(labels, scores, weights)


def outcome_weights(votes: Sequence[Sequence[np.ndarray]], records: Sequence[StepRecord]) -> np.ndarray:
    """[E] weights of judges by how often "every step is right" agrees with the solution's outcome.

    Args:
      votes: see `judge`.
      records: the solutions; those without an outcome are left out.
    """
    known = [place for place, record in enumerate(records) if record.outcome is not None]
    table = np.asarray([[float(np.nanmin(judged[i], initial=1.0)) for i in known] for judged in votes], np.float32)
    present = np.asarray([[not np.isnan(judged[i]).all() for i in known] for judged in votes], bool)
    outcome = np.asarray([records[i].outcome for i in known], np.float32)
    shape = (len(votes), len(known))
    return np.asarray(rl.judge_weights(table.reshape(shape), outcome, present.reshape(shape)))


def critique_records(
    records: Sequence[StepRecord], critiques: Sequence[Sequence[Critique]], *, name: str, agreeing: bool
) -> list[StepRecord]:
    """Critiques as data for ``train-prm --prm.kind generative``.

    Args:
      records: the solutions.
      critiques: of each.
      name: of the format.
      agreeing: only critiques that agree with the solution's labels: on the first wrong step, or, for a critique of one
        step, on that step; solutions without labels are left out.

    Returns:
      A record per critique that says anything, its text in ``provenance.critique``.
    """
    found = []
    for record, own in zip(records, critiques, strict=True):
        for number, one in enumerate(own):
            if all(verdict is None for verdict in one.verdicts) or (agreeing and not _agrees(record, one)):
                continue
            told = {"text": one.text, "format": name, "step": one.step}
            provenance = {**record.provenance, "critique": told}
            found.append(dataclasses.replace(record, id=f"{record.id}/{name}/{number}", provenance=provenance))
    return found


def _agrees(record: StepRecord, one: Critique) -> bool:
    if record.labels is None:
        return False
    if one.step is not None:
        label, verdict = record.labels[one.step], one.verdicts[one.step]
        return label is not None and verdict is not None and (label >= 0.5) == (verdict > 0.5)
    truth, says = first_error(record.labels), first_error(one.verdicts)
    return truth is not None and truth == says


def to_learn(
    records: Sequence[StepRecord], form_of: Callable[[str], CritiqueFormat], default: str
) -> list[tuple[StepRecord, CritiqueFormat, int | None, str]]:
    """What a generative reward model imitates: (solution, format, judged step, critique).

    Records with ``provenance.critique`` give that text. Others give the bare verdicts of their labels: up to the first
    wrong step, as far as the labels are known.

    Args:
      records: step data.
      form_of: name -> format.
      default: name of the format of records without a critique.
    """
    found: list[tuple[StepRecord, CritiqueFormat, int | None, str]] = []
    for record in records:
        given: Any = record.provenance.get("critique")
        if isinstance(given, dict) and isinstance(given.get("text"), str):
            step = given.get("step")
            form = form_of(str(given.get("format", default)))
            found.append((record, form, step if isinstance(step, int) else None, given["text"]))
            continue
        form, known = form_of(default), _known_labels(record)
        if not known:
            continue
        if form.scope == "solution":
            if len(known) == len(record.steps) or not known[-1]:
                found.append((record, form, None, form.write(known)))
            continue
        found += [(record, form, step, form.write([right])) for step, right in enumerate(known)]
    return found


def _known_labels(record: StepRecord) -> list[bool]:
    """Right or wrong, up to the first wrong step or the first unknown one."""
    known: list[bool] = []
    for label in record.labels or ():
        if label is None:
            break
        known.append(label >= 0.5)
        if not known[-1]:
            break
    return known
