"""A small transformer learns to call a calculator that it seldom used, with and without hints (arXiv 2503.04625).

    python -m experiments.calculator.main --out experiments/calculator

trains every arm of every seed under runs/calculator/ (finished ones are left alone), then writes results.json and
figure.png beside this file. With hints, the start is first fine-tuned on the records of `prm-jax generate --hint.text`.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Sequence

from experiments import report
from experiments.arms import changed, curve, curves, folder_of, run_folder, steps_to, train_arms, warm_start
from experiments.calculator.products import MARKERS
from prm_jax import cli
from prm_jax.prime import PRESETS, Options
from prm_jax.prime.options import SFTOptions, TaskOptions
from prm_jax.rollouts.turn_options import TurnOptions

TASK = str(pathlib.Path(__file__).with_name("products.py")) + ":make"
OUTCOMES = {"advantage": {"process_coef": 0.0}}
ARMS = {"outcome only": OUTCOMES, "PRIME": {"advantage": {"gate": False}}}
HINTED = {"hints, then outcome only": OUTCOMES}
LEVEL = 0.8


@dataclasses.dataclass(frozen=True)
class Config:
    """The task, the runs, and the hints."""

    digits: int = 3
    calls: float = 0.1
    steps: int = 40
    sft_steps: int = 250
    prompts_per_step: int = 16
    problems: int = 128
    every: int = 5
    hinted: int = 256
    hint_steps: int = 30
    runs: str = "runs/calculator"
    seeds: int = 5


SMOKE = Config(
    digits=2, calls=0.5, steps=2, sft_steps=10, prompts_per_step=2, problems=4, every=2, hinted=8, hint_steps=2,
    runs="", seeds=1,
)  # fmt: skip


def settings(config: Config, seed: int) -> Options:
    """What the arms of a seed have in common."""
    tiny = PRESETS["tiny"]
    return dataclasses.replace(
        tiny,
        task=TaskOptions(TASK, {"digits": str(config.digits), "calls": str(config.calls), "seed": str(seed)}),
        sft=SFTOptions(steps=config.sft_steps),
        rollout=dataclasses.replace(
            tiny.rollout, prompts_per_step=config.prompts_per_step, max_prompt_tokens=2 * config.digits + 3,
            max_new_tokens=8 * config.digits + 4, turns=TurnOptions(tool="calculator", markers=MARKERS, max_turns=3),
        ),
        prm=dataclasses.replace(tiny.prm, pretrain_rollouts=0),
        eval=dataclasses.replace(tiny.eval, every=config.every, problems=config.problems, prm_problems=0),
        steps=config.steps, baseline=False, plots=False, save_every=1000, keep_checkpoints=1, seed=seed,
    )  # fmt: skip


def fine_tuned_on_hints(config: Config, options: Options, folder: pathlib.Path) -> pathlib.Path:
    """The warm start after supervised training on the problems that it solves with a hint and not without."""
    start, records = folder / "warm_start" / "start", folder / "hinted.jsonl"
    if not records.is_file():
        task = [word for pair in options.task.options.items() for word in pair]
        words = [
            "generate", str(start), "--temperature", "1", "--max-new-tokens", str(options.rollout.max_new_tokens),
            "--seed", str(options.seed), "--hint.text", MARKERS[0], "--hint.at", "", "--hint.tool", "calculator",
            "--hint.markers", *MARKERS, "--hint.task", TASK, "--hint.task-options", *task, "--hint.problems",
            str(config.hinted), "--hint.keep", "kept", "--hint.slots", "64",
        ]  # fmt: skip
        partial = records.with_suffix(".partial")
        with partial.open("w") as file, contextlib.redirect_stdout(file):
            if cli.main(words):
                raise RuntimeError("prm-jax generate failed")
        partial.rename(records)
    kept = [json.loads(line) for line in records.read_text().splitlines()]
    print(f"== seed {options.seed}: {len(kept)} of {config.hinted} problems are solved with a hint only", flush=True)
    if len(kept) < 2:  # nothing to learn from
        return start
    fields = {"train": str(records), "markers": "#", "eval_fraction": "0.2"}
    tuned = changed(options, {"model": {"path": str(start)}, "rollout": {"turns": TurnOptions()}})
    sft = SFTOptions(steps=config.hint_steps, loaded=True, learning_rate=1e-3)
    return warm_start(dataclasses.replace(tuned, task=TaskOptions("jsonl", fields), sft=sft), folder / "hint_rft")


def run(config: Config) -> report.Tables:
    """Trains what is not trained yet; the tables."""
    with run_folder(config.runs) as root:
        folders = [root / f"seed{seed}" for seed in range(config.seeds)]
        for seed, path in enumerate(folders):
            options = settings(config, seed)
            train_arms(options, ARMS, path)
            train_arms(options, HINTED, path, fine_tuned_on_hints(config, options, path))
        return tables(folders, [*ARMS, *HINTED], config.every)


def tables(folders: Sequence[pathlib.Path], arms: Sequence[str], every: int) -> report.Tables:
    """Curves of accuracy and calls, and where they end."""
    ends = []
    for folder in folders:
        rows = {}
        for arm in arms:
            path = folder / folder_of(arm)
            greedy, sampled = (list(curve(path, f"eval/{kind}_accuracy").values()) for kind in ("greedy", "sampled"))
            calls = list(curve(path, "rollout/actions").values())
            rows[arm] = {
                "sampled, first": sampled[0], "sampled, last": sampled[-1], "greedy, last": greedy[-1],
                f"steps to {LEVEL:.0%} sampled": steps_to(curve(path, "eval/sampled_accuracy"), LEVEL),
                "calls per response, first": calls[0] - 1, "calls per response, last": calls[-1] - 1,
            }  # fmt: skip
        base = rows[arms[0]]
        for row in rows.values():
            for name in ("sampled, first", "sampled, last"):
                row[f"{name}, minus {arms[0]}"] = row[name] - base[name]
        ends.append(rows)
    return {
        "at the beginning and at the end": report.average(ends),
        "sampled accuracy": curves(folders, arms, "eval/sampled_accuracy"),
        "turns per response": curves(folders, arms, "rollout/actions", every),
    }


PANELS = (
    report.Panel("sampled accuracy", x="step", kind="curve"),
    report.Panel("turns per response", x="step", kind="curve"),
)

if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
