"""The tasks and arms that are compared: what differs between two runs of one seed, and nothing else."""

import dataclasses
from typing import Any

from prm_jax.models.model_options import ModelOptions
from prm_jax.prime.options import (
    EvalOptions,
    Options,
    PolicyOptions,
    RolloutOptions,
    SFTOptions,
    TaskOptions,
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A task on which arms are compared.

    Attributes:
      operands: numbers in a sum; one step fewer.
      taught: the most operands of the demonstrations of the start policy, which have 3 or more.
      easy: the most operands of the easier problems.
      steps: training steps.
      sft: steps of supervised training of the start.
    """

    operands: int
    taught: int
    easy: int
    steps: int
    sft: int


TASKS = {"long": Task(8, 8, 4, 80, 800), "short": Task(4, 4, 3, 40, 800)}
WARM_UP = 512
"""Rollouts of easier problems from which the PRM learns first."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """What an arm changes.

    Attributes:
      rate: the policy's learning rate.
      groups: group of options -> fields.
    """

    rate: float
    groups: dict[str, dict[str, Any]]


LOCAL = {"credit": "step", "normalizer": "none"}
EASIER = {
    "rows": "mixed", "learning_rate": 1e-3, "pretrain_rollouts": WARM_UP, "pretrain_epochs": 10, "pretrain_batch": 64,
    "replay": 512, "replay_batches": 2, "replay_warm_up": 0.5, "reading": "labels", "label_trust": 0.0,
}  # fmt: skip
RATE = 3e-4
ARMS = {
    "outcome": Arm(RATE, {"advantage": {"process_coef": 0.0}}),
    "outcome_filtered": Arm(
        RATE,
        {
            "advantage": {"process_coef": 0.0},
            "rollout": {"filter": "mask", "solve_rate_low": 0.05, "solve_rate_high": 0.95},
        },
    ),
    "checker": Arm(RATE, {"reward": {"source": "checker"}, "advantage": LOCAL}),
    "checker_return": Arm(RATE, {"reward": {"source": "checker"}}),
    "checker_flip20": Arm(RATE, {"reward": {"source": "checker", "flip": 0.2}, "advantage": LOCAL}),
    "checker_flip40": Arm(RATE, {"reward": {"source": "checker", "flip": 0.4}, "advantage": LOCAL}),
    "prime": Arm(RATE, {"prm": {"learning_rate": 1e-3}}),
    "easier": Arm(RATE, {"prm": EASIER, "advantage": LOCAL}),
    "easier_gated": Arm(RATE, {"prm": EASIER | {"label_trust": 0.4}, "advantage": LOCAL}),
    "easier_judged": Arm(RATE, {"prm": EASIER | {"rows": "judged"}, "advantage": LOCAL}),
}
"""Arms by name. All keep every group of a batch, but for "outcome_filtered"."""


def base_options(task: str, seed: int, *, smoke: bool) -> Options:
    """What all runs of a seed share."""
    sizes = TASKS[task]
    options = Options(
        task=_sums(sizes.operands, sizes.operands),
        model=ModelOptions(hidden_size=32, intermediate_size=96, num_layers=2),
        rollout=RolloutOptions(
            prompts_per_step=8, samples_per_prompt=4, filter="none", max_prompt_tokens=2 * sizes.taught + 2,
            max_new_tokens=8 * (sizes.taught - 1) + 6,
        ),
        policy=PolicyOptions(warmup_steps=10, weight_decay=0.0, beta2=0.95),
        eval=EvalOptions(every=8, problems=256, greedy=False, prm_problems=64, batch_size=256),
        steps=sizes.steps, seed=seed, save_every=1000, keep_checkpoints=1, sample_every=1000, plots=False,
    )  # fmt: skip
    if smoke:
        options = _changed(options, {"eval": {"every": 1, "problems": 8, "prm_problems": 4, "batch_size": 8}})
        options = dataclasses.replace(options, steps=2)
    return options


def start_options(task: str, seed: int, *, smoke: bool = False) -> Options:
    """The start of a seed: a policy taught by the careless teacher, which drops three carries in five."""
    sizes = TASKS[task]
    options = dataclasses.replace(base_options(task, seed, smoke=smoke), task=_sums(3, sizes.taught), steps=0)
    sft = SFTOptions(steps=20 if smoke else sizes.sft, batch_size=32, learning_rate=1e-2)
    return _changed(dataclasses.replace(options, sft=sft), {"advantage": {"process_coef": 0.0}})


def arm_options(task: str, arm: str, seed: int, start: str, *, rate: float, smoke: bool = False) -> Options:
    """An arm from the start in the directory `start`."""
    groups = {name: dict(fields) for name, fields in ARMS[arm].groups.items()}
    if "pretrain_rollouts" in groups.get("prm", {}):
        easy = {"min_operands": "3", "max_operands": str(TASKS[task].easy), "num_eval": "32"}
        groups["prm"]["pretrain_task_options"] = easy
        if smoke:
            groups["prm"] |= {"pretrain_rollouts": 64, "pretrain_batch": 32, "pretrain_epochs": 1, "replay": 64}
    options = _changed(base_options(task, seed, smoke=smoke), groups)
    return _changed(options, {"model": {"path": start}, "policy": {"learning_rate": rate}})


def _sums(least: int, most: int) -> TaskOptions:
    return TaskOptions("carry", {"min_operands": str(least), "max_operands": str(most), "num_eval": "256"})


def _changed(options: Options, groups: dict[str, dict[str, Any]]) -> Options:
    return dataclasses.replace(
        options, **{name: dataclasses.replace(getattr(options, name), **fields) for name, fields in groups.items()}
    )
