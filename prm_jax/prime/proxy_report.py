"""Process rewards against outcomes over a run: do both still rise together?  (Alignment ceiling, arXiv 2311.00168.)"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prm_jax import stats

_PROXY, _GOLD = "watch/reward", "rollout/solve_rate"
_WINDOWS = 10
_report = jax.jit(stats.proxy_gold_report, static_argnames="tolerance")


def proxy_gold(records: Sequence[Mapping[str, float]], *, tolerance: float) -> dict[str, Any]:
    """The proxy (mean process reward of a response) and the gold (solve rate) in up to ten windows of a run's steps.

    Args:
      records: metrics of steps and evaluations in order, each with "step".
      tolerance: drop in the solve rate that counts as noise.

    Returns:
      "steps" (the last of each window), "proxy", "gold", "spearman" and "r_squared" (within batches, averaged over the
      window), each a list; "correlation" of proxy and gold over windows; "diverged_at", the last step of the first
      window in which the proxy is above, and the gold more than `tolerance` below, that of the best window so far, or
      None. {} for fewer than two steps with process rewards.
    """
    rows = [record for record in records if math.isfinite(record.get(_PROXY, math.nan)) and _GOLD in record]
    if len(rows) < 2:
        return {}
    parts = [part.tolist() for part in np.array_split(np.arange(len(rows)), min(_WINDOWS, len(rows)))]
    mask = np.arange(max(map(len, parts))) < np.asarray([len(part) for part in parts])[:, None]
    proxy, gold = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
    for array, name in ((proxy, _PROXY), (gold, _GOLD)):
        array[mask] = [rows[index][name] for part in parts for index in part]
    found = jax.device_get(_report(proxy, gold, mask, tolerance=tolerance))
    first, steps = int(found["first_divergence"]), [int(rows[part[-1]]["step"]) for part in parts]
    return {
        "steps": steps,
        "proxy": found["proxy_mean"].tolist(),
        "gold": found["gold_mean"].tolist(),
        "spearman": [_mean([rows[i].get("gold/spearman", 0.0) for i in part]) for part in parts],
        "r_squared": [_mean([rows[i].get("gold/r_squared", 0.0) for i in part]) for part in parts],
        "correlation": float(found["checkpoint_correlation"]),
        "diverged_at": None if first < 0 else steps[first],
    }


def proxy_table(found: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """(title, header, rows) of what `proxy_gold` returned: its first and last window."""
    title = "Process rewards against outcomes, during training"
    header = ["", "first tenth", "last tenth"]
    if not found:
        return title, header, []
    names = {
        "proxy": "process reward per response", "gold": "solve rate",
        "spearman": "rank correlation with the outcome", "r_squared": "R^2 with the outcome",
    }  # fmt: skip
    rows = [[text, f"{found[name][0]:.3f}", f"{found[name][-1]:.3f}"] for name, text in names.items()]
    diverged = "never" if found["diverged_at"] is None else f"step {found['diverged_at']}"
    rows.append(["correlation over the run", "", f"{found['correlation']:.3f}"])
    rows.append(["rewards rose while the solve rate fell, first seen", "", diverged])
    return title, header, rows


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
