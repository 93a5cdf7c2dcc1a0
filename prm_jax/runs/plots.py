"""Learning curves as PNG: panels of one run, the policies of a run compared, and runs with their seeds as bands.

Everything is drawn off screen, without a window system or global matplotlib state. Needs the extra plots.
"""

import dataclasses
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prm_jax.errors import UserError, require
from prm_jax.runs import curves
from prm_jax.runs.curves import Band, Center, Run, Series
from prm_jax.runs.panels import PICTURES, Panel, on_policy

# Okabe and Ito's palette for all kinds of colour vision, without black and yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK, _GRID = "#222222", "#E4E4E4"
_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "text.color": _INK,
    "legend.frameon": False,
}
TITLE_CHARACTERS, NOTE_CHARACTERS = 9.5, 15.0
"""Characters that fit into one inch of a panel's title and of the notes below the panels."""

X_LABELS = {"step": "training step", "rollouts": "responses sampled", "seconds": "time (s)"}


@dataclasses.dataclass(frozen=True)
class Style:
    """Appearance of the pictures.

    Attributes:
      center: the line of several seeds.
      band: the band of several seeds.
      dpi: resolution.
      width, height: size of one panel in inches.
    """

    center: Center = "iqm"
    band: Band = "quartiles"
    dpi: int = 150
    width: float = 3.7
    height: float = 2.5


def plot_report(
    runs: Mapping[str, str | pathlib.Path], out: str | pathlib.Path, *, style: Style = Style()
) -> list[pathlib.Path]:
    """Draws the standard pictures of a finished run.

    Args:
      runs: {name of a policy: its run directory}.
      out: directory of the pictures; created if missing.
      style: appearance.

    Returns:
      Paths of the pictures.

    Raises:
      MissingExtraError: matplotlib is not installed.
      UserError: a run has no metrics, or the pictures cannot be written.
    """
    groups = {name: [curves.load_run(path)] for name, path in runs.items()}
    if len(groups) == 1:
        groups = {"": next(iter(groups.values()))}
    return _draw_all(groups, pathlib.Path(out), PICTURES, "step", style)


def plot_runs(
    paths: Sequence[str | pathlib.Path],
    out: str | pathlib.Path,
    *,
    metrics: Sequence[str] = (),
    x: str = "step",
    style: Style = Style(),
) -> list[pathlib.Path]:
    """Draws the curves of runs; those that differ only in their seed become one line with a band.

    Args:
      paths: run directories or metrics files. The baseline inside a run directory counts as a run of its own.
      out: directory of the pictures; created if missing.
      metrics: draw only these, one picture each; default: the standard pictures.
      x: "step", "rollouts" or "seconds".
      style: appearance.

    Returns:
      Paths of the pictures.

    Raises:
      MissingExtraError: matplotlib is not installed.
      UserError: a run has no metrics, a metric is unknown (near matches are suggested), or a picture cannot be written.
    """
    groups = _arms(paths)
    known = sorted(set().union(*(run.metrics() for members in groups.values() for run in members)))
    pictures: Mapping[str, Sequence[Panel]] = PICTURES
    if metrics:
        standard = {panel.metric: panel for panels in PICTURES.values() for panel in panels}
        for name in metrics:
            if name not in known:
                raise UserError(f"no run has the metric {name!r}{_nearest(name, known)}")
        asked = [dataclasses.replace(standard.get(n, Panel(n, n)), vanishes=False, off_policy=False) for n in metrics]
        pictures = {panel.metric.replace("/", "_"): [panel] for panel in asked}
    return _draw_all(groups, pathlib.Path(out), pictures, x, style)


def draw(
    panels: Sequence[tuple[Panel, Sequence[Series]]],
    path: str | pathlib.Path,
    *,
    x_label: str = X_LABELS["step"],
    style: Style = Style(),
    colors: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> pathlib.Path:
    """Draws one picture.

    Args:
      panels: panels with their series; at least one.
      path: the PNG file to write.
      x_label: label of the horizontal axis, shown below the lowest panels.
      style: appearance.
      colors: {label: colour}; default: by order of appearance.
      notes: sentences added to the explanation below the panels.

    Returns:
      `path`.

    Raises:
      MissingExtraError: matplotlib is not installed.
      UserError: the file cannot be written.
    """
    matplotlib = require("matplotlib", "plots")
    figure_module, agg = require("matplotlib.figure", "plots"), require("matplotlib.backends.backend_agg", "plots")
    labels = list(dict.fromkeys(series.label for _, drawn in panels for series in drawn))
    colors = colors or {label: COLORS[i % len(COLORS)] for i, label in enumerate(labels)}
    columns = min(len(panels), 3 if len(panels) > 4 else 2)
    rows = -(-len(panels) // columns)
    scale = 1.35 if len(panels) == 1 else 1.0
    size = (columns * style.width * scale, rows * style.height * scale + 0.45)
    with matplotlib.rc_context(_RC):
        figure = figure_module.Figure(figsize=size, layout="constrained")
        agg.FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        smoothed = 0
        ends = _x_range(panels)
        for index, axis in enumerate(axes.flat):
            if index >= len(panels):
                axis.set_visible(False)
                continue
            panel, drawn = panels[index]
            smoothed = max(smoothed, _draw_panel(axis, panel, drawn, colors))
            axis.set_title(textwrap.fill(panel.title, width=round(style.width * scale * TITLE_CHARACTERS)))
            if ends is not None:
                axis.set_xlim(*ends)
            if index + columns >= len(panels):
                axis.set_xlabel(x_label)
        _legend(figure, labels, colors)
        explanation = ".  ".join([*_explanation(panels, smoothed, style), *notes])
        if explanation:
            wrapped = textwrap.fill(explanation, width=round(size[0] * NOTE_CHARACTERS))
            figure.supxlabel(wrapped, fontsize=8.5, color="#666666", x=0.01, ha="left")
        path = pathlib.Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=style.dpi)
        except OSError as error:
            raise UserError(f"cannot write the picture {path}: {error.strerror}") from error
    return path


def _arms(paths: Sequence[str | pathlib.Path]) -> dict[str, list[Run]]:
    """Groups of runs; if runs contain baselines, each policy is named and grouped separately."""
    by_arm: dict[str, list[Run]] = {}
    nested = [curves.nested_runs(path) for path in paths]
    main = "PRIME" if any(nested) else ""
    for path, inner in zip(paths, nested, strict=True):
        by_arm.setdefault(main, []).append(curves.load_run(path))
        for name, inner_path in inner.items():
            by_arm.setdefault(name.replace("_", " "), []).append(curves.load_run(inner_path))
    groups = {}
    for arm, runs in by_arm.items():
        for label, members in curves.group_runs(runs).items():
            groups[", ".join(part for part in (arm, label) if part)] = members
    return groups


def _draw_all(
    groups: Mapping[str, Sequence[Run]],
    out: pathlib.Path,
    pictures: Mapping[str, Sequence[Panel]],
    x: str,
    style: Style,
) -> list[pathlib.Path]:
    colors = {label: COLORS[i % len(COLORS)] for i, label in enumerate(groups)}
    is_on_policy = all(on_policy(run.config) for members in groups.values() for run in members)
    equal_rollouts = _equal_rollouts(groups) if x == "step" else ""
    written = []
    for name, panels in pictures.items():
        filled, omitted = [], []
        for panel in panels:
            drawn = [_series(members, panel.metric, x, label, style) for label, members in groups.items()]
            drawn = [series for series in drawn if np.isfinite(series.y).any()]
            if drawn and panel.tells_nothing([series.y for series in drawn], is_on_policy):
                omitted.append(panel.title)
            elif drawn:
                filled.append((panel, drawn))
        if filled:
            several = len({series.label for _, drawn in filled for series in drawn}) > 1
            notes = [equal_rollouts] if equal_rollouts and several else []
            if omitted:
                notes.append(f"Not drawn, because constant or rounding noise: {', '.join(omitted)}")
            label = X_LABELS.get(x, x)
            written.append(draw(filled, out / f"{name}.png", x_label=label, style=style, colors=colors, notes=notes))
    if not written:
        raise UserError("these runs have no metrics to draw yet")
    return written


def _equal_rollouts(groups: Mapping[str, Sequence[Run]]) -> str:
    """Why policies that were compared ran for different numbers of steps; empty if they did not.

    A policy without a PRM gets the responses that warmed the PRM up as additional steps.
    """
    ends = {}
    for label, members in groups.items():
        steps, rollouts = members[0].curve("rollouts")
        if not len(steps):
            return ""
        ends[label] = (steps[-1], rollouts[-1])
    (short, (fewer, sampled)), (long, (more, also)) = min(ends.items(), key=_by_steps), max(ends.items(), key=_by_steps)
    if fewer == more or abs(sampled - also) > 0.05 * also:
        return ""
    return (
        f"More steps for {long} ({more:.0f}) than for {short} ({fewer:.0f}): both sample {also:,.0f} responses in "
        f"total, and {short} uses some of them to warm up its PRM"
    )


def _by_steps(entry: tuple[str, tuple[float, float]]) -> float:
    return entry[1][0]


def _series(members: Sequence[Run], metric: str, x: str, label: str, style: Style) -> Series:
    found = [run.curve(metric, x) for run in members]
    return curves.aggregate(found, label=label, center=style.center, band=style.band)


def _draw_panel(axis: Any, panel: Panel, drawn: Sequence[Series], colors: Mapping[str, str]) -> int:
    """Draws the lines; returns the width of the running mean, 0 without one."""
    values = np.concatenate([s.y[np.isfinite(s.y)] for s in drawn])
    scale = 100.0 if panel.percent else 1.0
    log = panel.log and values.min() > 0 and values.max() > 20 * values.min()
    widest = 0
    if panel.chance is not None:
        axis.axhline(panel.chance * scale, color="#999999", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for index, series in enumerate(drawn):
        color = colors[series.label]
        thickness = 1.8 if len(drawn) == 1 else max(2.6 - 1.1 * index, 1.2)  # equal curves stay visible
        window = len(series.y) // 20 | 1 if len(series.y) >= 60 else 1
        widest = max(widest, window)
        y, low, high = (_smooth(v, window, log) for v in (series.y, series.low, series.high))
        if low is not None:
            axis.fill_between(series.x, low * scale, high * scale, color=color, alpha=0.18, linewidth=0)
        elif window > 1:
            axis.plot(series.x, series.y * scale, color=color, linewidth=0.8, alpha=0.3)
        marker = "o" if len(series.x) <= 25 else None
        axis.plot(series.x, y * scale, color=color, linewidth=thickness, marker=marker, markersize=2 + thickness)
    axis.set_ylabel(panel.label)
    axis.xaxis.set_major_locator(require("matplotlib.ticker", "plots").MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    if log:
        axis.set_yscale("log")
    else:
        sign = "%" if panel.percent else ""
        axis.yaxis.set_major_formatter(lambda value, position: f"{value:.4g}{sign}")
    if (panel.percent or panel.unit) and values.min() >= 0 and values.max() <= 1:
        _limit(axis, values, panel.chance, scale)
    return widest if widest > 1 else 0


def _smooth(values: np.ndarray | None, window: int, log: bool) -> Any:
    if values is None or window <= 1:
        return values
    # On a logarithmic axis the logarithms are averaged, so that one peak does not hide its neighbours.
    return np.exp(curves.smooth(np.log(values), window)) if log else curves.smooth(values, window)


def _limit(axis: Any, values: np.ndarray, chance: float | None, scale: float) -> None:
    """Shows all of [0, 1], so that noise does not fill the axis; zooms in on small values, and starts at chance."""
    highest = max(float(values.max()), chance or 0.0)
    top = 1.02 if highest > 0.4 else 1.15 * max(highest, 0.02)
    bottom = 0.0 if chance is None else max(0.0, min(chance, float(values.min())) - 0.05)
    axis.set_ylim((bottom or -0.015 * top) * scale, top * scale)


def _x_range(panels: Sequence[tuple[Panel, Sequence[Series]]]) -> tuple[float, float] | None:
    """The same horizontal range for all panels, with a small margin; None where every curve is a single point."""
    xs = np.concatenate([series.x for _, drawn in panels for series in drawn])
    low, high = float(xs.min()), float(xs.max())
    margin = 0.02 * (high - low)
    return (low - margin, high + margin) if high > low else None


def _legend(figure: Any, labels: Sequence[str], colors: Mapping[str, str]) -> None:
    if len(labels) > 1:
        lines = require("matplotlib.lines", "plots")
        handles = [lines.Line2D([], [], color=colors[label], linewidth=2.2, label=label) for label in labels]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(labels), 3), fontsize=10)


def _explanation(panels: Sequence[tuple[Panel, Sequence[Series]]], smoothed: int, style: Style) -> list[str]:
    """Sentences that explain lines and bands."""
    notes = []
    counts = sorted({series.count for _, drawn in panels for series in drawn if series.count > 1})
    if counts:
        seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        line = {"iqm": "interquartile mean", "median": "median", "mean": "mean"}[style.center]
        band = "quartiles" if style.band == "quartiles" and counts[0] > 3 else "minimum to maximum"
        notes.append(f"Line: {line} of {seeds} seeds; band: {band}")
    if smoothed and counts:
        notes.append(f"Long curves: running mean over {smoothed} points")
    elif smoothed:
        notes.append(f"Thin: every point; thick: running mean over {smoothed} points")
    if any(panel.chance is not None for panel, _ in panels):
        notes.append("Dashed: chance")
    return notes


def _nearest(name: str, known: Sequence[str]) -> str:
    from prm_jax.option_values import closest

    return closest(name, known) or f"; known metrics: {', '.join(known)}"
