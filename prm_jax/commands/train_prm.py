"""``prm-jax train-prm``: options from a file and the command line, in this order."""

import pathlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from prm_jax import config_io
from prm_jax.command_line import peek
from prm_jax.errors import UserError
from prm_jax.prm.options import TrainPRMOptions
from prm_jax.terminal import print_error, print_warning

EXIT_INTERRUPTED, EXIT_DIVERGED = 75, 77


@dataclass(frozen=True)
class Options:
    """Train a process reward model on step labels, outcomes or preferences.

    Values come from the configuration file, then from the command line.
    """

    config: pathlib.Path | None = None
    """YAML file with options, nested or dotted, such as the config.yaml of a run."""
    run_dir: pathlib.Path | None = None
    """Where everything goes; default: a new directory under runs/. The model is in its folder model/."""
    resume: bool = False
    """Go on with the run in --run-dir, with its own configuration unless told otherwise."""
    training: Annotated[TrainPRMOptions, tyro.conf.arg(name="")] = field(default_factory=TrainPRMOptions)


def defaults(words: Sequence[str]) -> Options:
    """The options that hold where the command line says nothing: those of the file, or of the resumed run.

    Raises:
      UserError: a file that cannot be read or used, ``--resume`` without a directory.
    """
    early = peek(words, ("config", "run_dir", "resume"))
    base = TrainPRMOptions()
    if early.get("config"):
        base = config_io.load_yaml(early["config"], base)
    if "resume" in early:
        if not early.get("run_dir"):
            raise UserError("--resume needs --run-dir: which run should go on?")
        own = pathlib.Path(early["run_dir"]) / "config.yaml"
        if own.is_file() and not early.get("config"):
            base = config_io.load_yaml(own, base)
    return Options(training=base)


def run(options: Options) -> int:
    """Trains; an interrupted run is saved and gives 75, one that went astray 77."""
    from prm_jax.prm.train import train_prm
    from prm_jax.runs.run_dir import unique_run_path
    from prm_jax.runs.stopping import DivergedRun, InterruptedRun

    path = options.run_dir or unique_run_path("runs", f"prm-{options.training.prm.kind}")
    try:
        summary = train_prm(options.training, path, resume=options.resume)
    except InterruptedRun as stopped:
        print_warning(f"{stopped}. Go on with: prm-jax train-prm --run-dir {shlex.quote(str(path))} --resume")
        return EXIT_INTERRUPTED
    except DivergedRun as failed:
        print_error(f"{failed}\nThe last state is saved in {path}")
        return EXIT_DIVERGED
    for name, value in summary["after"].items():
        print(f"{name.removeprefix('prm_eval/')}: {value:.4f}")
    print(f"the model is in {path / 'model'}")
    return 0
