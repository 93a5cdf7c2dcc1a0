"""Step scores as chances of being right, and intervals of step values, from solutions whose truth is known.

Conformal intervals: arXiv 1905.03222, as in arXiv 2103.00083.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.files import read_json
from prm_jax.option_values import suggest
from prm_jax.prm import compiled
from prm_jax.prm.cases import Case
from prm_jax.prm.judge_calibration import as_logit
from prm_jax.prm.reward_model_options import Aggregate
from prm_jax.prm.rows import pad_table
from prm_jax.prm.score import Scored


def read_map(path: str | pathlib.Path, subset: str = "") -> tuple[float, float]:
    """Reads the Platt map of step scores from a ``results.json``.

    Args:
      path: what ``prm-jax eval`` wrote.
      subset: whose map; "": the first that has one.

    Returns:
      (slope, intercept): chance = sigmoid(slope * logit(score) + intercept).

    Raises:
      UserError: the file cannot be read, has no such subset, or no map of step scores.
    """
    found = read_json(pathlib.Path(path)).get("subsets")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds no results of prm-jax eval")
    if subset and subset not in found:
        raise UserError(f"{path} has no subset {subset!r}; {suggest(subset, found, 'subsets')}")
    for name in [subset] if subset else found:
        try:
            slope, intercept = map(float, found[name]["calibration"]["steps"]["platt_map"])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(slope) and math.isfinite(intercept):
            return slope, intercept
    raise UserError(f"{path} has no calibration of step scores; it needs labelled steps, right ones and wrong ones")


def calibrated(scored: Sequence[Scored], platt: tuple[float, float], *, output: str, how: Aggregate) -> list[Scored]:
    """Solutions with their step scores as chances, and their own scores aggregated from these.

    Args:
      scored: from ``score_solutions``.
      platt: from ``read_map``, fitted on scores of the same model.
      output: what the step scores are, as in the model's kind.
      how: the aggregation.
    """
    chances = []
    for one in scored:
        logit = as_logit(np.asarray(one.steps, np.float64), output)
        chances.append(1 / (1 + np.exp(-np.clip(platt[0] * logit + platt[1], -60, 60))))
    responses = np.asarray(compiled.aggregate_steps(*pad_table(chances), how=how))
    return [
        dataclasses.replace(one, steps=tuple(chance.tolist()), response=float(response))
        for one, chance, response in zip(scored, chances, responses, strict=True)
    ]


def with_intervals(scored: Sequence[Scored], known: Sequence[Case], *, level: float, bounded: bool) -> list[Scored]:
    """Solutions with an interval around each step's score that holds the step's value with probability `level`.

    The interval begins as the model's own quantiles, or else as the score itself, and is widened until the share
    `level` of the known values is inside. Values are step labels, or the outcome where a step has none; with labels 0
    and 1 only, intervals say little.

    Args:
      scored: of the model.
      known: other solutions that the same model scored, with labels or outcomes.
      level: wanted coverage, in (0, 1).
      bounded: values are in [0, 1], so that intervals are cut there.

    Raises:
      UserError: too few known values for the level, or only one side has quantiles.
    """
    steps = [
        (case, k, case.labels[k] if case.labels and case.labels[k] is not None else case.outcome)
        for case in known
        for k in range(len(case.scores))
    ]
    steps = [one for one in steps if one[2] is not None]
    least = math.ceil(level / (1 - level) - 1e-6)
    if len(steps) < least:
        raise UserError(
            f"intervals at level {level:g} need at least {least} steps with labels or outcomes, found {len(steps)}: "
            "label more solutions, or lower --interval"
        )
    has = {bool(one.quantiles) for one in scored} | {bool(case.quantiles) for case in known}
    if len(has) > 1:
        raise UserError("--interval-from was scored by another kind of model: only one of the two has quantiles")
    low, high = _ends([case.quantiles[k] if case.quantiles else (case.scores[k],) for case, k, _ in steps], level)
    rows = [row for one in scored for row in (one.quantiles or [(score,) for score in one.steps])]
    own_low, own_high = _ends(rows, level)
    targets = np.asarray([target for _, _, target in steps], np.float32)
    found = compiled.conformal_interval(own_low, own_high, low, high, targets, level=level)
    lower, upper = (np.clip(x, 0, 1) if bounded else np.asarray(x) for x in map(np.asarray, found))
    middle = 0.5 * (lower + upper)  # an interval that would be narrower than nothing is its middle
    pairs = iter(zip(np.minimum(lower, middle).tolist(), np.maximum(upper, middle).tolist(), strict=True))
    return [dataclasses.replace(one, intervals=tuple(next(pairs) for _ in one.steps)) for one in scored]


def _ends(rows: Sequence[Sequence[float]], level: float) -> tuple[np.ndarray, np.ndarray]:
    """The quantiles nearest to the ends of the central interval; both are the score where there is no other."""
    table = np.asarray(rows, np.float32)
    count = table.shape[1]
    at = min(max(round((1 - level) / 2 * count - 0.5), 0), (count - 1) // 2)
    return table[:, at], table[:, count - 1 - at]
