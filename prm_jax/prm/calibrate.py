"""Step scores as chances of being right, by a map that ``prm-jax eval`` fitted on labelled solutions."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from prm_jax.errors import UserError
from prm_jax.models.files import read_json
from prm_jax.option_values import suggest
from prm_jax.prm import compiled
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
