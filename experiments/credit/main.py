"""In which form process rewards beat outcome rewards: arms from one start per seed, at equal rollouts.

    python -m experiments.credit.main run --seeds 1 2 3 [--arms ARM ...] [--runs runs/credit]
    python -m experiments.credit.main report

`run` adds every finished run to results.json beside this file, so that it can be stopped at any time; `report` prints
the tables and draws figure.png. README.md states arms, seeds and the primary measure; it was committed before the runs.
`--smoke` does both on the smallest sizes.
"""

import argparse
import fcntl
import json
import pathlib
import shutil
import time
from typing import Any

from experiments.credit.arms import ARMS, TASKS, arm_options, start_options
from experiments.credit.report import report, write
from prm_jax.prime.options import Options
from prm_jax.runs.metrics_log import read_metrics

HERE = pathlib.Path(__file__).resolve().parent
KEPT = {
    "sampled": "eval/sampled_accuracy", "steps_right": "eval/sampled_step_accuracy",
    "auc": "prm_eval/fresh_step_auc", "start_auc": "prm_eval/step_auc",
}  # fmt: skip
"""Name in results.json -> metric of an evaluation."""
SECOND_STAGE = range(101, 200)
"""Seeds that begin at the start policy of the seed 100 below."""


def run_arm(task: str, arm: str, seed: int, rate: float, runs: pathlib.Path, smoke: bool) -> dict[str, Any]:
    """Trains one arm from the start of its seed; returns its record."""
    from prm_jax.prime.training import train

    taught = seed - 100 if seed in SECOND_STAGE else seed
    start = runs / task / f"seed{taught}" / "start"
    if not (start / "result.json").is_file():
        train(start_options(task, taught, smoke=smoke), start, resume=start.is_dir())
    options = arm_options(task, arm, seed, str(start / "start"), rate=rate, smoke=smoke)
    path = runs / task / f"seed{seed}" / f"{arm}_{rate:g}"
    begun = time.process_time()
    train(options, path, resume=path.is_dir())
    record = {"task": task, "arm": arm, "seed": seed, "rate": rate, **curves(path, options)}
    record["processor_seconds"] = round(time.process_time() - begun, 1)
    shutil.rmtree(path)
    return record


def curves(path: pathlib.Path, options: Options) -> dict[str, Any]:
    """What a run measured at its evaluations: rollouts used so far, accuracies, the PRM's step AUC."""
    lines = read_metrics(path)
    per_step = options.rollout.prompts_per_step * options.rollout.samples_per_prompt
    found: dict[str, Any] = {"rollouts": [], **{name: [] for name in KEPT}}
    learned = options.advantage.process_coef and options.reward.source == "implicit"
    before = options.prm.pretrain_rollouts if learned else 0
    for line in lines:
        if KEPT["sampled"] not in line:
            continue
        found["rollouts"].append(int(line["step"]) * per_step)
        for name, metric in KEPT.items():
            if metric in line:
                found[name].append(round(float(line[metric]), 4))
    trust = [round(float(line["prm/label_trust"]), 3) for line in lines if "prm/label_trust" in line]
    found["trust"] = trust[:: options.eval.every]
    return {"warm_up_rollouts": before, **{name: value for name, value in found.items() if value != []}}


def add(record: dict[str, Any], target: pathlib.Path, runs: pathlib.Path) -> None:
    """Adds a finished run to the file of results; several processes may do so, if `runs` is the same folder."""
    with (runs / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = json.loads(target.read_text()) if target.is_file() else {"seeds": [], "runs": []}
        results["runs"].append(record)
        results["seeds"] = sorted({one["seed"] for one in results["runs"]})
        write(results, target)


def finished(target: pathlib.Path) -> set[tuple[str, str, int, float]]:
    """The runs in the file of results."""
    runs = json.loads(target.read_text())["runs"] if target.is_file() else []
    return {(one["task"], one["arm"], one["seed"], one["rate"]) for one in runs}


def run(args: argparse.Namespace) -> None:
    """All arms of all seeds that are not finished yet."""
    for seed in args.seeds:
        for arm in args.arms:
            rate = ARMS[arm].rate if args.rate is None else args.rate
            if (args.task, arm, seed, rate) not in finished(args.results):
                add(run_arm(args.task, arm, seed, rate, args.runs, args.smoke), args.results, args.runs)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "report"), nargs="?", default="run")
    parser.add_argument("--task", choices=tuple(TASKS), default="long")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rate", type=float, help="the policy's learning rate, instead of each arm's own")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/credit"))
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results.json")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, then the report")
    args = parser.parse_args()
    if args.smoke and args.results == HERE / "results.json":
        args.results = args.runs / "smoke_results.json"
    return args


if __name__ == "__main__":
    arguments = parsed()
    if arguments.action == "run":
        run(arguments)
    if arguments.action == "report" or arguments.smoke:
        report(arguments.results)
