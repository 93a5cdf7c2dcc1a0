"""A trained PRM's summed step scores as the reward of policy-gradient training: raw, with Clip, with Delta, with both.

The setting of arXiv 2410.15115 at a small size: a PRM learns from the start policy's solutions how likely each step
leads to the right answer, and PPO then maximises outcome + alpha * sum of the PRM's step scores, on a task where a
solution may repeat its steps.

    python -m experiments.clip_delta.main --out experiments/clip_delta

leaves every run under runs/clip_delta/; finished ones are not run again.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import report
from experiments.arms import Changes, curve, curves, folder_of, run_folder, train_arms, warm_start
from experiments.values import value_model
from prm_jax.models.model_options import ModelOptions
from prm_jax.prime import Options
from prm_jax.prime.options import EvalOptions, PolicyOptions, RolloutOptions, SFTOptions, TaskOptions

SHAPINGS: dict[str, tuple[str, ...]] = {
    "raw": (), "clip": ("clip",), "delta": ("delta",), "clip and delta": ("clip", "delta"),
}  # fmt: skip
"""Arm -> shapings of the PRM's step scores."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The task, the PRM's data and the runs."""

    operands: int = 3
    repeat: float = 0.15
    drop_carry: float = 0.4
    max_new_tokens: int = 64  # the longest right solution without repeats has 17
    sft_steps: int = 500
    labelled: int = 192  # problems that the start policy solves for the PRM to learn from
    samples: int = 8  # solutions of each
    prm_epochs: int = 4
    alpha: float = 0.5
    threshold: float = 0.4  # of Clip; about the start policy's accuracy, which is the mean of the scores
    steps: int = 18
    prompts_per_step: int = 16
    problems: int = 200
    every: int = 6
    shaped: tuple[str, ...] = tuple(SHAPINGS)
    runs: str = "runs/clip_delta"
    seeds: int = 5


SMOKE = Config(
    sft_steps=2, labelled=4, samples=2, prm_epochs=1, steps=2, prompts_per_step=2, problems=4,
    every=2, shaped=("clip and delta",), runs="", seeds=1,
)  # fmt: skip


def settings(config: Config, seed: int) -> Options:
    """What the arms of a seed have in common: PPO with a critic, as in the paper, and no filter."""
    task = {"operands": config.operands, "repeat": config.repeat, "drop_carry": config.drop_carry}
    options = Options(
        task=TaskOptions("experiments.clip_delta.task:make", {name: str(value) for name, value in task.items()}),
        model=ModelOptions(hidden_size=32, intermediate_size=96, num_layers=2),
        sft=SFTOptions(steps=config.sft_steps, batch_size=32, learning_rate=1e-2),
        rollout=RolloutOptions(
            prompts_per_step=config.prompts_per_step, samples_per_prompt=4, filter="none", engine="generate",
            max_prompt_tokens=2 * config.operands + 2, max_new_tokens=config.max_new_tokens,
        ),
        policy=PolicyOptions(learning_rate=1e-3, warmup_steps=5, weight_decay=0.0, beta2=0.95),
        eval=EvalOptions(
            every=config.every, problems=config.problems, greedy=False, prm_problems=0, batch_size=config.problems
        ),
        steps=config.steps, seed=seed, save_every=1000, keep_checkpoints=1, sample_every=1000, plots=False,
    )  # fmt: skip
    ppo = dataclasses.replace(options.advantage, estimator="ppo", normalizer="none")
    return dataclasses.replace(options, advantage=ppo, critic=dataclasses.replace(options.critic, learning_rate=1e-3))


def arms(config: Config, model: pathlib.Path) -> dict[str, Changes]:
    """What each arm changes."""
    found: dict[str, Mapping[str, Mapping[str, Any]]] = {"outcome only": {"advantage": {"process_coef": 0.0}}}
    for name in config.shaped:
        found[name] = {
            "advantage": {"process_coef": config.alpha},
            "reward": {
                "source": "model", "path": (str(model),), "granularity": "step",
                "shaping": SHAPINGS[name],
                "clip_threshold": config.threshold,
            },
        }  # fmt: skip
    return found


def run(config: Config) -> report.Tables:
    """Trains what is not trained yet; the tables."""
    with run_folder(config.runs) as root:
        folders = [root / f"seed{seed}" for seed in range(config.seeds)]
        start = warm_start(settings(config, 0), root / "warm_start")
        for seed, folder in enumerate(folders):
            options = settings(config, seed)
            model = value_model(
                start, options, folder / "prm", problems=config.labelled, samples=config.samples,
                epochs=config.prm_epochs,
            )  # fmt: skip
            train_arms(options, arms(config, model), folder, start)
        return tables(config, folders, ("outcome only", *config.shaped))


def tables(config: Config, folders: Sequence[pathlib.Path], names: Sequence[str]) -> report.Tables:
    """Accuracy and length at the start and at the end, differences from outcome-only training, and curves."""
    found = []
    for folder in folders:
        rows: dict[str, dict[str, float]] = {}
        for name in names:
            path = folder / folder_of(name)
            accuracy, length, finished = (curve(path, f"eval/sampled_{x}") for x in ("accuracy", "length", "finished"))
            rows[name] = {
                "accuracy before": accuracy[0], "accuracy after": accuracy[config.steps],
                "tokens before": length[0], "tokens after": length[config.steps],
                "finished after": finished[config.steps],
            }  # fmt: skip
        for row in rows.values():
            row["accuracy, minus outcome only"] = row["accuracy after"] - rows[names[0]]["accuracy after"]
        found.append(rows)
    return {
        "at the end": report.average(found),
        "accuracy of sampled responses": curves(folders, names, "eval/sampled_accuracy"),
        "tokens per response": curves(folders, names, "eval/sampled_length"),
    }


PANELS = (
    report.Panel("accuracy of sampled responses", x="step", kind="curve"),
    report.Panel("tokens per response", x="step", kind="curve"),
)

if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
