"""PRIME against outcome-only RLOO on written-out sums: same starts, same rollouts, several seeds.

    python experiments/prime_tiny/main.py run --regimes short long --seeds 0 1 2 3 4 --workers 2
    python experiments/prime_tiny/main.py report
    python experiments/prime_tiny/main.py tables

`run` trains every arm of every regime and seed under runs/prime_tiny/ (finished ones are left alone); `report` writes
results.json and curves.png beside this file; `tables` computes the intervals of results.json from the numbers per seed
that it holds, and needs no runs.  `--smoke` runs and reports the smallest sizes in under a minute.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

from prm_jax import stats
from prm_jax.prime import PRESETS, Options
from prm_jax.prime.options import TaskOptions
from prm_jax.runs.claims import stamp

HERE = pathlib.Path(__file__).resolve().parent
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "outcome only": {"advantage": {"process_coef": 0.0}},
    "PRIME": {},
    "PRIME, gated": {"advantage": {"gate": True}},
}
# What else was tried to make dense rewards pay, in the regime in which they have the best case. Groups without a right
# answer pass the filter: outcomes say nothing about them, process rewards do.
EXTRA_ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "PRIME, careful gate": {"advantage": {"gate": True, "gate_z": 1.0}},
    "PRIME, careful gate, 4 PRM passes": {"advantage": {"gate": True, "gate_z": 1.0}, "prm": {"epochs": 4}},
    "PRIME, gated, PRM warmed up": {
        "advantage": {"gate": True}, "prm": {"pretrain_rollouts": 2048}, "rollout": {"solve_rate_low": 0.0},
    },
    "exact step checker": {"reward": {"source": "checker"}, "rollout": {"solve_rate_low": 0.0}},
}  # fmt: skip


def arms(regime: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Name -> options that differ from the regime's."""
    if regime == "smoke":
        return {name: ARMS[name] for name in ("outcome only", "PRIME, gated")}
    return ARMS | EXTRA_ARMS if regime == "long" else ARMS


LEVELS = {"long": 0.6}  # greedy accuracy that "steps to" waits for; 0.8 elsewhere


def regimes() -> dict[str, Options]:
    """The settings compared; `short` is the tiny preset without the PRM's warm-up."""
    tiny = PRESETS["tiny"]
    short = dataclasses.replace(
        tiny,
        prm=dataclasses.replace(tiny.prm, pretrain_rollouts=0),
        eval=dataclasses.replace(tiny.eval, every=5, problems=512, prm_problems=0, batch_size=512),
        baseline=False, plots=False, steps=40, save_every=1000, keep_checkpoints=1,
    )  # fmt: skip
    long = dataclasses.replace(
        short,
        task=TaskOptions("carry", {"min_operands": "11", "max_operands": "11"}),
        sft=dataclasses.replace(short.sft, steps=500),
        rollout=dataclasses.replace(
            short.rollout, max_prompt_tokens=24, max_new_tokens=86, prompts_per_step=8, samples_per_prompt=4
        ),
        policy=dataclasses.replace(short.policy, learning_rate=1e-4),
        eval=dataclasses.replace(short.eval, every=10, problems=256, batch_size=256),
        steps=80,
    )
    smoke = dataclasses.replace(
        PRESETS["smoke"], prm=dataclasses.replace(PRESETS["smoke"].prm, pretrain_rollouts=0),
        baseline=False, plots=False,
    )  # fmt: skip
    return {"short": short, "long": long, "smoke": smoke}


def run_seed(regime: str, seed: int, out: pathlib.Path) -> None:
    """The warm start of a seed, then every arm from it; all arms see the same prompts in the same order."""
    from prm_jax.prime.training import train

    options = dataclasses.replace(regimes()[regime], seed=seed)
    folder = out / regime / f"seed{seed}"
    start = folder / "warm_start"
    if not (start / "result.json").is_file():
        warm = dataclasses.replace(options, steps=0, advantage=dataclasses.replace(options.advantage, process_coef=0.0))
        train(warm, start, resume=start.is_dir())
    for name, changes in arms(regime).items():
        path = folder / _folder(name)
        if (path / "result.json").is_file():
            continue
        arm = dataclasses.replace(
            options,
            model=dataclasses.replace(options.model, path=str(start / "start")),
            sft=dataclasses.replace(options.sft, steps=0),
            advantage=dataclasses.replace(options.advantage, gate=False),
        )
        groups = {group: dataclasses.replace(getattr(arm, group), **fields) for group, fields in changes.items()}
        arm = dataclasses.replace(arm, **groups)
        print(f"== {regime}, seed {seed}, {name}", flush=True)
        train(arm, path, resume=path.is_dir())


def run(args: argparse.Namespace) -> None:
    """Divides the (regime, seed) pairs among worker processes, each held to one core."""
    pairs = [(regime, seed) for regime in args.regimes for seed in args.seeds]
    if args.workers == 1:
        for regime, seed in pairs:
            run_seed(regime, seed, args.out)
        return
    cores = sorted(os.sched_getaffinity(0))
    running: list[tuple[subprocess.Popen[bytes], int]] = []
    free = list(range(args.workers))
    while pairs or running:
        while pairs and free:
            (regime, seed), slot = pairs.pop(0), free.pop(0)
            words = ["run", "--regimes", regime, "--seeds", str(seed), "--workers", "1", "--out", str(args.out)]
            child = subprocess.Popen([sys.executable, __file__, *words])
            os.sched_setaffinity(child.pid, {cores[slot % len(cores)]})
            running.append((child, slot))
        child, slot = running.pop(0)
        try:
            child.wait(timeout=1)
            free.append(slot)
            if child.returncode:
                sys.exit(child.returncode)
        except subprocess.TimeoutExpired:
            running.append((child, slot))


def curve(path: pathlib.Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a metric."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    found = [(row["step"], row[key]) for row in rows if key in row]
    return np.array([step for step, _ in found]), np.array([value for _, value in found])


def running_mean(x: np.ndarray, width: int) -> np.ndarray:
    """Means over `width` neighbours, fewer at the ends."""
    ones = np.ones(width)
    return np.convolve(x, ones, "same") / np.convolve(np.ones_like(x), ones, "same")


def steps_to(steps: np.ndarray, values: np.ndarray, level: float) -> float:
    """The step at which a curve first reaches a level, interpolated; twice the last step if it never does."""
    above = np.flatnonzero(values >= level)
    if not len(above):
        return 2.0 * steps[-1]
    i = above[0]
    if i == 0:
        return float(steps[0])
    return float(np.interp(level, values[i - 1 : i + 1], steps[i - 1 : i + 1]))


def interquartile_mean(x: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis, the ends weighted by their share (arXiv 2108.13264)."""
    x = np.sort(x, axis=-1)
    n = x.shape[-1]
    edges = np.arange(n + 1) / n
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return (x * weight).sum(-1) / weight.sum()


def summarise(out: pathlib.Path) -> dict[str, Any]:
    """All finished arms: final accuracies, steps to a greedy accuracy, and differences to outcome-only by seed."""
    summary: dict[str, Any] = {}
    for regime in (name for name in regimes() if (out / name).is_dir()):
        seeds = sorted(out.glob(f"{regime}/seed*"), key=lambda path: int(path.name.removeprefix("seed")))
        wanted = [_folder(arm) for arm in arms(regime)]
        seeds = [path for path in seeds if all((path / arm / "result.json").is_file() for arm in wanted)]
        if not seeds:
            continue
        found: dict[str, Any] = {}
        for arm in arms(regime):
            measures: dict[str, list[float]] = {"greedy": [], "sampled": [], "steps_to_level": []}
            for path in seeds:
                steps, greedy = curve(path / _folder(arm), "eval/greedy_accuracy")
                measures["greedy"].append(greedy[-1])
                measures["sampled"].append(curve(path / _folder(arm), "eval/sampled_accuracy")[1][-1])
                measures["steps_to_level"].append(steps_to(steps, greedy, LEVELS.get(regime, 0.8)))
            found[arm] = measures
        base = found["outcome only"]
        for measures in found.values():
            gains = {f"{k}_gain": (np.array(measures[k]) - np.array(base[k])).tolist() for k in list(base)[:3]}
            measures |= gains
        starts = [curve(path / _folder("outcome only"), "eval/sampled_accuracy")[1][0] for path in seeds]
        summary[regime] = {
            "seeds": len(seeds),
            "sampled_accuracy_at_start": float(np.mean(starts)),
            "arms": with_intervals(found),
            "per_seed": found,
        }
    return summary


def with_intervals(arms: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Means over seeds and Student's 95 % intervals; one seed has an interval of width 0."""
    return {
        arm: {
            name: tuple(stats.interval(values)) if len(values) > 1 else (values[0],) * 3
            for name, values in measures.items()
        }
        for arm, measures in arms.items()
    }


def tables(args: argparse.Namespace) -> None:
    """The stored numbers per seed with their intervals, printed and written again."""
    path = HERE / "results.json"
    summary = json.loads(path.read_text())
    summary = {name: {**found, "arms": with_intervals(found["per_seed"])} for name, found in summary.items()
               if isinstance(found, dict)}  # fmt: skip
    show(summary)
    path.write_text(json.dumps({**stamp(), **summary}, indent=1) + "\n")


def _folder(arm: str) -> str:
    return arm.replace(", ", "_").replace(" ", "_")


def report(args: argparse.Namespace) -> None:
    """Prints the table, writes results.json and curves.png."""
    summary = summarise(args.out)
    if not summary:
        sys.exit(f"no finished runs under {args.out}; run the experiment first")
    show(summary)
    target = args.out if args.smoke else HERE
    (target / "results.json").write_text(json.dumps({**stamp(), **summary}, indent=1) + "\n")
    draw(args.out, list(summary), target / "curves.png")


def show(summary: dict[str, Any]) -> None:
    """Prints a table for every regime."""
    for regime, found in summary.items():
        start = found["sampled_accuracy_at_start"]
        print(f"\n{regime}: {found['seeds']} seeds, sampled accuracy at the start {start:.3f}")
        columns = ("arm", "greedy", "sampled", f"steps to {LEVELS.get(regime, 0.8):.0%} greedy")
        print("| " + " | ".join((*columns, "greedy, minus outcome only", "sampled, minus outcome only")) + " |")
        print("|---|--:|--:|--:|--:|--:|")
        for arm, measures in found["arms"].items():
            cells = [_cell(measures[name]) for name in ("greedy", "sampled")]
            cells += [
                _cell(measures["steps_to_level"], 1),
                *("" if arm == "outcome only" else _cell(measures[f"{name}_gain"]) for name in ("greedy", "sampled")),
            ]
            print(f"| {arm} | " + " | ".join(cells) + " |")


def _cell(values: tuple[float, float, float], digits: int = 3) -> str:
    middle, low, high = values
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def draw(out: pathlib.Path, names: list[str], target: pathlib.Path) -> None:
    """Accuracies and the PRM's pairwise accuracy against steps; line: interquartile mean, band: all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {"eval/greedy_accuracy": "greedy accuracy", "eval/sampled_accuracy": "sampled accuracy",
            "prm/pairwise_accuracy": "PRM pairwise accuracy"}  # fmt: skip
    figure, axes = plt.subplots(len(rows), len(names), figsize=(5.0 * len(names), 8.0), sharey="row", squeeze=False)
    colors = dict(
        zip(arms("long"), ("#6b7280", "#d97706", "#2563eb", "#0891b2", "#db2777", "#7c3aed", "#059669"), strict=True)
    )
    for column, regime in enumerate(names):
        for row, (key, label) in enumerate(rows.items()):
            axis = axes[row][column]
            for arm in arms(regime):
                curves = [curve(path / _folder(arm), key) for path in sorted(out.glob(f"{regime}/seed*"))]
                curves = [(x, y) for x, y in curves if len(x)]
                if not curves:
                    continue
                grid = sorted(set.intersection(*(set(x.tolist()) for x, _ in curves)))
                values = np.array([[y[np.flatnonzero(x == g)[0]] for g in grid] for x, y in curves])
                if key.startswith("prm/"):  # few groups a step: noisy
                    values = np.array([running_mean(seed, max(1, len(grid) // 10)) for seed in values])
                axis.plot(grid, interquartile_mean(values.T), color=colors[arm], label=arm, linewidth=1.8)
                axis.fill_between(grid, values.min(0), values.max(0), color=colors[arm], alpha=0.08, linewidth=0)
            axis.set_ylim(0, 1.02)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", alpha=0.25)
            if column == 0:
                axis.set_ylabel(label)
        axes[0][column].set_title(regime)
        axes[-1][column].set_xlabel("training step")
    axes[-1][0].axhline(0.5, color="#9ca3af", linewidth=0.8, linestyle=":")
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="lower center", ncol=3 if len(labels) > 3 else len(labels))
    figure.tight_layout(rect=(0, 0.09 if len(labels) > 3 else 0.05, 1, 1))
    figure.savefig(target, dpi=150)
    plt.close(figure)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report", "tables"), nargs="?", default="run")
    parser.add_argument("--regimes", nargs="+", choices=list(regimes()), default=["short", "long"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/prime_tiny"))
    parser.add_argument("--smoke", action="store_true", help="one seed of the smallest sizes, then the report")
    args = parser.parse_args()
    if args.smoke:
        args.regimes, args.seeds = ["smoke"], [0]
        run(args)
        report(args)
    else:
        {"run": run, "report": report, "tables": tables}[args.what](args)


if __name__ == "__main__":
    main()
