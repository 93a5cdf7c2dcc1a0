"""Tables and figure of the runs in results.json: areas under learning curves, rollouts to a level, differences."""

import json
import pathlib
from typing import Any

import numpy as np

from experiments.report import COLORS, estimate, machine, plain, ratio, render
from prm_jax.runs.claims import stamp

BASE = "outcome"
LEVELS = {"long": 0.3, "short": 0.7}
"""Sampled accuracies that "rollouts to" waits for."""
LEARNED = 0.1
"""Sampled accuracy that outcome-only training must reach at some time to count as having learned."""
PAIRS = (("checker", "checker_return"), ("checker", "checker_flip20"))
"""Arms that are compared with each other."""
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
        learned = [seed for seed in both if max(runs[BASE, seed]["sampled"]) >= LEARNED]
        if len(learned) > 1:
            ends = [runs[BASE, seed]["sampled"][-1] for seed in learned]
            spent = [
                [1 + rollouts_to(runs[a, seed], end, budget, False) for seed, end in zip(learned, ends, strict=True)]
                for a in (arm, BASE)
            ]
            paired[arm] |= {
                "seeds on which outcome learns": float(len(learned)),
                "rollouts to outcome's last accuracy, outcome / arm (warm-up free)": ratio(spent[1], spent[0]),
            }
    between = {}
    for one, other in PAIRS:
        both = [seed for arm, seed in runs if arm == one and (other, seed) in runs]
        if len(both) > 1:
            gains = [area(runs[one, seed], budget, True) - area(runs[other, seed], budget, True) for seed in both]
            ahead = float(sum(gain > 0 for gain in gains))
            between[f"{one} minus {other}"] = {"seeds": float(len(both)), "area": estimate(gains), "seeds ahead": ahead}
    tables = {f"{task}: all arms": reached, f"{task}: paired by seed": paired}
    return tables | {f"{task}: between arms": between} if between else tables


def report(results: pathlib.Path) -> None:
    """Prints the tables, adds them to the results, and draws figure.png beside them."""
    record = json.loads(results.read_text())
    tasks = list(dict.fromkeys(one["task"] for one in record["runs"]))
    tables: dict[str, Any] = {}
    for task in tasks:
        tables |= summary(load(results, task), task)
    print(render(tables))
    write({**stamp(), **record, "machine": machine(), "tables": plain(tables)}, results)
    draw(results, tasks, results.parent / "figure.png")


def write(record: dict[str, Any], target: pathlib.Path) -> None:
    """The results as JSON, one line per run."""
    parts = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items() if name != "runs"]
    lines = ",\n".join("  " + json.dumps(one) for one in record["runs"])
    target.write_text("{\n" + ",\n".join([*parts, f' "runs": [\n{lines}\n ]']) + "\n}\n")


SHOWN = ("outcome", "checker", "easier")
"""The arms of the figure; it shows the seeds that all of them have."""


def draw(results: pathlib.Path, tasks: list[str], target: pathlib.Path) -> None:
    """Accuracy against rollouts, what each arm gains on outcome-only training, and the PRM's step AUC."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * 3, 3.6 * len(tasks)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    for row, task in zip(figure.subplots(len(tasks), 3, squeeze=False), tasks, strict=True):
        runs = load(results, task)
        arms = [arm for arm in SHOWN if any(name == arm for name, _ in runs)]
        seeds = sorted(set.intersection(*({seed for name, seed in runs if name == arm} for arm in arms)))
        grid = np.linspace(0, max(run["rollouts"][-1] for run in runs.values()), 41)
        for index, arm in enumerate(arms):
            look = {"color": COLORS[index], "label": arm, "linewidth": 1.6}
            curves = np.array([np.interp(grid, *charged(runs[arm, seed], True)) for seed in seeds])
            row[0].plot(grid, curves.mean(0), **look)
            if arm != BASE:
                base = np.array([np.interp(grid, *charged(runs[BASE, seed], True)) for seed in seeds])
                _band(row[1], grid, curves - base, look)
            if runs[arm, seeds[0]].get("auc"):
                _band(row[2], runs[arm, seeds[0]]["rollouts"], np.array([runs[arm, s]["auc"] for s in seeds]), look)
        titles = (
            f"{task} sums: sampled accuracy, mean of {len(seeds)} seeds", "gain on outcome rewards, paired by seed",
            "step AUC on what the policy writes now",
        )  # fmt: skip
        for axis, title in zip(row, titles, strict=True):
            axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
            axis.set_xlabel("rollouts" if axis is row[2] else "rollouts, the PRM's warm-up included", fontsize=8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
        row[0].legend(fontsize=8, frameon=False)
        row[1].axhline(0.0, color="#6b7280", linewidth=0.8)
    figure.savefig(target)


def _band(axis: Any, x: Any, values: np.ndarray, look: dict[str, Any]) -> None:
    """The mean over seeds (rows) with its 95 % interval."""
    estimates = [estimate(column) for column in values.T]
    axis.plot(x, [float(e) for e in estimates], **look)
    axis.fill_between(x, [e.low for e in estimates], [e.high for e in estimates], color=look["color"], alpha=0.15)
