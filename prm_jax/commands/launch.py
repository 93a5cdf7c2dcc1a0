"""``prm-jax launch``: a command in several processes, restarted from its newest checkpoint when one of them dies."""

import os
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from prm_jax import cli
from prm_jax.command_line import choose
from prm_jax.errors import UserError
from prm_jax.option_ranges import above, at_least, check_ranges, within
from prm_jax.runs.jobs import Job, option_value
from prm_jax.runs.local_devices import device_environments
from prm_jax.runs.restarts import RestartLimits
from prm_jax.runs.supervisor import Layout, supervise

TAKES_COMMAND = True
"""The words after ``--`` are another command."""

_TRAINS, _WRITES = ("train", "train-prm"), ("search", "label")


@dataclass(frozen=True)
class Options:
    """Run a command in several processes, and restart all of them from the newest checkpoint when one dies.

    prm-jax launch [OPTIONS] -- COMMAND ...: any prm-jax command, or a Python file. A run directory that holds a run is
    continued, so that the same line starts a job and continues it. Stops when a restart cannot help.
    """

    nproc: Annotated[int, at_least(1)] = 1
    """Processes on this host."""
    coordinator: str = ""
    """HOST:PORT of process 0, for a job on several hosts; empty: this host, or what the cluster provides."""
    first_process: Annotated[int, at_least(0)] = 0
    """Number of the first process of this host, with --coordinator."""
    processes: Annotated[int, at_least(0)] = 0
    """Processes on all hosts, with --coordinator; 0: --nproc."""
    devices_per_process: Annotated[int, at_least(0)] = 0
    """Devices of each process: as many virtual ones on a CPU, or its own share of the NVIDIA GPUs; 0: all."""
    limits: Annotated[RestartLimits, tyro.conf.arg(name="")] = field(default_factory=RestartLimits)
    finish_seconds: Annotated[float, above(0)] = 600.0
    """Seconds that the other processes may take once one has finished; then they count as stuck."""
    log: pathlib.Path | None = None
    """File for the launcher's own lines; default: launch.log in the run directory."""


def run(options: Options, command: Sequence[str]) -> int:
    """Supervises the command; returns its exit code, or that of the reason for giving up."""
    if os.name != "posix":
        raise UserError("prm-jax launch needs Linux or macOS; elsewhere start each process with --distributed.*")
    problems = check_ranges(options)
    if problems:
        raise UserError("\n".join(problems))
    layout = _layout(options)
    return supervise(
        _job(command, several_hosts=layout.total > layout.count), layout, options.limits,
        finish_seconds=options.finish_seconds, log=options.log,
    )  # fmt: skip


def _layout(options: Options) -> Layout:
    total = options.processes or options.nproc
    if options.coordinator:
        host, _, port = options.coordinator.rpartition(":")
        if not host or not port.isdecimal() or int(port) not in within(1, 65535):
            raise UserError(
                f"--coordinator is {options.coordinator!r}; expected HOST:PORT of process 0, as in node0:1234"
            )
    elif options.first_process or total != options.nproc:
        raise UserError(
            f"--first-process {options.first_process} and --processes {total} describe a job on several hosts, which "
            "needs --coordinator HOST:PORT: the address of process 0, the same on every host"
        )
    last = options.first_process + options.nproc - 1
    if last >= total:
        raise UserError(
            f"--first-process {options.first_process} with --nproc {options.nproc} gives process numbers up to {last}, "
            f"but there are {total} (--processes)"
        )
    environments = device_environments(options.nproc, options.devices_per_process)
    return Layout(options.nproc, options.first_process, total, options.coordinator, environments)


def _job(command: Sequence[str], *, several_hosts: bool) -> Job:
    if not command:
        raise UserError("nothing to launch: prm-jax launch --nproc 2 -- train --preset tiny --run-dir runs/mine")
    name, words = command[0], list(command[1:])
    if name.endswith(".py"):
        if not pathlib.Path(name).is_file():
            raise UserError(f"cannot launch {name}: there is no such file")
        return Job((sys.executable, name), tuple(words), _path(words, "run-dir"))
    choose(name, {known: known for known in cli.COMMANDS if known != "launch"}, "command")
    run_dir = _path(words, "run-dir") if name in _TRAINS else None
    if name in _TRAINS and run_dir is None:
        if several_hosts:
            raise UserError(f"{name} on several hosts needs --run-dir: a directory that all of them share")
        from prm_jax.runs.run_dir import unique_run_path

        run_dir = unique_run_path("runs", option_value(words, "preset") or name)
        words += ["--run-dir", str(run_dir)]
    out = _path(words, "out") if name in _WRITES else None
    results = () if out is None else (out, out.with_name(f"{out.name}.partial"))
    return Job((sys.executable, "-m", "prm_jax", name), tuple(words), run_dir, results)


def _path(words: Sequence[str], name: str) -> pathlib.Path | None:
    value = option_value(words, name)
    return None if value is None else pathlib.Path(value)
