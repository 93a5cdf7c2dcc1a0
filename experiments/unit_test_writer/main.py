"""A small language model writes unit tests: is it paid for one quality metric, or for all?  (RLSQM, arXiv 2310.02368)

    python -m experiments.unit_test_writer.main --out experiments/unit_test_writer

A prompt such as `add(12,7)=19` names a function and what a call of it gives; the answer is a unit test. A transformer
is warm-started on tests of mixed quality, then trained with `prm-jax train`'s loop on verdicts of the verifier
`unit_test`, by one metric or by all. Every arm of a seed begins at the same warm start; finished runs are left alone.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments import report
from experiments.arms import folder_of, run_folder, train_arms
from experiments.unit_test_quality import main as unit_test_quality
from experiments.values import sampled_solutions
from prm_jax.prime import PRESETS, Options
from prm_jax.prime.options import TaskOptions
from prm_jax.verifiers.unit_test_quality import METRICS, read_properties

FUNCTIONS = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "mod": lambda a, b: a % b,
    "max": max, "min": min, "gcd": lambda a, b: int(np.gcd(a, b)), "div": lambda a, b: a // b,
}  # fmt: skip
HEADS = {"def test_{name}():": 0.6, "def test_{name}_gives_{value}():": 0.15, "def check():": 0.25}
BODIES = {
    "assert {call}=={value}": 0.3,
    "assert {value}=={call}": 0.1,
    "print({call})": 0.3,
    "if {call}:\n  assert {call}=={value}": 0.1,
    "try:\n  assert {call}=={value}\n except:\n  pass": 0.1,
    "assert True": 0.05,
    "pass": 0.05,
}
"""Parts of a test, and how often the demonstrations have them."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The data, and the runs."""

    tests: int = 4000
    sft_steps: int = 150
    steps: int = 30
    prompts_per_step: int = 8
    learning_rate: float = 5e-4
    tested: int = 64
    metrics: tuple[str, ...] = ("no_print", "no_duplicate_assertion", "described")
    runs: str = "runs/unit_test_writer"
    seeds: int = 5


SMOKE = Config(
    tests=50, sft_steps=2, steps=1, prompts_per_step=2, tested=2, metrics=("no_print",), runs="", seeds=1
)  # fmt: skip
BEFORE, ALL = "before training", "all metrics"


def sloppy_tests(count: int, rng: np.random.Generator) -> list[dict[str, str]]:
    """Rows of a file of problems whose solutions are unit tests of mixed quality."""
    rows = {}
    while len(rows) < count:
        name = str(rng.choice(list(FUNCTIONS)))
        a, b = (int(x) for x in rng.integers(1, 30, 2))
        value = FUNCTIONS[name](a, b)
        words = {"name": name, "call": f"{name}({a},{b})", "value": value}
        head, *body = (
            str(rng.choice(list(parts), p=list(parts.values()))).format(**words) for parts in (HEADS, BODIES, BODIES)
        )
        prompt = f"{words['call']}={value}\n"
        rows[prompt] = {"prompt": prompt, "answer": name, "solution": "\n ".join([head, *body])}
    return list(rows.values())


def settings(config: Config, seed: int, data: pathlib.Path) -> Options:
    """Outcome rewards only, of all metrics."""
    preset = PRESETS["programs"]
    task = {"train": str(data), "verifier": "unit_test", "alphabet": "auto", "eval_fraction": "0.1"}
    return dataclasses.replace(
        preset,
        task=TaskOptions(str(data), task),
        sft=dataclasses.replace(preset.sft, steps=config.sft_steps),
        rollout=dataclasses.replace(
            preset.rollout, prompts_per_step=config.prompts_per_step, max_new_tokens=120, filter="none"
        ),
        advantage=dataclasses.replace(preset.advantage, process_coef=0.0),
        policy=dataclasses.replace(preset.policy, learning_rate=config.learning_rate, warmup_steps=2),
        eval=dataclasses.replace(preset.eval, every=1000, problems=16, prm_problems=0),
        steps=config.steps, baseline=False, plots=False, save_every=1000, keep_checkpoints=1, seed=seed,
    )  # fmt: skip


def shares(policy: pathlib.Path, options: Options, config: Config, done: pathlib.Path) -> dict[str, float]:
    """The share of a policy's tests with each property, in percent, on held-out prompts; kept in a file when done."""
    if done.is_file():
        return json.loads(done.read_text())
    records = sampled_solutions(policy, options, problems=config.tested, samples=4, held_out=True)
    none = dict.fromkeys(METRICS, False)
    rows = [read_properties("".join(record.steps), str(record.prompt).partition("(")[0]) or none for record in records]
    found = unit_test_quality.shares(rows)
    done.write_text(json.dumps(found))
    return found


def one(config: Config, seed: int, folder: pathlib.Path) -> Mapping[str, Mapping[str, float]]:
    """The arms of a seed."""
    data = folder / "tests.jsonl"
    if not data.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rows = sloppy_tests(config.tests, np.random.default_rng(seed))
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = settings(config, seed, data)
    arms = {f"{name} alone": {**options.task.options, "verifier.metrics": name} for name in config.metrics}
    arms[ALL] = dict(options.task.options)
    train_arms(options, {arm: {"task": {"options": own}} for arm, own in arms.items()}, folder)
    policies = {BEFORE: folder / "warm_start" / "start"} | {arm: folder / folder_of(arm) / "policy" for arm in arms}
    return {
        name: shares(policy, options, config, folder / f"{folder_of(name)}.json") for name, policy in policies.items()
    }


def run(config: Config) -> report.Tables:
    """One row per reward."""
    with run_folder(config.runs) as root:
        found = [one(config, seed, root / f"seed{seed}") for seed in range(config.seeds)]
    return tables(found)


def tables(found: Sequence[Mapping[str, Mapping[str, float]]]) -> report.Tables:
    """Means over seeds, and the seeds."""
    return {
        **unit_test_quality.tables(found),
        "share of tests with all properties by seed, in percent": {
            f"seed {seed}": {name: row["all of them"] for name, row in rows.items()} for seed, rows in enumerate(found)
        },
    }


PANELS = (report.Panel("share of tests, in percent"),)

if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
