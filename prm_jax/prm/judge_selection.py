"""The value of choosing solutions by score: best-of-n, votes, one against many, selection with few false discoveries.

Best-of-n's curve is unbiased and shows the bound on the divergence (arXiv 2401.01879); weighted votes as in arXiv
2412.01981; one against many as in RewardMATH, arXiv 2410.01729; conformal selection, arXiv 2210.01408;
its optimisation over several scorers, arXiv 2411.17983.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax.errors import UserError
from prm_jax.prm import compiled
from prm_jax.prm.cases import Case, by_group, halves, table
from prm_jax.prm.judge_calibration import as_chance
from prm_jax.prm.reward_model_options import Aggregate

_PLAIN: tuple[Aggregate, ...] = ("last", "min", "mean", "max", "sum", "softmin")
_CHANCES: tuple[Aggregate, ...] = ("prod", "gmean", "mean_logit", "mean_odds")
_DRAWS = 64  # subsets of n solutions over which a vote is averaged


def best_of_n(cases: Sequence[Case], *, output: str, seed: int = 0) -> dict[str, Any]:
    """The accuracy of the solution that each aggregation, or a vote, picks among n.

    Args:
      cases: with outcomes, several per problem.
      output: what step scores are; aggregations of chances are left out for other scores.
      seed: of the subsets over which votes are averaged; picks are averaged over all subsets exactly.

    Returns:
      "sizes" [K], "kl_bound" [K], "problems" [K]; "accuracy": {aggregation: [K]}, "as_scored" for the given
      scores; "votes": {"majority", "weighted": [K]} where provenance.answer is known; "random", "oracle" [K];
      "over_optimization": alpha and beta of d (alpha - beta d), d = sqrt(KL), for the given scores.
    """
    groups = [found for found in by_group(c for c in cases if c.outcome is not None).values() if len(found) > 1]
    if not groups:
        return {"skipped": "needs several solutions per problem with outcomes"}
    most = max(map(len, groups))
    sizes = [n for n in (2**k for k in range(12)) if n < most] + [most]
    mask = _square(groups, lambda case: 1.0, most) > 0
    gold = _square(groups, lambda case: case.outcome, most)
    flat = [case for group in groups for case in group]
    scores, step_mask = table(flat)
    aggregates = _aggregates_for(scores, step_mask, output)
    values = np.asarray(compiled.aggregates(scores, step_mask, hows=aggregates))
    values = np.concatenate([[[case.response for case in flat]], values]).astype(np.float32)
    proxies = np.stack([_unflatten(row, groups, most) for row in values])
    curves, law = jax.device_get(compiled.bon_curves(proxies, gold, mask, sizes=tuple(sizes)))
    count, good = mask.sum(1), (gold * mask).sum(1)
    result: dict[str, Any] = {
        "sizes": sizes,
        "kl_bound": curves.kl[0].tolist(),
        "problems": curves.prompts[0].astype(int).tolist(),
        "accuracy": dict(zip(["as_scored", *aggregates], curves.gold.tolist(), strict=True)),
        "proxy": curves.proxy[0].tolist(),
        "random": [float((good / count)[count >= n].mean()) for n in sizes],
        "over_optimization": {"alpha": float(law.alpha), "beta": float(law.beta)},
    }
    if set(np.unique(gold[mask])) <= {0.0, 1.0}:
        result["oracle"] = [float(np.mean(compiled.pass_at_k(count, good, k=n), where=count >= n)) for n in sizes]
    if all("answer" in case.provenance for case in flat):
        chance = as_chance(np.asarray([case.response for case in flat], np.float32), output)
        result["votes"] = _votes(groups, _unflatten(chance, groups, most), gold, mask, sizes, seed)
    return result


def ranking(cases: Sequence[Case]) -> dict[str, Any]:
    """One right solution against the wrong ones of its problem; of several right ones the one with the lowest score."""
    chosen, rejected = [], []
    for group in by_group(case for case in cases if case.outcome is not None).values():
        right = [case.response for case in group if case.outcome is not None and case.outcome > 0.5]
        wrong = [case.response for case in group if case.outcome is not None and case.outcome <= 0.5]
        if right and wrong:
            chosen.append(min(right))
            rejected.append(wrong)
    if not chosen:
        return {"skipped": "no problem has a right and a wrong solution"}
    width = max(map(len, rejected))
    wrongs = np.asarray([row + [0.0] * (width - len(row)) for row in rejected], np.float32)
    mask = np.asarray([[True] * len(row) + [False] * (width - len(row)) for row in rejected])
    found = compiled.ranking_metrics(np.asarray(chosen, np.float32), wrongs, mask)
    return {name: float(value) for name, value in found.items()} | {"problems": len(chosen)}


def selection(
    cases: Sequence[Case], *, level: float, output: str = "score", also: Mapping[str, Mapping[str, Case]] = {},
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Selects solutions such that in expectation at most a fraction `level` of them is wrong.

    One half of the problems calibrates conformal p-values, Benjamini-Hochberg selects among the other half, and the
    outcomes known there say how it went.

    Args:
      cases: with outcomes.
      level: see above.
      output: what step scores are; aggregations of chances are left out for other scores.
      also: the same solutions, by id, as other models score them.
      seed: of the optimised selection.

    Returns:
      The selection by the given scores, and "optimized": that by OptCS (arXiv 2411.17983), which chooses between all
      aggregations of the step scores and the other models without losing the bound.

    Raises:
      UserError: another model does not score a solution.
    """
    judged = [case for case in cases if case.outcome is not None]
    side = halves(judged) if judged else np.zeros(0, bool)
    if min(side.sum(), (~side).sum()) < 10:
        return {"skipped": "needs ten solutions with outcomes in either half of the problems"}
    good = np.asarray([case.outcome is not None and case.outcome > 0.5 for case in judged])
    response = np.asarray([case.response for case in judged], np.float32)
    values = compiled.conformal_pvalues(response[side], good[side], response[~side])
    chosen = np.asarray(compiled.benjamini_hochberg(values, level=level))
    tests = [case for case, calibrates in zip(judged, side, strict=True) if not calibrates]
    false = int((chosen & ~good[~side]).sum())
    return {
        "level": level,
        "candidates": len(tests),
        "selected": int(chosen.sum()),
        "false": false,
        "false_share": false / max(int(chosen.sum()), 1),
        "base_rate": float(good[~side].mean()),
        "ids": [case.id for case, taken in zip(tests, chosen, strict=True) if taken],
        "optimized": _optimized(judged, good, side, level, output, also, seed),
    }


_MOST = 4000  # candidates of the optimised selection, whose time grows with their square


def _optimized(
    judged: Sequence[Case], good: np.ndarray, side: np.ndarray, level: float, output: str,
    also: Mapping[str, Mapping[str, Case]], seed: int,
) -> dict[str, Any]:  # fmt: skip
    if (~side).sum() > _MOST:
        return {"skipped": f"there are {int((~side).sum())} candidates; it takes at most {_MOST}"}
    scores, mask = table(judged)
    names = _aggregates_for(scores, mask, output)
    columns = {"as_scored": np.asarray([case.response for case in judged], np.float32)}
    columns |= dict(zip(names, np.asarray(compiled.aggregates(scores, mask, hows=names)), strict=True))
    for name, other in also.items():
        missing = next((case.id for case in judged if case.id not in other), None)
        if missing is not None:
            raise UserError(f"--also {name} has no scores of the solution {missing!r}: score the same data with it")
        columns[name] = np.asarray([other[case.id].response for case in judged], np.float32)
    values = np.stack(list(columns.values()), 1)
    found = compiled.optimized_selection(values[side], good[side], values[~side], jax.random.key(seed), level=level)
    chosen, scorer = np.asarray(found.selected), np.asarray(found.scorer)
    false = int((chosen & ~good[~side]).sum())
    used = {name: int((chosen & (scorer == k)).sum()) for k, name in enumerate(columns)}
    return {
        "scorers": {name: count for name, count in used.items() if count} or list(columns),
        "selected": int(chosen.sum()),
        "false": false,
        "false_share": false / max(int(chosen.sum()), 1),
        "ids": [case.id for case, taken in zip(np.asarray(judged, object)[~side], chosen, strict=True) if taken],
    }


def _aggregates_for(scores: np.ndarray, mask: np.ndarray, output: str) -> tuple[Aggregate, ...]:
    """The aggregations that step scores allow."""
    chances = output in ("probability", "value") and ((scores >= 0) & (scores <= 1))[mask].all()
    return (*_PLAIN, *_CHANCES) if chances else _PLAIN


def tracking(cases: Sequence[Case]) -> dict[str, Any]:
    """Proxy against gold over ``provenance.update``, the policy's update that a solution was sampled after."""
    numbered = [case for case in cases if isinstance(case.provenance.get("update"), int) and case.outcome is not None]
    updates = sorted({case.provenance["update"] for case in numbered})
    if len(updates) < 2:
        return {"skipped": "needs solutions with outcomes and provenance.update of two updates"}
    groups = [[case for case in numbered if case.provenance["update"] == update] for update in updates]
    most = max(map(len, groups))
    mask = _square(groups, lambda case: 1.0, most) > 0
    report = compiled.proxy_gold_report(
        _square(groups, lambda case: case.response, most), _square(groups, lambda case: case.outcome, most), mask
    )
    return {"updates": updates} | {name: np.asarray(value).tolist() for name, value in report.items()}


def _votes(
    groups: Sequence[Sequence[Case]], weight: np.ndarray, gold: np.ndarray, mask: np.ndarray, sizes: Sequence[int],
    seed: int,
) -> dict[str, list[float]]:  # fmt: skip
    """Accuracy of the answer with the largest total weight among n solutions, averaged over subsets."""
    names: dict[tuple[int, str], int] = {}
    answers = np.full(mask.shape, -1, np.int32)
    for row, group in enumerate(groups):
        for column, case in enumerate(group):
            answers[row, column] = names.setdefault((row, str(case.provenance["answer"])), len(names))
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"majority": [], "weighted": []}
    width = mask.shape[1]
    for n in sizes:
        rows = np.flatnonzero(mask.sum(1) >= n)
        draws = 1 if n == width else _DRAWS
        keys = np.where(mask[rows], rng.random((draws, len(rows), width)), 2.0)
        drawn = np.sort(np.argsort(keys, axis=-1)[..., :n], axis=-1)  # ties go to the answer seen first
        picked, true = (np.take_along_axis(x[None, rows], drawn, -1) for x in (answers, gold))
        for name, values in (("majority", np.ones_like(weight)), ("weighted", weight)):
            totals = np.asarray(compiled.vote_totals(np.take_along_axis(values[None, rows], drawn, -1), picked))
            found[name].append(float(np.take_along_axis(true, totals.argmax(-1)[..., None], -1).mean()))
    return found


def _square(groups: Sequence[Sequence[Case]], value: Any, width: int) -> np.ndarray:
    """[P, N] of a value of every case, 0 after the end of a group."""
    return np.asarray([[value(case) for case in group] + [0.0] * (width - len(group)) for group in groups], np.float32)


def _unflatten(values: np.ndarray, groups: Sequence[Sequence[Case]], width: int) -> np.ndarray:
    out, at = np.zeros((len(groups), width), np.float32), 0
    for row, group in enumerate(groups):
        out[row, : len(group)] = values[at : at + len(group)]
        at += len(group)
    return out
