"""The figure of the later stages: learning curves, what labels are worth, what PRMs know, and the gain by setting."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.credit.report import area
from experiments.credit.report import load as first_stages
from experiments.credit.settings import CHECKERS
from experiments.report import COLORS, Estimate, Tables, estimate

Runs = Mapping[tuple[str, str, int], Mapping[str, Any]]
BASE = "outcome"
SHOWN = {
    "outcome": "outcomes only", "checker_step_0": "exact step labels", "checker_step_40": "40 % of the labels wrong",
    "reuse": "PRM of earlier rollouts, online", "mix_failed": "online PRM, easier problems too",
    "history_frozen": "PRM of earlier runs, frozen",
}  # fmt: skip
FORMS = {"step": "own step", "cumulative": "cumulative", "return": "reward-to-go", "min": "minimum"}
LEARNED = {
    "value_exact": "earlier runs, exact labels", "reuse": "earlier rollouts", "history": "earlier runs, outcomes",
    "reuse_frozen": "earlier rollouts, frozen", "mix_failed": "online, easier problems too",
    "history_frozen": "earlier runs, outcomes, frozen", "history_frozen_2": "two other runs, frozen",
    "value_outcomes": "values from outcomes",
    "value_rollouts": "values from completions",
}  # fmt: skip
"""Arms whose process rewards a PRM gives that no step label has reached, but for value_exact."""
SETTINGS = {
    "base": ("8 numbers, 8 prompts x 4 samples", "base: 8 steps, 3 % right, 8 x 4"),
    "2 samples": ("16 x 2", "16 x 2"), "8 samples": ("4 x 8", ""),
    "noise": ("a tenth of outcomes wrong", "10 % of outcomes flipped"),
    "5 steps": ("6 numbers", "10 % right at the start"), "3 steps": ("4 numbers", "30 % right at the start"),
    "zeros": ("every other number 0", "30 % right at the start"), "20 steps": ("21 numbers", "20 steps"),
    "backward": ("words spelled backward", ""),
}  # fmt: skip
"""Setting -> (what it is, the point of the simulation that is nearest to it)."""


def draw(runs: Runs, tables: Tables, simulated: Mapping[str, Any], target: pathlib.Path) -> None:
    """Draws the four panels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.8), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    curves, accuracy, knows, points = figure.subplots(2, 2).ravel()
    for color, (arm, name) in zip(COLORS, SHOWN.items(), strict=False):
        own = [run for (setting, one, _), run in runs.items() if (setting, one) == ("base", arm)]
        if own:
            x = own[0]["rollouts"]
            _band(curves, x, np.array([run["sampled"] for run in own]), color, name)
            if own[0].get("label_accuracy"):  # no threshold is known before the first step
                _band(knows, x[1:], np.array([run["label_accuracy"][1:] for run in own]), color, name)
    _title(curves, "Exact step labels teach faster, PRMs hardly or not", "rollouts", "share of right sums")
    knows.axhline(0.7, color="#6b7280", linewidth=0.8, linestyle="--")
    note = {"xytext": (0, 4), "textcoords": "offset points", "ha": "right", "fontsize": 8}
    knows.annotate("worth nothing below", (2560, 0.7), **note)
    _title(knows, "PRMs know too little of the policy's steps", "rollouts", "share of right labels (chance: 0.5)")
    _accuracy(accuracy, runs, target.parent / "results.json")
    _points(points, tables, next((table for name, table in simulated.items() if name.startswith("map")), {}))
    curves.legend(fontsize=8, frameon=False)
    knows.legend(fontsize=8, frameon=False)
    figure.savefig(target)


def _accuracy(axis: Any, runs: Runs, earlier: pathlib.Path) -> None:
    """Gain in area against the accuracy of labels: a checker by form of credit, and PRMs at what was measured."""
    outcomes = {seed: run for (setting, arm, seed), run in runs.items() if (setting, arm) == ("base", BASE)}
    colors = dict(zip(FORMS, COLORS, strict=False))
    for arm in dict.fromkeys(arm for setting, arm, _ in runs if setting == "base" and arm in CHECKERS):
        _, form, flip = arm.split("_")
        own = {seed: run for (setting, one, seed), run in runs.items() if (setting, one) == ("base", arm)}
        budget = outcomes[next(iter(own))]["rollouts"][-1]
        gain = estimate([area(own[s], budget, False) - area(outcomes[s], budget, False) for s in own if s in outcomes])
        shift = 0.006 * (list(colors).index(form))
        axis.errorbar(
            [1 - int(flip) / 100 + shift], [gain], yerr=[[gain - gain.low], [gain.high - gain]], fmt="o",
            color=colors[form], label=f"labels, credit: {FORMS[form]}" if flip == "0" else None,
        )  # fmt: skip
    _earlier_stages(axis, earlier)
    found = []
    for arm in LEARNED:
        own = {seed: run for (setting, one, seed), run in runs.items() if (setting, one) == ("base", arm)}
        both = [seed for seed in own if seed in outcomes and own[seed].get("label_accuracy")]
        if both:
            budget = outcomes[both[0]]["rollouts"][-1]
            gain = float(np.mean([area(own[s], budget, False) - area(outcomes[s], budget, False) for s in both]))
            found.append((float(np.mean([own[seed]["label_accuracy"][1:] for seed in both])), gain, arm))
    for number, (known, gain, arm) in enumerate(sorted(found), 1):
        axis.plot([known], [gain], "s", color="#111827", ms=5, label=f"PRM {number}: {LEARNED[arm]}")
        axis.annotate(str(number), (known, gain), xytext=(5, 3), textcoords="offset points", fontsize=8)
    axis.axhline(0.0, color="#6b7280", linewidth=0.8)
    axis.set_xlim(0.5, 1.5)
    axis.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    axis.legend(fontsize=7.5, frameon=False, loc="center right")
    _title(
        axis, "More than 7 of 10 step labels must be right", "share of right step labels",
        "mean accuracy of the run, minus outcomes only",
    )  # fmt: skip


def _earlier_stages(axis: Any, results: pathlib.Path) -> None:
    """The same for step-local credit in stage 1, from other starts."""
    if not results.is_file():
        return
    runs = first_stages(results, "long")
    for arm, right in (("checker", 1.0), ("checker_flip20", 0.8)):
        both = [seed for name, seed in runs if name == arm and (BASE, seed) in runs]
        budget = runs[BASE, both[0]]["rollouts"][-1]
        gain = estimate([area(runs[arm, s], budget, False) - area(runs[BASE, s], budget, False) for s in both])
        spread = [[gain - gain.low], [gain.high - gain]]
        axis.errorbar(
            [right - 0.008], [gain], yerr=spread, fmt="o", color=COLORS[0], mfc="white",
            label=f"the same, stage 1 ({len(both)} starts)" if right == 1 else None,
        )  # fmt: skip


def _points(axis: Any, tables: Tables, simulated: Mapping[str, Any]) -> None:
    """How many times fewer rollouts exact labels need than outcomes, measured and in the simulation."""
    ratio, names = "rollouts to outcome's last accuracy, outcome / arm", []
    for setting, (name, point) in SETTINGS.items():
        rows = tables.get(f"{setting}: paired by seed", {})
        if ratio not in rows.get("checker_step_0", {}):
            continue
        start = float(rows[BASE]["start"])
        names.append(f"{name}\n({100 * start:.0f} % right at the start)")
        drawn = {"measured": rows["checker_step_0"][ratio]}
        if point in simulated:
            drawn["simulated"] = simulated[point]["checker"]
        for (kind, value), style in zip(drawn.items(), ({"mfc": COLORS[1]}, {"mfc": "white"}), strict=False):
            found = value if isinstance(value, Estimate) else Estimate(*value)
            place = len(names) - 1 + (0.12 if kind == "simulated" else -0.12)
            spread = [[found - found.low], [found.high - found]]
            label = f"exact labels, {kind}" if len(names) == 1 else None
            axis.errorbar([found], [place], xerr=spread, fmt="o", ms=5, color=COLORS[1], label=label, **style)
    axis.axvline(1.0, color="#6b7280", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks([1, 1.5, 2, 3, 4], ["1", "1.5", "2", "3", "4"])
    axis.minorticks_off()
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.legend(fontsize=8, frameon=False)
    _title(axis, "Labels are worth most where outcomes say least", "times fewer rollouts than outcomes only", "")


def _title(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _band(axis: Any, x: Sequence[float], values: np.ndarray, color: str, name: str) -> None:
    """The mean over seeds (rows) with its 95 % interval."""
    found = [estimate(column) for column in values.T]
    axis.plot(x, [float(e) for e in found], color=color, label=name, linewidth=1.6)
    axis.fill_between(x, [e.low for e in found], [e.high for e in found], color=color, alpha=0.12)
