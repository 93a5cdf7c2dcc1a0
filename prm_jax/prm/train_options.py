"""Checks of the options of ``train-prm`` before anything is loaded: every problem is named at once."""

import math

from prm_jax.errors import UserError
from prm_jax.prm.options import TrainPRMOptions

_HEADLESS = ("implicit", "step_q")


def check_options(options: TrainPRMOptions) -> None:
    """Refuses options that cannot work.

    Raises:
      UserError: lists all problems found, each with the option, the value and what is expected.
    """
    problems = [*_ranges(options), *_missing(options), *_combinations(options)]
    if problems:
        raise UserError("these options cannot work:\n" + "\n".join(f"  - {text}" for text in problems))


def _ranges(options: TrainPRMOptions) -> list[str]:
    data, prm, train = options.data, options.prm, options.train
    at_least_one = {
        "data.max-length": data.max_length,
        "prm.head-layers": prm.head_layers,
        "prm.quantiles": prm.quantiles,
        "prm.members": prm.members,
        "train.batch-size": train.batch_size,
        "train.microbatches": train.microbatches,
        "train.epochs": train.epochs,
        "save-every": options.save_every,
        "keep-checkpoints": options.keep_checkpoints,
        "max-bad-steps": options.max_bad_steps,
    }
    not_negative = {
        "seed": options.seed,
        "eval-every": options.eval_every,
        "model.lora-rank": options.model.lora_rank,
        "train.learning-rate": train.learning_rate,
        "train.weight-decay": train.weight_decay,
        "prm.pair-margin": prm.pair_margin,
        "prm.pessimism": prm.pessimism,
        "prm.advantage-coef": prm.advantage_coef,
        "prm.ce-coef": prm.ce_coef,
    }
    above_zero = {
        "prm.beta": prm.beta,
        "prm.alpha": prm.alpha,
        "prm.ridge": prm.ridge,
        "prm.temperature": prm.temperature,
        "prm.gate-temperature": prm.gate_temperature,
        "train.grad-clip": train.grad_clip,
        "model.lora-alpha": options.model.lora_alpha,
    }
    within = {
        "data.eval-fraction": (data.eval_fraction, 0.0, 0.9),
        "data.neutral": (data.neutral, 0.0, 1.0),
        "prm.label-threshold": (prm.label_threshold, 0.0, 0.999999),
        "prm.label-smoothing": (prm.label_smoothing, 0.0, 0.499999),
        "prm.discount": (prm.discount, 0.0, 1.0),
        "prm.target-rate": (prm.target_rate, 1e-6, 1.0),
        "train.warmup-fraction": (train.warmup_fraction, 0.0, 1.0),
        "train.beta2": (train.beta2, 0.0, 0.999999),
    }
    return [
        *(f"--{name} is {value}; it must be at least 1" for name, value in at_least_one.items() if not value >= 1),
        *(f"--{name} is {value}; it must not be negative" for name, value in not_negative.items() if not value >= 0),
        *(f"--{name} is {value}; it must be greater than 0" for name, value in above_zero.items() if not value > 0),
        *(
            f"--{name} is {value}; it must be within [{low:g}, {high:g}]"
            for name, (value, low, high) in within.items()
            if not low <= value <= high
        ),
    ]


def _missing(options: TrainPRMOptions) -> list[str]:
    found = []
    if not options.data.path:
        found.append("--data.path is missing: which step data is learned from?")
    if not options.model.path:
        found.append("--model.path is missing: which language model does it start from?")
    if not math.isfinite(options.data.agree_threshold):
        found.append(f"--data.agree-threshold is {options.data.agree_threshold}; it must be a number")
    return found


def _combinations(options: TrainPRMOptions) -> list[str]:
    found = []
    prm, train = options.prm, options.train
    implicit = prm.kind == "implicit"
    if train.microbatches >= 1 and train.batch_size % train.microbatches:
        found.append(f"--train.microbatches {train.microbatches} must divide --train.batch-size {train.batch_size}")
    if implicit and prm.loss == "kto_vanilla" and train.microbatches > 1:
        found.append("--prm.loss kto_vanilla measures from means of the batch: --train.microbatches must be 1")
    if prm.reference == "base" and not options.model.lora_rank:
        found.append("--prm.reference base is the base of adapters: give --model.lora-rank, or use kept")
    if prm.reference != "kept" and prm.kind not in _HEADLESS:
        found.append(f"--prm.reference {prm.reference} does nothing for kind {prm.kind}")
    if prm.loss != "ce" and not implicit:
        found.append(f"--prm.loss {prm.loss} is a loss of kind implicit; kind {prm.kind} has one loss of its own")
    if prm.kind == "gpm" and (prm.embedding < 2 or prm.embedding % 2):
        found.append(f"--prm.embedding is {prm.embedding}; it must be even and at least 2")
    if prm.kind in (*_HEADLESS, "b_coder") and train.trains == "head":
        found.append(f"--train.trains head leaves nothing to train: kind {prm.kind} lives in the language model")
    frozen = train.trains == "head" or (train.trains == "auto" and prm.kind in ("armo", "digi_q"))
    if frozen and options.model.lora_rank:
        found.append(
            "--model.lora-rank adds adapters to a model that stays frozen: leave it out, or say --train.trains all"
        )
    if prm.kind == "armo" and not frozen:
        found.append("--train.trains all would move the features under armo's regressions: use head")
    if options.text.chat == "turns" and options.text.end:
        found.append("--text.end has no place in --text.chat turns, where a turn of the assistant's follows every step")
    return found
