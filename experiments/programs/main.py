"""A small transformer learns to write programs from the verdicts of hidden tests: PRIME and outcome-only RLOO.

    python -m experiments.programs.main --out experiments/programs

trains every arm of every seed under runs/programs/ (finished ones are left alone), then writes results.json and
figure.png beside this file.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from experiments import report
from experiments.arms import curve, curves, folder_of, run_folder, steps_to, train_arms
from prm_jax.prime import PRESETS, Options

ARMS = {
    "outcome only": {"advantage": {"process_coef": 0.0}},
    "PRIME": {"advantage": {"gate": False}},
    "PRIME, gated": {"advantage": {"gate": True}},
}
LEVEL = 0.8


@dataclasses.dataclass(frozen=True)
class Config:
    """The runs: the preset `programs`, with shorter evaluations."""

    steps: int = 40
    sft_steps: int = 200
    prompts_per_step: int = 16
    problems: int = 128
    every: int = 5
    arms: tuple[str, ...] = tuple(ARMS)
    runs: str = "runs/programs"
    seeds: int = 5


SMOKE = Config(
    steps=2, sft_steps=3, prompts_per_step=2, problems=4, every=2, arms=("outcome only", "PRIME"), runs="", seeds=1
)


def settings(config: Config, seed: int) -> Options:
    """What the arms of a seed have in common."""
    preset = PRESETS["programs"]
    return dataclasses.replace(
        preset,
        sft=dataclasses.replace(preset.sft, steps=config.sft_steps),
        rollout=dataclasses.replace(preset.rollout, prompts_per_step=config.prompts_per_step),
        prm=dataclasses.replace(preset.prm, pretrain_rollouts=0),
        eval=dataclasses.replace(preset.eval, every=config.every, problems=config.problems, prm_problems=0),
        steps=config.steps, baseline=False, plots=False, save_every=1000, keep_checkpoints=1, seed=seed,
    )  # fmt: skip


def run(config: Config) -> report.Tables:
    """Trains what is not trained yet; the tables."""
    with run_folder(config.runs) as root:
        folders = [root / f"seed{seed}" for seed in range(config.seeds)]
        for seed, path in enumerate(folders):
            train_arms(settings(config, seed), {arm: ARMS[arm] for arm in config.arms}, path)
        return tables(folders, config.arms)


def tables(folders: Sequence[pathlib.Path], arms: Sequence[str]) -> report.Tables:
    """Curves of both accuracies, and where they end; the first arm is what the others are compared with."""
    ends = []
    for folder in folders:
        rows = {}
        for arm in arms:
            greedy = curve(folder / folder_of(arm), "eval/greedy_accuracy")
            sampled = curve(folder / folder_of(arm), "eval/sampled_accuracy")
            rows[arm] = {
                "greedy": list(greedy.values())[-1],
                "sampled": list(sampled.values())[-1],
                f"steps to {LEVEL:.0%} greedy": steps_to(greedy, LEVEL),
            }
        base = rows[arms[0]]
        for row in rows.values():
            row[f"greedy, minus {arms[0]}"] = row["greedy"] - base["greedy"]
            row[f"sampled, minus {arms[0]}"] = row["sampled"] - base["sampled"]
        ends.append(rows)
    return {
        "at the end": report.average(ends),
        "greedy accuracy": curves(folders, arms, "eval/greedy_accuracy"),
        "sampled accuracy": curves(folders, arms, "eval/sampled_accuracy"),
    }


PANELS = (
    report.Panel("greedy accuracy", x="step", kind="curve"),
    report.Panel("sampled accuracy", x="step", kind="curve"),
)

if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
