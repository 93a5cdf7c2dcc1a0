"""Calibration of scores: ECE, ACE, Brier score and reliability, before and after Platt and isotonic fitting."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.prm import compiled
from prm_jax.prm.cases import Case, halves, labelled, table

_EDGE = 1e-6


_MOST = 400  # entries on either side of Venn-ABERS, which fits twice for each


def calibration(
    cases: Sequence[Case], *, output: str, num_bins: int = 15, venn_abers: bool = False
) -> dict[str, Any]:
    """Calibration of step scores against step labels, and of solutions' scores against outcomes.

    The maps are fitted on one half of the problems and everything is measured on the other.

    Args:
      cases: scored solutions.
      output: "probability" and "value" are used as chances; other scores pass through a sigmoid first.
      num_bins: of ECE and ACE.
      venn_abers: also "venn_abers", errors of the merged probability p1 / (1 - p0 + p1) and the mean "width" of the
        intervals [p0, p1], on at most 400 entries drawn from either side.

    Returns:
      "steps" and "solutions", each with "raw", "platt", "isotonic": {ece, ace, brier}, "reliability" (bins of the raw
      scores), "platt_map": (slope, intercept) on the logit, "count".
    """
    side = halves(cases)
    labels, known = labelled(cases)
    scores, _ = table(cases)
    rows = np.broadcast_to(side[:, None], known.shape)
    judged = np.asarray([case.outcome is not None for case in cases])
    outcome = np.asarray([case.outcome or 0.0 for case in cases], np.float32)
    response = np.asarray([case.response for case in cases], np.float32)
    return {
        "steps": _measure(scores, labels, known, rows, output, num_bins, venn_abers),
        "solutions": _measure(response, outcome, judged, side, output, num_bins, venn_abers),
    }


def as_chance(scores: np.ndarray, output: str) -> np.ndarray:
    """Scores as chances in [0, 1]."""
    chances = output in ("probability", "value") and (scores >= 0).all() and (scores <= 1).all()
    return scores if chances else 1 / (1 + np.exp(-np.clip(scores.astype(np.float64), -60, 60)))


def as_logit(scores: np.ndarray, output: str) -> np.ndarray:
    """Log-odds of scores as chances; what the maps of Platt read."""
    chance = np.clip(as_chance(scores, output), _EDGE, 1 - _EDGE)
    return np.log(chance) - np.log1p(-chance)


def _measure(
    scores: np.ndarray, labels: np.ndarray, known: np.ndarray, fitted_on: np.ndarray, output: str, num_bins: int,
    venn_abers: bool,
) -> dict[str, Any]:  # fmt: skip
    fit, test = known & fitted_on, known & ~fitted_on
    if min(fit.sum(), test.sum()) < 10:
        return {"skipped": f"needs ten judged entries on either side, found {int(fit.sum())} and {int(test.sum())}"}
    if len(set((labels[fit] > 0.5).tolist())) < 2:
        return {"skipped": "needs right and wrong entries to fit on"}
    chance = np.full(scores.shape, 0.5, np.float32)
    chance[known] = np.clip(as_chance(scores[known], output), _EDGE, 1 - _EDGE)
    found = compiled.calibrate(
        *(x.reshape(-1) for x in (chance, labels, fit, test)), num_bins=num_bins
    )  # fmt: skip
    plain: dict[str, Any] = jax.tree.map(lambda x: np.asarray(x).tolist(), found)
    if venn_abers:
        plain["venn_abers"] = _venn_abers(chance, labels, fit, test, num_bins)
    return plain | {"count": int(test.sum())}


def _venn_abers(
    chance: np.ndarray, labels: np.ndarray, fit: np.ndarray, test: np.ndarray, num_bins: int
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    parts = [np.flatnonzero(side.reshape(-1)) for side in (fit, test)]
    parts = [np.sort(rng.permutation(part)[:_MOST]) for part in parts]
    (flat, truth) = chance.reshape(-1), (labels.reshape(-1) > 0.5).astype(np.float32)
    lower, upper = (np.asarray(x) for x in compiled.venn_abers(flat[parts[0]], truth[parts[0]], flat[parts[1]]))
    merged = upper / np.maximum(1 - lower + upper, 1e-9)
    found = jax.device_get(compiled.calibration_errors(merged, truth[parts[1]], num_bins=num_bins))
    return {name: float(value) for name, value in found.items()} | {"width": float(np.mean(upper - lower))}
