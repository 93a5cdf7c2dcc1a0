"""Curves of runs: loading metrics, grouping runs that differ only in their seed, and aggregating over seeds."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import yaml

from prm_jax.config_io import flat_text
from prm_jax.errors import UserError
from prm_jax.runs.metrics_log import read_metrics

Center = Literal["iqm", "median", "mean"]
Band = Literal["quartiles", "range"]

HOUSEKEEPING = (
    "seed", "baseline", "plots", "tensorboard", "wandb", "save_every", "keep_checkpoints", "sample_every", "watchdog",
    "watchdog_exit",
)  # fmt: skip
"""Options ignored when runs are grouped: they change what is kept or drawn, not what is learned."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The metrics of one run.

    Attributes:
      path: its directory (or metrics file).
      records: as returned by ``read_metrics``.
      config: {"prm.beta": "0.05", ...} as text; empty if the run has no config.yaml.
    """

    path: pathlib.Path
    records: Sequence[Mapping[str, float]]
    config: Mapping[str, str]

    def curve(self, metric: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """(x [N], y [N]) of the records that have both, ascending in x; of equal x the last record is used."""
        points = {r[x]: r[metric] for r in self.records if metric in r and x in r}
        xs = np.array(sorted(points), float)
        return xs, np.array([points[value] for value in sorted(points)], float)

    def metrics(self) -> set[str]:
        """The names of all metrics in the records."""
        return {name for record in self.records for name in record}


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve to draw.

    Attributes:
      label: its name in the legend; empty if it is the only one.
      x: [N] ascending.
      y: [N]; NaN is a gap.
      low, high: [N] edges of the band, or None without one.
      count: number of aggregated runs.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    count: int = 1


def load_run(path: str | pathlib.Path) -> Run:
    """Loads a run directory or a metrics file.

    Raises:
      UserError: the metrics are missing or damaged.
    """
    path = pathlib.Path(path)
    records = read_metrics(path)
    if not records:
        raise UserError(f"{path} has no metrics yet")
    config = (path if path.is_dir() else path.parent) / "config.yaml"
    try:
        saved = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{config} cannot be read: {error}") from error
    return Run(path, records, flat_text(saved) if isinstance(saved, dict) else {})


def nested_runs(path: str | pathlib.Path) -> dict[str, pathlib.Path]:
    """{name: directory} of the runs directly inside a run, such as its baseline."""
    path = pathlib.Path(path)
    return {entry.parent.name: entry.parent for entry in sorted(path.glob("*/metrics.jsonl"))} if path.is_dir() else {}


def group_runs(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Groups runs whose configurations are equal except for the seed and housekeeping options.

    Returns:
      {label: runs}; the label lists the options in which the groups differ, or names the directory if that would be too
      long or there is no configuration.
    """
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        kept = frozenset((name, value) for name, value in run.config.items() if name not in HOUSEKEEPING)
        groups.setdefault(kept or run.path, []).append(run)
    if len(groups) == 1:
        return {"": next(iter(groups.values()))}
    labels = _labels(groups)
    return {labels[key]: members for key, members in groups.items()}


def _labels(groups: Mapping[Any, Sequence[Run]]) -> dict[Any, str]:
    configs = {key: dict(key) if isinstance(key, frozenset) else {} for key in groups}
    names = sorted({name for config in configs.values() for name in config})
    differing = [name for name in names if len({config.get(name) for config in configs.values()}) > 1]
    leaves = [name.rpartition(".")[2] for name in differing]
    short = {n: leaf if leaves.count(leaf) == 1 else n for n, leaf in zip(differing, leaves, strict=True)}
    labels: dict[Any, str] = {}
    for key, members in groups.items():
        config = configs[key]
        text = ", ".join(f"{short[name].replace('_', ' ')} {config.get(name, '-')}" for name in differing)
        if not config or len(differing) > 3 or len(text) > 48:
            path = members[0].path
            text = path.name if path.is_dir() else path.parent.name
        base, number = text, 2
        while text in labels.values():
            text, number = f"{base} ({number})", number + 1
        labels[key] = text
    return labels


def aggregate(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    label: str = "",
    center: Center = "iqm",
    band: Band = "quartiles",
) -> Series:
    """Aggregates the curves of several runs into one series.

    The result has the points of all curves within the range that all of them cover; each curve is interpolated
    linearly between its own points.

    Args:
      curves: (x, y) of each run, ascending in x; empty ones are ignored.
      label: of the result.
      center: the line: interquartile mean, median or mean.
      band: between the quartiles, or between minimum and maximum. Up to three runs always give the range, because
        quartiles of so few runs do not measure spread.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return Series(label, np.zeros(0), np.zeros(0), count=0)
    if len(curves) == 1:
        return Series(label, *curves[0])
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x[(x >= low) & (x <= high)] for x, _ in curves]))
    table = np.stack([np.interp(grid, x, y) for x, y in curves])
    middle = {"iqm": interquartile_mean, "median": _median, "mean": _mean}[center](table)
    ends = (25, 75) if band == "quartiles" and len(curves) > 3 else (0, 100)
    edges = np.percentile(table, ends, axis=0)
    return Series(label, grid, middle, edges[0], edges[1], len(curves))


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean over axis 0 without the lowest and the highest quarter of the values (rounded down), arXiv 2108.13264."""
    drop = values.shape[0] // 4
    return np.sort(values, axis=0)[drop : values.shape[0] - drop].mean(axis=0)


def smooth(y: np.ndarray, width: int) -> np.ndarray:
    """Centred running mean over `width` points, fewer at the ends; NaN points are ignored."""
    if width <= 1 or len(y) < 3:
        return y
    kernel, finite = np.ones(width), np.isfinite(y)
    total = np.convolve(np.where(finite, y, 0.0), kernel, mode="same")
    count = np.convolve(finite.astype(float), kernel, mode="same")
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def _median(values: np.ndarray) -> np.ndarray:
    return np.median(values, axis=0)


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=0)
