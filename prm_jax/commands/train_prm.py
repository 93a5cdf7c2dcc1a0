"""``prm-jax train-prm``: options from a file and the command line, then training."""

import dataclasses
import pathlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from prm_jax import config_io, exit_codes
from prm_jax.command_line import peek
from prm_jax.errors import UserError
from prm_jax.prm.train_options import (
    TrainPRMOptions,
    kind_options_in,
    narrowed,
    options_class_of,
    refuse_options_of_other_kinds,
)
from prm_jax.runs.distributed_options import DistributedOptions
from prm_jax.terminal import print_error, print_warning

COMMON_OPTIONS = (
    "config", "run-dir", "resume", "seed", "data.path", "data.format", "data.eval-path", "data.eval-fraction",
    "data.max-length", "data.skip-bad", "text.chat", "model.path", "model.lora-rank", "prm.kind", "prm.aggregate",
    "train.trains", "train.learning-rate", "train.batch-size", "train.epochs", "max-steps",
)  # fmt: skip
"""What ``--help`` shows, with all options of the kind; ``--help-all`` shows the rest too."""


@dataclass(frozen=True)
class Options:
    """Train a process reward model on step labels, outcomes or preferences.

    Values come from the configuration file, then from the command line. --prm.kind decides the other --prm.* options:
    --prm.kind KIND --help lists them.
    """

    config: pathlib.Path | None = None
    """YAML file with options, nested or dotted, such as the config.yaml of a run."""
    run_dir: pathlib.Path | None = None
    """Directory for everything; default: a new directory under runs/. The model is saved in its folder model/."""
    resume: bool = False
    """Continue the run in --run-dir, with its own configuration unless told otherwise."""
    distributed: DistributedOptions = field(default_factory=DistributedOptions)
    """Several processes that work together."""
    training: Annotated[TrainPRMOptions, tyro.conf.arg(name="")] = field(default_factory=TrainPRMOptions)


def options_class(words: Sequence[str]) -> type[Any]:
    """`Options` with the options of the kind that the command line, or else the configuration file, names.

    Raises:
      UserError: an unknown kind, or an option that belongs to another kind.
    """
    return _options_for(words)[0]


def common_options(words: Sequence[str]) -> tuple[str, ...]:
    """`COMMON_OPTIONS`, and all options of the kind."""
    kind = _options_for(words)[1]().prm
    return (*COMMON_OPTIONS, *(f"prm.{field.name.replace('_', '-')}" for field in dataclasses.fields(kind)))


def defaults(words: Sequence[str]) -> Options:
    """The values of options that the command line does not set: those of the file, or of the resumed run.

    Raises:
      UserError: a file that cannot be read or used, ``--resume`` without a directory.
    """
    cls, training = _options_for(words)
    base, file = training(), _file(words)
    options: Options = cls(training=config_io.load_yaml(file, base) if file else base)
    return options


def run(options: Options) -> int:
    """Trains; an interrupted run is saved and returns 75, one that diverged 77."""
    from prm_jax.prm.training import train
    from prm_jax.runs.run_dir import shared_run_path
    from prm_jax.runs.stopping import DivergedRun, InterruptedRun

    path = options.run_dir or shared_run_path("runs", f"prm-{options.training.prm.kind}")
    try:
        summary = train(options.training, path, resume=options.resume)
    except InterruptedRun as stopped:
        print_warning(f"{stopped}. Continue with: prm-jax train-prm --run-dir {shlex.quote(str(path))} --resume")
        return exit_codes.INTERRUPTED
    except DivergedRun as failed:
        print_error(f"{failed}\nThe last good checkpoint is in {path}")
        return failed.exit_code
    for name, value in summary["after"].items():
        print(f"{name.removeprefix('prm_eval/')}: {value:.4f}")
    print(f"the model is in {path / 'model'}")
    return 0


def _options_for(words: Sequence[str]) -> tuple[type[Any], type[TrainPRMOptions]]:
    """(the command's options, the options of the run) of the kind that is asked for."""
    early, file = peek(words, ("prm.kind",)), _file(words)
    in_file = kind_options_in(file) if file else {}
    kind = early.get("prm.kind") or in_file.get("kind") or TrainPRMOptions().prm.kind
    training = options_class_of(str(kind))
    refuse_options_of_other_kinds(_kind_options(words), str(kind), "--prm.")
    refuse_options_of_other_kinds(map(str, in_file), str(kind), f"{file}: prm.")
    whole = Annotated[training, tyro.conf.arg(name="")]  # type: ignore[valid-type]
    return narrowed(Options, "training", whole, field(default_factory=training)), training


def _file(words: Sequence[str]) -> pathlib.Path | None:
    """The configuration file: --config, or the one of the resumed run."""
    early = peek(words, ("config", "run_dir", "resume"))
    if early.get("config"):
        return pathlib.Path(early["config"])
    if "resume" not in early:
        return None
    if not early.get("run_dir"):
        raise UserError("--resume needs --run-dir: which run should continue?")
    own = pathlib.Path(early["run_dir"]) / "config.yaml"
    return own if own.is_file() else None


def _kind_options(words: Sequence[str]) -> list[str]:
    """Names of the --prm.* options in the command line, as fields are written."""
    flags = [word.partition("=")[0] for word in words if word.startswith(("--prm.", "--no-prm."))]
    names = [flag.removeprefix("--prm.").removeprefix("--no-prm.").removeprefix("no-") for flag in flags]
    return [name.replace("-", "_") for name in names]
