"""Tables and figure of the runs in results.json: areas under learning curves, rollouts to a level, differences."""

import json
import pathlib
from typing import Any

import numpy as np

from experiments.report import COLORS, Estimate, estimate, machine, plain, render

BASE = "outcome"
LEVELS = {"long": 0.3, "short": 0.7}
"""Sampled accuracies that "rollouts to" waits for."""
Runs = dict[tuple[str, int], dict[str, Any]]


def load(results: pathlib.Path, task: str) -> Runs:
    """(arm, seed) -> run; of an arm with several learning rates the last one that was added."""
    return {(one["arm"], one["seed"]): one for one in json.loads(results.read_text())["runs"] if one["task"] == task}


def charged(run: dict[str, Any], charge: bool) -> tuple[np.ndarray, np.ndarray]:
    """(rollouts, sampled accuracies) of a run; with `charge` its warm-up comes first, at the start's accuracy."""
    rollouts, accuracy = np.asarray(run["rollouts"], float), np.asarray(run["sampled"], float)
    if charge and run["warm_up_rollouts"]:
        rollouts = np.concatenate([[0.0], rollouts + run["warm_up_rollouts"]])
        accuracy = np.concatenate([accuracy[:1], accuracy])
    return rollouts, accuracy


def area(run: dict[str, Any], budget: float, charge: bool) -> float:
    """Mean sampled accuracy over the first `budget` rollouts, by the trapezoidal rule."""
    rollouts, accuracy = charged(run, charge)
    grid = np.unique(np.concatenate([rollouts[rollouts < budget], [budget]]))
    values = np.interp(grid, rollouts, accuracy)
    return float(((values[1:] + values[:-1]) / 2 * np.diff(grid)).sum() / budget)


def rollouts_to(run: dict[str, Any], level: float, budget: float, charge: bool) -> float:
    """Rollouts after which the accuracy first reaches a level, interpolated; the budget where it never does."""
    rollouts, accuracy = charged(run, charge)
    above = np.flatnonzero(accuracy >= level)
    if not len(above):
        return budget
    i = int(above[0])
    if i == 0:
        return float(rollouts[0])
    there = np.interp(level, accuracy[i - 1 : i + 1], rollouts[i - 1 : i + 1])
    return float(min(there, budget))


def ratio(values: list[float], base: list[float]) -> Estimate:
    """The geometric mean of paired ratios with its Student interval."""
    logs = estimate(np.log(np.asarray(values)) - np.log(np.asarray(base)))
    return Estimate(float(np.exp(logs)), float(np.exp(logs.low)), float(np.exp(logs.high)))


def summary(runs: Runs, task: str) -> dict[str, dict[str, dict[str, float]]]:
    """Tables of a task: what every arm reached, and paired differences to outcome-only training."""
    level = LEVELS.get(task, 0.5)
    arms = list(dict.fromkeys(arm for arm, _ in runs))
    budget = max(run["rollouts"][-1] for run in runs.values())
    reached: dict[str, dict[str, float]] = {}
    paired: dict[str, dict[str, float]] = {}
    for arm in arms:
        own = {seed: run for (name, seed), run in runs.items() if name == arm}
        reached[arm] = {
            "seeds": float(len(own)),
            "start": estimate([run["sampled"][0] for run in own.values()]),
            "final": estimate([run["sampled"][-1] for run in own.values()]),
            "processor s": float(np.median([run["processor_seconds"] for run in own.values()])),
        }
        aucs = [run["auc"] for run in own.values() if run.get("auc")]
        if aucs and arm.startswith(("easier", "prime")):
            reached[arm] |= {
                "step AUC, start": float(np.mean([one[0] for one in aucs])),
                "step AUC, end": float(np.mean([one[-1] for one in aucs])),
            }
        both = [seed for seed in own if (BASE, seed) in runs]
        if arm == BASE or not both:
            continue
        paired[arm] = {"seeds": float(len(both))}
        for charge in (True, False):
            if not charge and not next(iter(own.values()))["warm_up_rollouts"]:
                continue
            name = "" if charge else " (warm-up free)"
            areas = [[area(runs[a, seed], budget, charge) for seed in both] for a in (arm, BASE)]
            spent = [[rollouts_to(runs[a, seed], level, budget, charge) for seed in both] for a in (arm, BASE)]
            paired[arm] |= {
                f"area{name}": estimate(areas[0]), f"area minus outcome{name}": estimate(np.subtract(*areas)),
                f"seeds ahead{name}": float(sum(x > y for x, y in zip(*areas, strict=True))),
                f"rollouts to {level:g}, outcome / arm{name}": ratio(spent[1], spent[0]),
            }  # fmt: skip
    return {f"{task}: all arms": reached, f"{task}: paired by seed": paired}


def report(results: pathlib.Path) -> None:
    """Prints the tables, adds them to the results, and draws figure.png beside them."""
    record = json.loads(results.read_text())
    tasks = list(dict.fromkeys(one["task"] for one in record["runs"]))
    tables: dict[str, Any] = {}
    for task in tasks:
        tables |= summary(load(results, task), task)
    print(render(tables))
    write({**record, "machine": machine(), "tables": plain(tables)}, results)
    draw(results, tasks, results.parent / "figure.png")


def write(record: dict[str, Any], target: pathlib.Path) -> None:
    """The results as JSON, one line per run."""
    parts = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items() if name != "runs"]
    lines = ",\n".join("  " + json.dumps(one) for one in record["runs"])
    target.write_text("{\n" + ",\n".join([*parts, f' "runs": [\n{lines}\n ]']) + "\n}\n")


def draw(results: pathlib.Path, tasks: list[str], target: pathlib.Path) -> None:
    """Accuracy against rollouts, the warm-up charged, and the PRM's step AUC on what the policy writes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * (len(tasks) + 1), 3.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(tasks) + 1, squeeze=False)[0]
    for axis, task in zip(axes, tasks, strict=False):
        _curves(axis, load(results, task), "sampled", charge=True)
        axis.set_title(f"{task} sums: sampled accuracy", loc="left", fontsize=9, fontweight="bold")
    _curves(axes[-1], load(results, tasks[0]), "auc", charge=False)
    axes[-1].set_title("step AUC on what the policy writes now", loc="left", fontsize=9, fontweight="bold")
    for axis in axes:
        axis.set_xlabel("rollouts", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(target)


def _curves(axis: Any, runs: Runs, key: str, *, charge: bool) -> None:
    """Means over seeds with 95 % intervals."""
    for index, arm in enumerate(dict.fromkeys(arm for arm, _ in runs)):
        found = [run for (name, _), run in runs.items() if name == arm and len(run.get(key, [])) > 1]
        if not found or (key == "auc" and arm.startswith("checker")):
            continue
        grid = np.asarray(found[0]["rollouts"], float)
        table = np.array([run[key] for run in found if len(run[key]) == len(grid)])
        estimates = [estimate(column) for column in table.T]
        if charge and found[0]["warm_up_rollouts"]:
            grid = np.concatenate([[0.0], grid + found[0]["warm_up_rollouts"]])
            estimates = [estimates[0], *estimates]
        color = COLORS[index % len(COLORS)]
        axis.plot(grid, [float(e) for e in estimates], color=color, label=arm, linewidth=1.6)
        axis.fill_between(grid, [e.low for e in estimates], [e.high for e in estimates], color=color, alpha=0.15)
