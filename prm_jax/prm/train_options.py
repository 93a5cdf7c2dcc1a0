"""Everything that defines a training run of a reward model: options that depend on the kind, and their checks."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import yaml

from prm_jax.errors import UserError
from prm_jax.input_files import open_input
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.models.quantization_options import bits_of
from prm_jax.option_ranges import at_least, check_ranges
from prm_jax.prm.kinds import KINDS, Implicit
from prm_jax.prm.reward_model_options import BaseOptions, DataOptions, OptimizerOptions, TextLayout
from prm_jax.prm.spec import Kind
from prm_jax.resolve import nearest


@dataclass(frozen=True)
class TrainPRMOptions:
    """Everything that defines a run; written into its directory as resolved."""

    data: DataOptions = field(default_factory=DataOptions)
    text: TextLayout = field(default_factory=TextLayout)
    model: BaseOptions = field(default_factory=BaseOptions)
    prm: Kind = field(default_factory=Implicit)
    train: OptimizerOptions = field(default_factory=OptimizerOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
    seed: Annotated[int, at_least(0)] = 0
    """Seed of everything random."""
    max_steps: Annotated[int, at_least(0)] = 0
    """Stop after this many optimiser steps; 0: after all epochs."""
    eval_every: Annotated[int, at_least(0)] = 50
    """Steps between evaluations; 0: only before the first step and after the last."""
    save_every: Annotated[int, at_least(1)] = 50
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, at_least(1)] = 2
    """Number of checkpoints kept."""
    best: str = ""
    """Held-out metric that chooses which state becomes the model, for example step_auc, or loss (the smallest); empty:
    the last state."""
    patience: Annotated[int, at_least(0)] = 0
    """Stop after this many evaluations in a row that do not improve --best; 0: never."""
    max_bad_steps: Annotated[int, at_least(1)] = 3
    """Consecutive steps with a non-finite update after which a run stops; each is skipped and counted."""
    watchdog: Annotated[float, at_least(0)] = 0.0
    """Seconds after which a step, an evaluation or saving prints the stacks of all threads; 0: never. The first of each
    may take ten times as long, since it compiles."""
    watchdog_exit: Annotated[float, at_least(0)] = 0.0
    """Seconds after which such a phase ends the process with exit code 76, so that a stuck process cannot hold the
    others for ever; 0: never."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra tb)."""
    wandb: bool = False
    """Also log to Weights & Biases (extra wandb)."""
    plots: bool = True
    """Draw plots at the end (extra plots)."""


@functools.cache
def options_class_of(kind: str) -> type[TrainPRMOptions]:
    """`TrainPRMOptions` whose field `prm` is declared as the class of one kind, for the command line and for files.

    Raises:
      UserError: an unknown kind (the nearest is suggested).
    """
    cls = kind_class(kind)
    return narrowed(TrainPRMOptions, "prm", cls, field(default_factory=cls))


def narrowed(cls: type[Any], name: str, to: Any, default: Any) -> type[Any]:
    """A subclass of a dataclass in which one field has a narrower type."""
    own = {"__doc__": cls.__doc__, "__module__": cls.__module__}
    return dataclasses.make_dataclass(cls.__name__, [(name, to, default)], bases=(cls,), namespace=own, frozen=True)


def kind_class(kind: str) -> type[Kind]:
    """The class of a kind by name.

    Raises:
      UserError: it is unknown.
    """
    if kind not in KINDS:
        known = ", ".join(KINDS)
        message = f"unknown kind of reward model {kind!r} (--prm.kind): {nearest(kind, KINDS)}the kinds are {known}"
        raise UserError(message)
    return KINDS[kind]


def refuse_options_of_other_kinds(names: Iterable[str], kind: str, prefix: str) -> None:
    """Refuses options that belong to another kind.

    Args:
      names: of options of the kind, as fields are written.
      kind: the chosen one.
      prefix: of the options in messages, for example ``"--prm."``.

    Raises:
      UserError: naming the kinds that have the option.
    """
    own = {one.name for one in dataclasses.fields(kind_class(kind))}
    for name in names:
        owners = [other for other, cls in KINDS.items() if name in {one.name for one in dataclasses.fields(cls)}]
        if name not in own and owners:
            raise UserError(
                f"{prefix}{name.replace('_', '-')} is an option of kind {', '.join(owners)}, but the kind is {kind}: "
                "leave it out, or choose another --prm.kind"
            )


def kind_options_in(path: str | pathlib.Path) -> Mapping[str, Any]:
    """The options of the kind that a configuration file gives, {} where it gives none or cannot be read."""
    try:
        with open_input(path) as file:
            found = yaml.safe_load(file.read(1 << 20))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}  # reading it in full says what is wrong
    if not isinstance(found, dict):
        return {}
    nested = found.get("prm")
    dotted = {str(key)[4:]: value for key, value in found.items() if str(key).startswith("prm.")}
    return {**(nested if isinstance(nested, dict) else {}), **dotted}


def check_options(options: TrainPRMOptions, *, needs_path: bool = True) -> None:
    """Refuses options that cannot work; `needs_path`: the data comes from --data.path.

    Raises:
      UserError: lists all problems found, each with the option, the value and what is expected.
    """
    ranges = check_ranges(options)
    # Checks that combine options may divide by them.
    problems = [*ranges, *_missing(options, needs_path), *([] if ranges else _combinations(options))]
    if problems:
        raise UserError("these options cannot work:\n" + "\n".join(f"  - {text}" for text in problems))


def _missing(options: TrainPRMOptions, needs_path: bool) -> list[str]:
    found = []
    if needs_path and not options.data.path:
        found.append("--data.path is missing: which step data should be learned from?")
    if not options.model.path:
        found.append("--model.path is missing: which language model should training start from?")
    return found


def _combinations(options: TrainPRMOptions) -> list[str]:
    train, found = options.train, []
    if train.batch_size % train.microbatches:
        found.append(f"--train.microbatches {train.microbatches} must divide --train.batch-size {train.batch_size}")
    if options.model.lora_rank and head_only(options):
        found.append(
            "--model.lora-rank adds adapters to a model that stays frozen: leave it out, or use --train.trains all"
        )
    if options.model.quantize != "none":
        bits = bits_of(options.model.quantize)
        found += [] if bits is None else options.model.quantization.problems(bits)
        if not options.model.lora_rank and not head_only(options):
            found.append(
                f"--model.quantize {options.model.quantize} is for weights that stay frozen, but all of them train: "
                "give adapters with --model.lora-rank, or train the head alone with --train.trains head"
            )
    if train.balance_coef and head_only(options):
        found.append(f"--train.balance-coef {train.balance_coef} needs a model that trains, and only the head does")
    if train.rounding != "none" and not options.model.lora_rank and not head_only(options):
        found.append(
            f"--train.rounding {train.rounding} rounds head and adapters, but all weights train: give adapters with "
            "--model.lora-rank, or use --train.trains head"
        )
    if options.patience and not options.best:
        found.append(f"--patience {options.patience} needs --best: which metric should improve?")
    if options.text.chat == "turns" and options.text.end:
        found.append("--text.end cannot be used with --text.chat turns, where the assistant answers after every step")
    return [*found, *options.prm.problems(options.model, train)]


def head_only(options: TrainPRMOptions) -> bool:
    """Whether only the head trains."""
    trains = options.train.trains
    return trains == "head" or (trains == "auto" and options.prm.head_only)
