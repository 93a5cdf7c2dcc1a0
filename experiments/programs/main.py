"""A small transformer learns to write programs from the verdicts of hidden tests: PRIME and outcome-only RLOO.

    python -m experiments.programs.main --out experiments/programs

trains every arm of every seed under runs/programs/ (finished ones are left alone), then writes results.json and
figure.png beside this file.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from experiments import report
from experiments.arms import Changes, curve, curves, folder_of, run_folder, steps_to, train_arms, warm_start
from prm_jax import prm
from prm_jax.data import load_task
from prm_jax.prime import PRESETS, Options
from prm_jax.prm.labelling.mutations import mutation_records

ARMS = {
    "outcome only": {"advantage": {"process_coef": 0.0}},
    "PRIME": {"advantage": {"gate": False}},
    "PRIME, gated": {"advantage": {"gate": True}},
    "PRIME, step credit": {"advantage": {"gate": False, "credit": "step"}},
    "PRIME, pair loss": {"advantage": {"gate": False}, "prm": {"loss": "dpo"}},
    "PRIME, pair loss, step credit": {"advantage": {"gate": False, "credit": "step"}, "prm": {"loss": "dpo"}},
}
MUTATIONS = "PRM of mutated programs"
"""An arm with a saved reward model, see `mutation_prm`."""
LEVEL = 0.8


@dataclasses.dataclass(frozen=True)
class Config:
    """The runs: the preset `programs`, with shorter evaluations."""

    steps: int = 40
    sft_steps: int = 200
    prompts_per_step: int = 16
    problems: int = 128
    every: int = 5
    arms: tuple[str, ...] = (*ARMS, MUTATIONS)
    mutated: int = 512
    runs: str = "runs/programs"
    seeds: int = 5


SMOKE = Config(
    steps=2, sft_steps=3, prompts_per_step=2, problems=4, every=2, arms=("outcome only", "PRIME", MUTATIONS), mutated=4,
    runs="", seeds=1,
)  # fmt: skip


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


def mutation_prm(config: Config, root: pathlib.Path) -> pathlib.Path:
    """A reward model of statements, learned from mutated solutions and their tests (PRLCoder, arXiv 2502.01715).

    It begins at the warm start of seed 0 and serves all seeds. These are the functions behind `prm-jax label none FILE
    --task programs --method mutate` and `prm-jax train-prm`.
    """
    path, options = root / "prm", settings(config, 0)
    if not (path / "result.json").is_file():
        task = load_task({"name": options.task.name, **options.task.options})
        problems = [task.train[index] for index in range(config.mutated)]
        records, _ = mutation_records(task, problems, {}, mutations=8, refactors=2, seed=0)
        start = warm_start(options, root / "seed0" / "warm_start")
        prm.train(
            prm.TrainPRMOptions(
                text=prm.POLICY_LAYOUT, model=prm.BaseOptions(path=str(start)), prm=prm.Token(),
                train=prm.OptimizerOptions(learning_rate=4e-3, batch_size=64, epochs=8), seed=0, plots=False,
            ),
            path, data=[record for record in records if set("".join(record.steps)) <= set(task.alphabet)],
            resume=path.is_dir(),
        )  # fmt: skip
    return path / "model"


def changes(config: Config, arm: str, root: pathlib.Path) -> Changes:
    """What an arm changes."""
    if arm != MUTATIONS:
        return ARMS[arm]
    model = mutation_prm(config, root)
    # A statement is charged with the probability that it is wrong, and only itself.
    reward = {
        "source": "model", "path": (str(model),), "granularity": "step", "shaping": ("clip",), "clip_threshold": 1.0,
    }  # fmt: skip
    return {"reward": reward, "advantage": {"gate": False, "credit": "step"}}


def run(config: Config) -> report.Tables:
    """Trains what is not trained yet; the tables."""
    with run_folder(config.runs) as root:
        folders = [root / f"seed{seed}" for seed in range(config.seeds)]
        for seed, path in enumerate(folders):
            train_arms(settings(config, seed), {arm: changes(config, arm, root) for arm in config.arms}, path)
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
