"""What the later stages vary: tasks, their difficulty, and further arms, one factor at a time around one setting."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from experiments import arms as runs_from_one_start
from experiments.credit.arms import ARMS, LOCAL, Arm
from prm_jax.data.carry import CarryTask
from prm_jax.data.problems import Problem, is_eval
from prm_jax.data.procedural import DrawnProblems, draw_distinct
from prm_jax.models.model_options import ModelOptions
from prm_jax.prime.options import EvalOptions, Options, PolicyOptions, RolloutOptions, SFTOptions, TaskOptions


class Sums(CarryTask):
    """Sums of `min_operands` to `max_operands` numbers to train on, and of `max_operands` alone to evaluate.

    Args:
      min_operands, max_operands, num_eval, drop_carry: see `CarryTask`.
      zeros: whether every other number is 0.
    """

    def __init__(
        self, min_operands: int = 3, max_operands: int = 8, *, num_eval: int = 256, drop_carry: float = 0.6,
        zeros: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(min_operands, max_operands, num_eval=1, drop_carry=drop_carry)

        def draw(least: int) -> Any:
            return functools.partial(_draw, least, max_operands, zeros)

        key = ("sums", min_operands, max_operands, zeros)
        self._train = DrawnProblems(1 << 17, draw(min_operands), lambda row: not is_eval(_prompt(row)), _problem, key)
        rows = draw_distinct(draw(max_operands), lambda row: is_eval(_prompt(row)), tuple, num_eval, (*key, "eval"))
        self._eval = [_problem(row) for row in rows]


def _draw(least: int, most: int, zeros: bool, numbers: Iterator[int]) -> tuple[int, ...]:
    count = least + next(numbers) % (most - least + 1)
    return tuple(0 if zeros and place % 2 else next(numbers) % 10 for place in range(count))


def _prompt(row: Sequence[int]) -> str:
    return "+".join(map(str, row)) + "="


def _problem(row: Sequence[int]) -> Problem:
    return Problem(_prompt(row), str(sum(row)), f"sums/{_prompt(row)}", {"operands": list(row)})


SUMS, BACKWARD = "experiments.credit.settings:Sums", "experiments.credit.gym_task:Backward"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of the map.

    Attributes:
      size: numbers in a sum, which has one addition fewer.
      prompts, samples: per step.
      noise: share of training outcomes that are flipped.
      zeros: every other number is 0, so that half of the steps cannot go wrong.
      gym: words of `size` letters spelled backward (reasoning-gym) in place of sums; one letter is a step.
      start: name of a start policy of the setting's own, see `own_start`; "": that of the seed.
      taught: steps of supervised training of such a start.
      steps: of training.
    """

    size: int = 8
    prompts: int = 8
    samples: int = 4
    noise: float = 0.0
    zeros: bool = False
    gym: bool = False
    start: str = ""
    taught: int = 800
    steps: int = 80


SETTINGS = {
    "base": Setting(),
    "3 steps": Setting(size=4),
    "5 steps": Setting(size=6),
    "2 samples": Setting(prompts=16, samples=2),
    "8 samples": Setting(prompts=4, samples=8),
    "noise": Setting(noise=0.1),
    "zeros": Setting(zeros=True),
    "backward": Setting(gym=True, start="backward", taught=1200),
    "20 steps": Setting(size=21, start="20_steps"),
}
"""Points of the map by name."""

ONLINE = {
    "rows": "mixed", "learning_rate": 1e-3, "replay": 1024, "replay_batches": 1, "reading": "failed_labels",
    "label_trust": 0.2,
}  # fmt: skip


def _checker(flip: float, credit: str) -> Arm:
    advantage = LOCAL | {"credit": credit} if credit != "return" else {}
    return Arm(3e-4, {"reward": {"source": "checker", "flip": flip}, "advantage": advantage})


CHECKERS = {
    f"checker_{credit}_{round(100 * flip)}": _checker(flip, credit)
    for credit in ("step", "cumulative", "min", "return")
    for flip in (0.0, 0.1, 0.2, 0.3, 0.4)
}
"""The step checker with a share of its labels flipped, for each form of credit."""

MIXED_TASK = {"task": {"mixed": True}}
FRESH_PRM = {"rows": "mixed", "learning_rate": 1e-3}
"""An online PRM that begins with the start policy's weights and learns from groups with both outcomes."""
SCALED = {"credit": "step", "normalizer": "deviation"}
SAMPLED = {"source": "values", "rollouts": 2}
PROGRESS = SAMPLED | {"shaping": ("progress",)}
PROVERS = ("weak", "strong")
"""Whose completions give the values: those of the start policy, or of a policy of a more careful teacher."""
GRPO = {"advantage": {"process_coef": 0.0, "estimator": "grpo"}}
FORMS = {
    "outcome": ARMS["outcome"],
    "watched": ARMS["outcome"],
    "outcome_filtered": ARMS["outcome_filtered"],
    "outcome_grpo": Arm(3e-4, GRPO),
    "outcome_grpo_filtered": Arm(3e-4, ARMS["outcome_filtered"].groups | GRPO),
    "checker_grpo": Arm(3e-4, {"reward": {"source": "checker"}, "advantage": LOCAL | {"estimator": "grpo"}}),
    "monte_carlo": Arm(3e-4, {"reward": SAMPLED, "advantage": LOCAL | {"credit": "value"}}),
    "mc_value": Arm(3e-4, {"reward": SAMPLED, "advantage": LOCAL}),
    "pav_equal": Arm(3e-4, {"reward": PROGRESS, "advantage": LOCAL}),
    **{f"pav_{name}": Arm(3e-4, {"reward": PROGRESS | {"path": (name,)}, "advantage": LOCAL}) for name in PROVERS},
    "mix_outcome": Arm(3e-4, ARMS["outcome"].groups | MIXED_TASK),
    "mix_failed": Arm(3e-4, {"prm": ONLINE, "advantage": LOCAL} | MIXED_TASK),
    "reuse": Arm(3e-4, {"prm": ONLINE | {"trained": "earlier"}, "advantage": LOCAL}),
    "reuse_frozen": Arm(
        3e-4,
        {"prm": ONLINE | {"trained": "earlier", "learning_rate": 0.0}, "advantage": LOCAL},
    ),
    "history": Arm(3e-4, {"prm": ONLINE | {"trained": "implicit"}, "advantage": LOCAL}),
    **{
        f"history_frozen{other}": Arm(
            3e-4, {"prm": ONLINE | {"trained": f"implicit{other}", "learning_rate": 0.0}, "advantage": LOCAL}
        )
        for other in ("", "_2")
    },
    **{
        f"value_{labels}": Arm(
            3e-4, {"reward": {"source": "model", "path": (labels,)}, "advantage": LOCAL | {"credit": "value"}}
        )
        for labels in ("outcomes", "rollouts", "exact")
    },
    "online": Arm(3e-4, {"prm": FRESH_PRM, "advantage": SCALED}),
    "online_gated": Arm(3e-4, {"prm": FRESH_PRM, "advantage": SCALED | {"gate": True}}),
    "online_gated_groups": Arm(3e-4, {"prm": FRESH_PRM, "advantage": SCALED | {"gate": True, "gate_per": "group"}}),
    "prime_gated": Arm(3e-4, {"prm": FRESH_PRM, "advantage": {"gate": True}}),
    "policy_prm": Arm(3e-4, {"reward": {"source": "policy"}, "advantage": SCALED | {"credit": "cumulative"}}),
    **{
        f"reuse_{reading}": Arm(
            3e-4,
            {"prm": ONLINE | {"trained": "earlier", "reading": reading, "label_trust": None}, "advantage": LOCAL},
        )
        for reading in ("probabilities", "ranks")
    },
    "mix_reuse": Arm(
        3e-4,
        {
            "prm": ONLINE | {"trained": "earlier", "replay_batches": 6},
            "advantage": LOCAL,
        }
        | MIXED_TASK,
    ),
}
"""Arms on the mixture of lengths, and on the setting's own length."""

SWEEP = {
    f"mix_failed_beta_{beta:g}_rate_{rate:g}": (beta, rate)
    for beta in (0.0125, 0.05, 0.2)
    for rate in (3e-4, 1e-3, 3e-3)
}
"""`mix_failed` with the PRM's beta and learning rate around those of `ONLINE`, each with each."""
SWEPT = {
    name: Arm(3e-4, {"prm": ONLINE | {"beta": beta, "learning_rate": rate}, "advantage": LOCAL} | MIXED_TASK)
    for name, (beta, rate) in SWEEP.items()
}
ALL = FORMS | CHECKERS | SWEPT


ROOTS = (301, 901)
"""Seeds of the start policies; seed s begins at number s modulo 2 of them."""
STARTS = tuple(range(1001, 1013))
"""Seeds with a start policy of their own."""


def task_options(setting: Setting, least: int, most: int, *, mixed: bool = False) -> TaskOptions:
    """Sums of `least` to `most` numbers; with `mixed` those of `most` alone are for evaluation."""
    if setting.gym:
        return TaskOptions(BACKWARD, {"length": str(setting.size)})
    given = {"min_operands": str(least), "max_operands": str(most)}
    if setting.zeros or mixed:
        return TaskOptions(SUMS, given | {"num_eval": "192", "zeros": str(setting.zeros)})
    return TaskOptions("carry", given | {"num_eval": "192"})


def base_options(setting: Setting, seed: int) -> Options:
    """What all arms of a seed share."""
    prompt, response = (60, setting.size + 2) if setting.gym else (2 * setting.size + 1, 8 * (setting.size - 1) + 6)
    return Options(
        task=task_options(setting, setting.size, setting.size),
        model=ModelOptions(hidden_size=32, intermediate_size=96, num_layers=2),
        rollout=RolloutOptions(
            prompts_per_step=setting.prompts, samples_per_prompt=setting.samples, filter="none",
            max_prompt_tokens=prompt, max_new_tokens=response,
            outcome_noise=setting.noise,
        ),
        policy=PolicyOptions(warmup_steps=10, weight_decay=0.0, beta2=0.95),
        eval=EvalOptions(every=16, problems=192, greedy=False, prm_problems=0, batch_size=192),
        steps=setting.steps, seed=seed, save_every=1000, keep_checkpoints=1, sample_every=1000, plots=False,
    )  # fmt: skip


def own_start(setting: Setting, careless: float = 0.25) -> Options:
    """The start policy of a setting with one of its own: right words, or sums whose teacher drops some carries."""
    options = dataclasses.replace(base_options(setting, 901), steps=0)
    if not setting.gym:
        taught = {"min_operands": "3", "max_operands": str(setting.size), "num_eval": "192"}
        taught |= {"drop_carry": str(careless)}
        options = dataclasses.replace(options, task=TaskOptions("carry", taught))
    sft = SFTOptions(steps=setting.taught, batch_size=32, learning_rate=1e-2)
    return runs_from_one_start.changed(dataclasses.replace(options, sft=sft), ARMS["outcome"].groups)


EARLIER = 2048
"""Rollouts of easier problems from which the PRM of the reuse arms has learned."""


def earlier_of(arm: Arm) -> str:
    """Which earlier model an arm begins with: "earlier", one of `history.KINDS` or `PROVERS`, or "" for none.

    With "_2" a kind has learned from the other two earlier runs.
    """
    reward, prm = arm.groups.get("reward", {}), arm.groups.get("prm", {})
    return str(prm.get("trained") or "".join(reward.get("path", ())))


def earlier_options(start: pathlib.Path) -> Options:
    """A run that trains the PRM of the reuse arms alone: on sums of 3 to 5 numbers that the start policy writes."""
    options = dataclasses.replace(base_options(Setting(), 7), steps=0)
    easier = {"min_operands": "3", "max_operands": "5"}
    prm = {
        "rows": "mixed", "learning_rate": 1e-3, "pretrain_rollouts": EARLIER, "pretrain_epochs": 6,
        "pretrain_batch": 64, "pretrain_task_options": easier,
    }  # fmt: skip
    return runs_from_one_start.changed(options, {"model": {"path": str(start)}, "prm": prm, "advantage": LOCAL})


def arm_options(
    setting: Setting, arm: Arm, seed: int, start: pathlib.Path, *, rate: float, earlier: pathlib.Path | None = None
) -> Options:
    """An arm of a setting from the start in a directory; `earlier` is the PRM or prover of an arm that needs one."""
    groups: dict[str, dict[str, Any]] = {name: dict(fields) for name, fields in arm.groups.items()}
    if "trained" in groups.get("prm", {}):
        groups["prm"]["trained"] = str(earlier)
    if "path" in groups.get("reward", {}):
        groups["reward"]["path"] = (str(earlier),)
    options = base_options(setting, seed)
    if groups.pop("task", None):
        options = dataclasses.replace(options, task=task_options(setting, 3, setting.size, mixed=True))
    groups |= {"model": {"path": str(start)}, "policy": {"learning_rate": rate}}
    return runs_from_one_start.changed(options, groups)
