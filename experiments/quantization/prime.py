"""PRIME with one quantised copy of the frozen weights against full precision: same starts, same prompts, several seeds.

The PRM has adapters on the frozen base, which is also the reference; the policy trains in full. With "int4", base and
reference are one copy in 4 bits (groups of 32), and the policy starts from its values. "policy adapters" trains
adapters of the policy on the same copy, too.

    python -m experiments.quantization.prime --seeds 0 1 2 --out runs/quantization
    python -m experiments.quantization.prime --report --out runs/quantization

The first command trains what is not finished; the second one writes prime.json beside this file.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.prime_tiny.main import regimes
from experiments.report import estimate
from prm_jax.prime import Options, train
from prm_jax.prime.plan import make_plan, planned_configs
from prm_jax.runs.claims import stamp

HERE = pathlib.Path(__file__).resolve().parent
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "float32": {},
    "int4": {"model": {"quantize": "int4"}},
    "float32, policy adapters": {"model": {"lora_rank": 16}},
    "int4, policy adapters": {"model": {"lora_rank": 16, "quantize": "int4"}},
}
SUMMARIES: dict[str, Callable[[dict[str, float]], float]] = {
    "end": lambda curve: list(curve.values())[-1],
    "mean of the curve": lambda curve: float(np.mean(list(curve.values())[1:])),
}
METRICS = ("eval/greedy_accuracy", "eval/sampled_accuracy", "prm/pairwise_accuracy")


def arm_options(regime: str, seed: int, name: str, start: pathlib.Path) -> Options:
    """The options of an arm, from the warm start of its seed."""
    options = dataclasses.replace(regimes()[regime], seed=seed)
    changes: dict[str, dict[str, Any]] = {"prm": {"lora_rank": 16}, "sft": {"steps": 0}, **ARMS[name]}
    changes["model"] = {"path": str(start / "start"), **ARMS[name].get("model", {})}
    groups = {group: dataclasses.replace(getattr(options, group), **fields) for group, fields in changes.items()}
    return dataclasses.replace(options, **groups)


def run_seed(regime: str, seed: int, arms: list[str], out: pathlib.Path) -> None:
    """The warm start of a seed, then its arms; finished ones are left alone."""
    folder = out / regime / f"seed{seed}"
    start = folder / "warm_start"
    if not (start / "result.json").is_file():
        options = dataclasses.replace(regimes()[regime], seed=seed, steps=0)
        train(dataclasses.replace(options, advantage=dataclasses.replace(options.advantage, process_coef=0.0)), start,
              resume=start.is_dir())  # fmt: skip
    for name in arms:
        path = folder / name.replace(", ", "_").replace(" ", "_")
        if not (path / "result.json").is_file():
            print(f"== {regime}, seed {seed}, {name}", flush=True)
            train(arm_options(regime, seed, name, start), path, resume=path.is_dir())


def report(regime: str, seeds: list[int], arms: list[str], out: pathlib.Path) -> dict[str, Any]:
    """Curves of every arm that all seeds have finished, differences to full precision, planned bytes."""
    found: dict[str, Any] = {}
    for name in arms:
        folders = [out / regime / f"seed{seed}" / name.replace(", ", "_").replace(" ", "_") for seed in seeds]
        if not all((folder / "result.json").is_file() for folder in folders):
            continue
        curves: dict[str, list[dict[str, float]]] = {metric: [] for metric in METRICS}
        for folder in folders:
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            for metric in METRICS:
                curves[metric].append({str(line["step"]): line[metric] for line in lines if metric in line})
        first = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[0]) for folder in folders]
        options = arm_options(regime, seeds[0], name, out / regime / f"seed{seeds[0]}" / "warm_start")
        config, _ = planned_configs(options)
        state = make_plan(options, config, platform="cpu").state
        found[name] = {"curves": curves, "first": first, "state_bytes": state}
    for name, arm in found.items():
        base = found.get("float32, policy adapters" if "policy" in name else "float32")
        for title, of_run in SUMMARIES.items():
            values = {metric: [of_run(curve) for curve in arm["curves"][metric]] for metric in METRICS}
            arm[title] = {metric: {"mean": float(np.mean(x)), "seeds": x} for metric, x in values.items()}
            if base is not None and base is not arm:
                pairs = {metric: np.subtract(values[metric], base[title][metric]["seeds"]) for metric in METRICS}
                arm[f"{title}, minus float32"] = {metric: _estimated(x) for metric, x in pairs.items()}
    return found


def _estimated(differences: np.ndarray) -> dict[str, Any]:
    """The mean of differences seed by seed, with its 95 % interval."""
    found = estimate(differences)
    return {"mean": float(found), "interval": [found.low, found.high], "seeds": differences.tolist()}


def main() -> None:
    """Trains, or reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regime", default="short")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["float32", "int4"], choices=list(ARMS))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/quantization"))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if not args.report:
        for seed in args.seeds:
            run_seed(args.regime, seed, args.arms, args.out)
        return
    found = {"seeds": args.seeds, "arms": report(args.regime, args.seeds, args.arms, args.out), **stamp()}
    (HERE / "prime.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    for name, arm in found["arms"].items():
        for title in SUMMARIES:
            print(name, title, {metric: round(one["mean"], 3) for metric, one in arm[title].items()})
            print("  minus float32:", arm.get(f"{title}, minus float32", ""))


if __name__ == "__main__":
    main()
