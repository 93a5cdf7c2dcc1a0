"""``prm-jax plan``: what a run of ``prm-jax train`` needs, before it starts and without its weights."""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from prm_jax import exit_codes
from prm_jax.command_line import choose, peek
from prm_jax.config_io import load_yaml
from prm_jax.option_ranges import at_least, check_ranges
from prm_jax.prime.options import Options as RunOptions
from prm_jax.prime.presets import PRESETS
from prm_jax.terminal import print_warning

COMMON_OPTIONS = (
    "preset", "config", "device", "devices", "processes", "compile", "vocab-size", "json", "model.path",
    "model.hidden-size", "model.intermediate-size", "model.num-layers", "model.lora-rank", "model.compute-dtype",
    "model.remat",
    "model.attention", "prm.path", "prm.lora-rank", "prm.microbatches", "policy.microbatches",
    "rollout.prompts-per-step", "rollout.samples-per-prompt", "rollout.max-prompt-tokens", "rollout.max-new-tokens",
    "mesh.data", "mesh.fsdp", "mesh.tensor",
)  # fmt: skip
"""What ``--help`` shows; ``--help-all`` shows the rest too."""


@dataclass(frozen=True)
class Options:
    """Show the memory, operations and time that a training run needs per device.

    Takes the options of prm-jax train. No weights are read: --model.path may be a config.json. By arithmetic, and with
    --compile by the compiler of the device as well. Exits with 3 when the run does not fit.
    """

    preset: str | None = None
    """Start from the options of a preset, such as qwen2.5-7b-math."""
    config: pathlib.Path | None = None
    """YAML file with options, such as the config.yaml of a run."""
    device: str = "cpu"
    """Kind of device: v5e, v5p, v6e, a100, h100, h200 or cpu."""
    devices: Annotated[int, at_least(1)] = 1
    """Number of devices; --mesh.* must multiply to it, with -1 for the rest."""
    processes: Annotated[int, at_least(1)] = 1
    """Processes that share the devices, such as one per host of a pod; each samples on its own devices."""
    vocab_size: Annotated[int, at_least(0)] = 0
    """Vocabulary of a fresh model; 0: that of the task's tokenizer."""
    json: bool = False
    """Print JSON: bytes, operations and seconds."""
    compile: bool = False
    """Also compile the whole step for the device, which need not be there: TPUs with libtpu (the tpu extra), and cpu.
    Takes minutes for a large model."""
    topology: str = ""
    """Shape of the TPU slice that is compiled for, such as 4x4x4; default: the usual one of that many chips."""
    program: pathlib.Path | None = None
    """Write the compiled program's text (optimised HLO) to this file."""
    training: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)


def defaults(words: Sequence[str]) -> Options:
    """Defaults of the command line: the preset, then the file.

    Raises:
      UserError: an unknown preset, or a file that cannot be read or used.
    """
    early = peek(words, ("preset", "config"))
    base = choose(early["preset"], PRESETS, "preset") if early.get("preset") else RunOptions()
    if early.get("config"):
        base = load_yaml(early["config"], base)
    return Options(training=base)


def run(options: Options) -> int:
    """Prints the plan; 3 when the run does not fit."""
    # Shapes are all that is computed in this process; a TPU's or GPU's runtime would only be slow to start.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from prm_jax.errors import UserError
    from prm_jax.prime.accelerators import find_accelerator
    from prm_jax.prime.checks import check_options
    from prm_jax.prime.plan import make_plan, planned_configs
    from prm_jax.prime.plan_compile import compile_step, missing_compiler
    from prm_jax.prime.plan_table import fits, render, summary

    problems = check_ranges(dataclasses.replace(options, training=RunOptions()))
    if problems:
        raise UserError("\n".join(problems))
    device = find_accelerator(options.device)
    check_options(options.training)
    config, prm_config = planned_configs(options.training, vocab_size=options.vocab_size)
    found = make_plan(
        options.training, config, devices=options.devices, platform=device.platform, prm_config=prm_config,
        processes=options.processes,
    )  # fmt: skip
    compiled, why = None, ""
    if options.compile:
        why = missing_compiler(device) or ""
        if not why:
            words = f"compiling the step for {options.devices} x {device.name}, which takes minutes for a large model"
            print(words, file=sys.stderr, flush=True)
            compiled = compile_step(
                options.training, config, device, devices=options.devices, prm_config=prm_config,
                topology=options.topology, keep=options.program,
            )  # fmt: skip
        else:
            print_warning(f"not compiled: {why}")
    elif options.topology or options.program:
        raise UserError("--topology and --program belong to --compile: add it, or leave them out")
    if options.json:
        print(json.dumps(summary(found, device, compiled), indent=2))
    else:
        print(render(found, device, compiled, why=why))
    return 0 if fits(found, device, compiled) else exit_codes.DOES_NOT_FIT
