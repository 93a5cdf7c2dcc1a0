"""``prm-jax train``: options from a preset, a file and the command line, in this order."""

import pathlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from prm_jax import config_io, exit_codes
from prm_jax.command_line import choose, peek
from prm_jax.errors import UserError
from prm_jax.prime.options import Options as RunOptions
from prm_jax.prime.presets import PRESETS
from prm_jax.runs.distributed_options import DistributedOptions
from prm_jax.terminal import print_error, print_warning

COMMON_OPTIONS = (
    "preset", "config", "run-dir", "resume", "seed", "steps", "task.name", "task.options", "model.path",
    "model.lora-rank", "rollout.prompts-per-step", "rollout.samples-per-prompt", "rollout.max-new-tokens",
    "reward.source", "reward.path", "reward.shaping", "advantage.credit", "advantage.estimator",
    "prm.learning-rate", "policy.learning-rate",
)  # fmt: skip
"""What ``--help`` shows; ``--help-all`` shows the rest too."""


@dataclass(frozen=True)
class Options:
    """Train a policy with process rewards that are learned online from outcomes alone (PRIME).

    Values come from the preset, then from the configuration file, then from the command line.
    """

    preset: str | None = None
    """Start from the options of a preset: tiny (minutes on two cores), tiny-long, smoke, smollm2,
    qwen2.5-1.5b-math or qwen2.5-7b-math (and with -lora)."""
    config: pathlib.Path | None = None
    """YAML file with options, nested or dotted, such as the config.yaml of a run."""
    run_dir: pathlib.Path | None = None
    """Where everything goes; default: a new directory under runs/."""
    resume: bool = False
    """Continue the run in --run-dir, with its own configuration unless options are given."""
    distributed: DistributedOptions = field(default_factory=DistributedOptions)
    """Several processes that work together."""
    training: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)


def defaults(words: Sequence[str]) -> Options:
    """Defaults of the command line: the preset, then the file (or the resumed run's own configuration).

    Raises:
      UserError: an unknown preset, a file that cannot be read or used, ``--resume`` without a directory.
    """
    early = peek(words, ("preset", "config", "run_dir", "resume"))
    base = choose(early["preset"], PRESETS, "preset") if early.get("preset") else RunOptions()
    if early.get("config"):
        base = config_io.load_yaml(early["config"], base)
    if "resume" in early:
        if not early.get("run_dir"):
            raise UserError("--resume needs --run-dir: which run should continue?")
        own = pathlib.Path(early["run_dir"]) / "config.yaml"
        if own.is_file() and not early.get("preset") and not early.get("config"):
            base = config_io.load_yaml(own, RunOptions())
    return Options(training=base)


def run(options: Options) -> int:
    """Trains; an interrupted run is saved and exits with 75, one that diverged with 77."""
    from prm_jax.prime.training import train
    from prm_jax.runs.run_dir import shared_run_path
    from prm_jax.runs.stopping import DivergedRun, InterruptedRun

    path = options.run_dir or shared_run_path("runs", options.preset or options.training.task.name)
    try:
        train(options.training, path, resume=options.resume)
    except InterruptedRun as stopped:
        print_warning(f"{stopped}. Continue with: prm-jax train --run-dir {shlex.quote(str(path))} --resume")
        return exit_codes.INTERRUPTED
    except DivergedRun as failed:
        print_error(f"{failed}\nThe last good checkpoint is in {path}")
        return failed.exit_code
    return 0
