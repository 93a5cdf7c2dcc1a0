"""Tables and figure of the later stages: gains of each arm, accuracy of labels, and the simulated map."""

import itertools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.credit.map_figure import draw
from experiments.credit.report import area, ratio, rollouts_to, write
from experiments.credit.settings import EARLIER, STARTS, SWEEP
from experiments.report import Estimate, Tables, estimate, insert, machine, plain, render
from prm_jax.runs.claims import stamp

BASE = "outcome"
WATCHED = "watched"
RATE = 3e-4
"""The policy's learning rate in all stages but `rates`."""
Runs = dict[tuple[str, str, int], dict[str, Any]]
PAIRS = (
    ("mix_failed", "mix_outcome"), ("checker_step_0", "checker_return_0"), ("reuse", "reuse_frozen"),
    ("checker_step_0", "outcome_grpo"), ("checker_grpo", "outcome_grpo"),
    ("history_frozen", "outcome_grpo"), ("history_frozen_2", "outcome_grpo"),
    ("checker_step_0", BASE), ("reuse", BASE), ("history", BASE), ("value_rollouts", BASE),
    ("history_frozen", BASE), ("history_frozen_2", BASE),
)  # fmt: skip
"""Arms that are compared with each other, the last ones on fresh seeds."""
BASELINES = (BASE, "outcome_filtered", "outcome_grpo", "outcome_grpo_filtered")


def load(results: pathlib.Path, seeds: Sequence[int]) -> Runs:
    """(setting, arm, seed) -> run, for some seeds.

    A learning rate other than the common one is part of the setting, and so is a start policy for every seed.
    """
    found: Runs = {}
    for run in json.loads(results.read_text())["runs"]:
        if run["seed"] in seeds:
            note = "" if run["rate"] == RATE else f", learning rate {run['rate']:g}"
            note += ", a start per seed" if run["seed"] in STARTS else ""
            found[run["setting"] + note, run["arm"], run["seed"]] = run
    return found


def summary(runs: Runs, fresh: Sequence[int] = ()) -> dict[str, dict[str, dict[str, float]]]:
    """The tables; `fresh` seeds are also compared alone."""
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for setting in dict.fromkeys(setting for setting, _, _ in runs):
        arms = list(dict.fromkeys(arm for name, arm, _ in runs if name == setting and arm != WATCHED))
        tables[f"{setting}: paired by seed"] = {arm: _arm(runs, setting, arm) for arm in arms}
        between = _between(runs, setting, fresh)
        if between:
            tables[f"{setting}: between arms"] = between
        learned = {arm: _labels(runs, setting, arm) for arm in arms}
        if any(learned.values()):
            tables[f"{setting}: what the PRM knows"] = {arm: row for arm, row in learned.items() if row}
        looking = [run for (name, arm, _), run in runs.items() if (name, arm) == (setting, WATCHED)]
        if looking:
            tables[f"{setting}: what PRMs know that only look on"] = _onlookers(looking)
    return tables


def _onlookers(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """PRM -> step AUC on what outcome-only training writes."""
    return {
        name: {
            f"step AUC, {rollouts}": estimate([run["onlookers"][name][index] for run in runs])
            for index, rollouts in enumerate(runs[0]["rollouts"])
        }
        for name in runs[0]["onlookers"]
    }


def _arm(runs: Runs, setting: str, arm: str) -> dict[str, float]:
    own = {seed: run for (name, one, seed), run in runs.items() if (name, one) == (setting, arm)}
    budget = max(run["rollouts"][-1] for run in own.values())
    both = [seed for seed in own if (setting, BASE, seed) in runs]
    row: dict[str, float] = {
        "seeds": float(len(own)), "start": estimate([run["sampled"][0] for run in own.values()]),
        "last": estimate([run["sampled"][-1] for run in own.values()]),
        "area": estimate([area(run, budget, False) for run in own.values()]),
        "processor s": float(np.mean([run["processor_seconds"] for run in own.values()])),
    }  # fmt: skip
    if arm == BASE or not both:
        return row
    row["pairs"] = float(len(both))
    bases = [runs[setting, BASE, seed] for seed in both]
    variants = {"": 0, f", {EARLIER} rollouts shared by {len(both)}": EARLIER / len(both)}
    for note, extra in variants.items() if arm.startswith("reuse") else [("", 0)]:
        mine = [{**own[seed], "warm_up_rollouts": extra} for seed in both]
        areas = [[area(run, budget, True) for run in each] for each in (mine, bases)]
        ends = [base["sampled"][-1] for base in bases]
        spent = [
            [1 + rollouts_to(run, end, budget, True) for run, end in zip(each, ends, strict=True)]
            for each in (mine, bases)
        ]
        row |= {
            f"area minus outcome{note}": estimate(np.subtract(*areas)),
            f"seeds ahead{note}": float(sum(x > y for x, y in zip(*areas, strict=True))),
            f"rollouts to outcome's last accuracy, outcome / arm{note}": ratio(spent[1], spent[0]),
        }
    return row


def _between(runs: Runs, setting: str, fresh: Sequence[int]) -> dict[str, dict[str, float]]:
    found = {}
    seeds = sorted({seed for _, _, seed in runs})
    for (one, other), (note, chosen) in itertools.product(PAIRS, {"": seeds, ", fresh seeds": fresh}.items()):
        both = [s for s in chosen if (setting, one, s) in runs and (setting, other, s) in runs]
        if len(both) > 1 and (other != BASE or note):  # the others are in the table of all arms
            budget = runs[setting, one, both[0]]["rollouts"][-1]
            areas = [[area(runs[setting, arm, s], budget, True) for s in both] for arm in (one, other)]
            gains = np.subtract(*areas)
            ahead = float(sum(gain > 0 for gain in gains))
            ends = [runs[setting, other, s]["sampled"][-1] for s in both]
            spent = [
                [1 + rollouts_to(runs[setting, arm, s], end, budget, True) for s, end in zip(both, ends, strict=True)]
                for arm in (one, other)
            ]
            found[f"{one} minus {other}{note}"] = {
                "seeds": float(len(both)), "area": estimate(gains), "seeds ahead": ahead,
                "rollouts to the second's last accuracy, second / first": ratio(spent[1], spent[0]),
            }  # fmt: skip
    return found


def best_rates(runs: Runs, seeds: Sequence[int]) -> dict[str, dict[str, dict[str, float]]]:
    """Arms at each learning rate, and each arm at its best minus the best outcome-only baseline and RLOO."""
    rates = [setting for setting in dict.fromkeys(name for name, _, _ in runs) if re.fullmatch(_RATES, setting)]
    areas: dict[tuple[str, str], list[float]] = {}
    for arm in dict.fromkeys(arm for setting, arm, _ in runs if setting in rates and arm != WATCHED):
        for setting in rates:
            own = [runs[setting, arm, seed] for seed in seeds if (setting, arm, seed) in runs]
            if len(own) == len(seeds):
                areas[arm, setting] = [area(run, run["rollouts"][-1], False) for run in own]
    of_baselines = {place: values for place, values in areas.items() if place[0] in BASELINES}
    if not of_baselines:
        return {}
    base = max(of_baselines, key=lambda place: float(np.mean(areas[place])))
    several = {arm for arm, setting in areas if setting != rates[0]}
    every = {
        f"{arm} at {setting.rpartition(' ')[2] if setting != rates[0] else f'{RATE:g}'}": {"area": estimate(values)}
        for (arm, setting), values in areas.items()
        if arm in several or arm in BASELINES
    }
    plain = max((place for place in of_baselines if place[0] == BASE), key=lambda place: float(np.mean(areas[place])))
    best: dict[str, dict[str, float]] = {}
    for arm in (arm for arm in dict.fromkeys(arm for arm, _ in areas) if arm not in BASELINES):
        setting = max((s for name, s in areas if name == arm), key=lambda s: float(np.mean(areas[arm, s])))
        for other in dict.fromkeys((base, plain)):
            mine, theirs = ([runs[s, a, seed] for seed in seeds] for a, s in ((arm, setting), other))
            budget = mine[0]["rollouts"][-1]
            ends = [run["sampled"][-1] for run in theirs]
            spent = [
                [1 + rollouts_to(run, end, budget, False) for run, end in zip(own, ends, strict=True)]
                for own in (mine, theirs)
            ]
            gains = np.subtract(areas[arm, setting], areas[other])
            best.setdefault(arm, {}).update({
                f"area minus {other[0]}": estimate(gains), f"seeds ahead of {other[0]}": float((gains > 0).sum()),
                f"rollouts to its last accuracy, {other[0]} / arm": ratio(spent[1], spent[0]),
            })  # fmt: skip
    title = "base: each at its best, minus the best baseline and outcome"
    return {"base: learning rates and baselines": every, title: best}


def costs(record: Mapping[str, Any], tables: Tables) -> dict[str, dict[str, dict[str, float]]]:
    """Processor time of a training step, and to the level at which outcome-only training ends."""
    measured, gains = record.get("cost", {}).get("arms", {}), tables.get("base: paired by seed", {})
    table: dict[str, dict[str, float]] = {}
    for arm, seconds in measured.items():
        relative = estimate(np.divide(seconds, measured[BASE]))
        row: dict[str, float] = {"processor ms per step": 1000 * float(np.median(seconds)), "arm / outcome": relative}
        found = gains.get(arm, {}).get("rollouts to outcome's last accuracy, outcome / arm")
        if isinstance(found, Estimate):
            name = "processor time to outcome's last accuracy, outcome / arm"
            row |= {
                "rollouts, outcome / arm": found,
                name: Estimate(*(x / float(relative) for x in (found, *_interval(found)))),
            }
        table[arm] = row
    return {"cost": table} if table else {}


def swept(runs: Sequence[dict[str, Any]]) -> Tables:
    """Mean sampled accuracy over the runs of the stage `sweep`: a row per beta, a column per learning rate."""
    cells: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run["arm"] in SWEEP:
            beta, rate = SWEEP[run["arm"]]
            row = cells.setdefault(f"beta {beta:g}", {})
            row.setdefault(f"learning rate {rate:g}", []).append(area(run, run["rollouts"][-1], False))
    table = {beta: {rate: float(np.mean(values)) for rate, values in row.items()} for beta, row in cells.items()}
    return {"base: area by the PRM's beta and learning rate, two tuning seeds": table} if table else {}


def _labels(runs: Runs, setting: str, arm: str) -> dict[str, float]:
    """Step AUC and accuracy of labels on what the policy writes, over the run."""
    own = [run for (name, one, _), run in runs.items() if (name, one) == (setting, arm) and run.get("label_accuracy")]
    if not own:
        return {}
    row: dict[str, float] = {}
    for index, rollouts in enumerate(own[0]["rollouts"]):
        row[f"step AUC, {rollouts}"] = estimate([run["auc"][index] for run in own])
        row[f"label accuracy, {rollouts}"] = estimate([run["label_accuracy"][index] for run in own])
    return row


def report(results: pathlib.Path, simulation: pathlib.Path, seeds: Sequence[int], fresh: Sequence[int]) -> None:
    """Prints the tables, adds them to the results, to tables.md and to README.md, and draws map.png beside them."""
    record, runs = json.loads(results.read_text()), load(results, (*seeds, *fresh, *STARTS))
    tables = summary(runs, fresh) | best_rates(runs, seeds)
    tables |= costs(record, tables) | swept(record["runs"])
    text = render(tables)
    print(text)
    insert(results.parent / "README.md", "gains", digest(tables))
    (results.parent / "tables.md").write_text(f"{_TABLES}\n\n{text}\n")
    write({**stamp(), **record, "machine": machine(), "tables": plain(tables)}, results)
    simulated = json.loads(simulation.read_text())["tables"] if simulation.is_file() else {}
    draw(runs, tables, simulated, results.parent / "map.png")


_GAIN, _RATIO = "area minus outcome", "rollouts to outcome's last accuracy, outcome / arm"


def digest(tables: Tables) -> str:
    """What every arm gained against outcome-only training of its setting, and on which side of 0 the interval lies."""
    lines = ["| setting | arm | seeds | area minus outcome | rollouts, outcome / arm | |", "|---|---|--:|--:|--:|---|"]
    for title, rows in tables.items():
        setting, _, kind = title.partition(": ")
        for arm, row in rows.items() if kind == "paired by seed" else ():
            if _GAIN in row:
                lines.append(_gain_line(setting, arm, row["pairs"], row[_GAIN], row[_RATIO]))
        for arms, row in rows.items() if kind == "between arms" else ():
            arm, found, _ = arms.partition(f" minus {BASE}, fresh seeds")
            if found:
                spent = row["rollouts to the second's last accuracy, second / first"]
                lines.append(_gain_line(f"{setting}, fresh seeds", arm, row["seeds"], row["area"], spent))
    return "\n".join(lines)


def _gain_line(setting: str, arm: str, seeds: float, gain: float, spent: float) -> str:
    low, high = _interval(gain)
    verdict = "ahead" if low > 0 else "behind" if high < 0 else "not told apart"
    shown = (f"{float(x):.{n}f} [{_interval(x)[0]:.{n}f}, {_interval(x)[1]:.{n}f}]" for x, n in ((gain, 3), (spent, 2)))
    return f"| {setting} | {arm} | {seeds:.0f} | {' | '.join(shown)} | {verdict} |"


def _interval(found: float) -> tuple[float, float]:
    return (found.low, found.high) if isinstance(found, Estimate) else (found, found)


_TABLES = """# Tables of the map

Written by `python -m experiments.credit.map report` from [map.json](map.json); [README.md](README.md) says what they
mean. Brackets are Student's 95 % intervals over seeds; a ratio above 1 means fewer rollouts than the baseline. Each
title begins with the setting."""
_RATES = "base(, learning rate [^,]+)?"
