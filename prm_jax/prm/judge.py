"""How good step scores are, by the field's own protocols.

ProcessBench, arXiv 2412.06559; PRMBench's categories, arXiv 2501.03124; scores that sit at the last step, arXiv
2501.07301.  A protocol that the data does not allow gives ``{"skipped": why}``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax.errors import UserError
from prm_jax.option_values import suggest
from prm_jax.prm import compiled
from prm_jax.prm.cases import Case, labelled, table
from prm_jax.prm.judge_calibration import calibration
from prm_jax.prm.judge_selection import best_of_n, ranking, selection, tracking
from prm_jax.stats import interval


def judge_scores(
    subsets: Mapping[str, Sequence[Case]],
    *,
    output: str = "probability",
    threshold_on: str = "",
    false_discovery: float | None = None,
    also: Mapping[str, Mapping[str, Case]] = {},
    venn_abers: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All evaluations that the data allows.

    Args:
      subsets: scored solutions by name.
      output: what step scores are; chances of success are calibrated as they are, other scores through a sigmoid.
      threshold_on: the subset whose cases choose the threshold of ProcessBench; "": gsm8k, or else the first.
      false_discovery: level of a selection of solutions, or None.
      also: the same solutions, by id, as other models score them: further scorers of that selection.
      venn_abers: also calibrate by Venn-ABERS.
      resamples: of bootstrap intervals; 0 for none.
      seed: of all resampling.

    Returns:
      JSON values: "process_bench" over all subsets, and "subsets": for each its other results.

    Raises:
      UserError: no subset, an empty one, or an unknown `threshold_on`.
    """
    if not subsets:
        raise UserError("there is nothing to judge: no subset is given")
    for name, cases in subsets.items():
        if not cases:
            raise UserError(f"the subset {name!r} is empty; leave it out")
    results: dict[str, Any] = {
        "process_bench": process_bench(subsets, threshold_on=threshold_on, resamples=resamples, seed=seed),
        "subsets": {},
    }
    for name, cases in subsets.items():
        found = {
            "solutions": len(cases),
            "problems": len({case.group for case in cases}),
            "steps": step_quality(cases),
            "categories": categories(cases, threshold=results["process_bench"].get("threshold")),
            "best_of_n": best_of_n(cases, output=output, seed=seed),
            "ranking": ranking(cases),
            "calibration": calibration(cases, output=output, venn_abers=venn_abers),
            "min_at_last": min_at_last(cases),
            "verbosity": verbosity(cases),
            "tracking": tracking(cases),
        }
        if false_discovery is not None:
            found["selection"] = selection(cases, level=false_discovery, output=output, also=also, seed=seed)
        results["subsets"][name] = found
    return results


def process_bench(
    subsets: Mapping[str, Sequence[Case]], *, threshold_on: str = "", resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The first wrong step, found by a threshold that one subset chooses and all others reuse.

    Args:
      subsets: cases by name; those whose labels do not determine the first wrong step are left out and counted.
      threshold_on: see ``judge_scores``.
      resamples: of the 95 % interval of F1, the threshold held fixed; 0 for none.
      seed: of the resampling.

    Returns:
      "threshold", "threshold_on", "average_f1" (unweighted, over subsets), and "subsets": {name: f1, interval,
      error_acc, correct_acc, wrong, right, unlabelled, random_f1, always_right_f1}.  The random baseline says -1 with
      probability one half and else a uniform step; its F1 is that of its expected accuracies.

    Raises:
      UserError: `threshold_on` is not a subset, or `resamples` is between 1 and 99.
    """
    if 0 < resamples < 100:
        raise UserError(f"resamples: expected 0 (no intervals) or at least 100, found {resamples}; 1000 is the default")
    known = {name: [case for case in cases if case.first_error() is not None] for name, cases in subsets.items()}
    known = {name: cases for name, cases in known.items() if cases}
    if threshold_on and threshold_on not in subsets:
        raise UserError(
            f"unknown subset {threshold_on!r} for the threshold; {suggest(threshold_on, subsets, 'subsets')}"
        )
    if not known:
        return {"skipped": "no solution is labelled up to its first wrong step"}
    chooser = threshold_on or ("gsm8k" if "gsm8k" in known else next(iter(known)))
    if chooser not in known:
        raise UserError(f"the subset {chooser!r} has no labelled solution that could choose the threshold")
    scores, mask = table(known[chooser])
    threshold, _ = compiled.best_threshold(scores, mask, _first_errors(known[chooser]))
    found: dict[str, Any] = {"threshold": float(threshold), "threshold_on": chooser, "subsets": {}}
    for name, cases in known.items():
        scores, mask = table(cases)
        predicted = np.asarray(compiled.first_error(scores, mask, threshold=threshold))
        label = _first_errors(cases)
        result: dict[str, Any] = {key: float(value) for key, value in compiled.first_error_f1(predicted, label).items()}
        steps = mask.sum(1)
        result |= {
            "wrong": int((label >= 0).sum()),
            "right": int((label < 0).sum()),
            "unlabelled": len(subsets[name]) - len(cases),
            "random_f1": _random_f1(label, steps),
            "always_right_f1": float(compiled.first_error_f1(np.full_like(label, -1), label)["f1"]),
        }
        if resamples:
            result["interval"] = bootstrap_f1(predicted == label, label, resamples=resamples, seed=seed)
        found["subsets"][name] = result
    found["average_f1"] = float(np.mean([result["f1"] for result in found["subsets"].values()]))
    return found


def bootstrap_f1(hit: np.ndarray, label: np.ndarray, *, resamples: int, seed: int) -> list[float]:
    """95 % interval of the first-error F1 over cases, [low, high], by the bootstrap of `stats.interval`."""
    kinds = hit + 2.0 * (label >= 0)

    def f1(kinds: np.ndarray) -> np.ndarray:
        wrong, hits = kinds >= 2, kinds % 2
        error = (hits * wrong).sum(-1) / np.maximum(wrong.sum(-1), 1)
        correct = (hits * ~wrong).sum(-1) / np.maximum((~wrong).sum(-1), 1)
        return 2 * error * correct / np.maximum(error + correct, 1e-12)

    if len(kinds) < 2:
        return [float(f1(kinds))] * 2
    return list(interval(kinds, method="bca", statistic=f1, resamples=resamples, seed=seed)[1:])


def step_quality(cases: Sequence[Case]) -> dict[str, Any]:
    """AUC of right against wrong steps: all labelled ones, and those up to the first wrong one."""
    labels, known = labelled(cases)
    scores, _ = table(cases)
    right = labels > 0.5
    wrong = known & ~right
    if not wrong.any() or not (known & right).any():
        return {"skipped": "needs labelled steps, right ones and wrong ones"}
    upto = known & (np.cumsum(wrong, 1) - wrong == 0)
    return {
        "auc": float(compiled.roc_auc(scores, right, known)),
        "auc_to_first_error": float(compiled.roc_auc(scores, right, upto)),
        "right": int((known & right).sum()),
        "wrong": int(wrong.sum()),
    }


def categories(cases: Sequence[Case], *, threshold: float | None) -> dict[str, Any]:
    """By ``provenance.category``: F1 of right and of wrong steps, and their mean, PRMBench's score.

    A step counts as wrong below the threshold of ProcessBench, or below 1/2 without one.
    """
    names = sorted({str(case.provenance["category"]) for case in cases if "category" in case.provenance})
    if not names:
        return {"skipped": "no provenance.category is given"}
    limit = 0.5 if threshold is None else threshold
    found: dict[str, Any] = {}
    for name in names:
        members = [case for case in cases if str(case.provenance.get("category")) == name]
        labels, known = labelled(members)
        scores, _ = table(members)
        if not known.any():
            found[name] = {"solutions": len(members), "skipped": "no labelled step"}
            continue
        says, right = scores[known] >= limit, labels[known] > 0.5
        positive, negative = _f1(says, right), _f1(~says, ~right)
        found[name] = {
            "solutions": len(members), "f1_right": positive, "f1_wrong": negative,
            "score": 0.5 * (positive + negative), "auc": float(compiled.roc_auc(scores, labels > 0.5, known)),
        }  # fmt: skip
    return found


def min_at_last(cases: Sequence[Case]) -> dict[str, Any]:
    """Share of solutions whose lowest score is the last step's: high for a model that judges outcomes only.

    "chance" is what random scores would give: the mean of 1 / (number of steps).
    """
    several = [case for case in cases if len(case.scores) > 1]
    if not several:
        return {"skipped": "no solution has two steps"}
    scores, mask = table(several)
    chance = float(np.mean(1 / mask.sum(1)))
    return {"share": float(compiled.min_at_last_rate(scores, mask)), "chance": chance, "solutions": len(several)}


def verbosity(cases: Sequence[Case]) -> dict[str, Any]:
    """Spearman's correlation of a solution's score with its length and with its number of steps."""
    if len(cases) < 3:
        return {"skipped": "needs three solutions"}
    response = np.asarray([case.response for case in cases], np.float32)
    found = {"steps": float(compiled.spearman(response, np.asarray([len(case.scores) for case in cases], np.float32)))}
    if any(case.length for case in cases):
        found["length"] = float(compiled.spearman(response, np.asarray([case.length for case in cases], np.float32)))
    return found


def _first_errors(cases: Sequence[Case]) -> np.ndarray:
    return np.asarray([case.first_error() for case in cases], np.int32)


def _random_f1(label: np.ndarray, steps: np.ndarray) -> float:
    wrong = label >= 0
    if not wrong.any() or wrong.all():
        return 0.0
    error, correct = float(np.mean(0.5 / steps[wrong])), 0.5
    return 2 * error * correct / (error + correct)


def _f1(says: np.ndarray, true: np.ndarray) -> float:
    both = float((says & true).sum())
    return 2 * both / max(float(says.sum() + true.sum()), 1.0)
