"""What the commands that score share: solutions in, a model on devices, scores out, progress on the standard error."""

import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prm_jax.commands.devices import mesh_of
from prm_jax.errors import UserError
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.prm.reward_model_options import Convention, ScoringOptions

if TYPE_CHECKING:
    from prm_jax.data.step_data import StepRecord
    from prm_jax.prm.score import PRM, Scored

EVERY = 10.0
"""Seconds between lines of progress where the standard error is not a terminal."""


def read(path: pathlib.Path, options: ScoringOptions) -> "list[StepRecord]":
    """The solutions in a file; skipped records are reported on the standard error."""
    from prm_jax.data.records import BadLine
    from prm_jax.data.splitters import make_splitter
    from prm_jax.prm.inputs import read_solutions

    splitter = make_splitter(options.split, options.split_options, option="split")
    skipped: list[BadLine] | None = [] if options.skip_bad else None
    records = read_solutions(path, format=options.format, splitter=splitter, skipped=skipped)
    if skipped:
        print(f"{path}: {len(skipped)} bad records skipped; the first is {skipped[0]}", file=sys.stderr)
    return records


def write_scores(path: pathlib.Path, scored: "Sequence[Scored]") -> None:
    """Writes a line per solution."""
    from prm_jax.runs.metrics_log import atomic_write

    with atomic_write(path) as file:
        for one in scored:
            file.write(json.dumps(one.to_json(), ensure_ascii=False, allow_nan=False) + "\n")


def make_directory(path: pathlib.Path) -> None:
    """Makes the directory for results, before anything takes long."""
    from prm_jax.runs import processes

    if not processes.is_first():
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out {path}: {error.strerror or error}") from error


def load_for(model: str, options: ScoringOptions) -> "PRM":
    """The model on the devices that the options name."""
    from prm_jax.prm.model import quantized

    prm = load(model, options.layout, options.reference, options.dtype, options.mesh, convention=options.convention)
    return quantized(prm, options.quantize, options.quantization, prefix="--")


def load(
    model: str, layout: str, reference: str, dtype: str, mesh: MeshOptions, *, convention: Convention = "own"
) -> "PRM":
    """The model that the options of a command name, on the devices that they name."""
    from prm_jax import prm as prms

    return prms.load(
        model, layout=layout, reference=reference or None, convention=convention, compute_dtype=dtype,
        mesh=mesh_of(mesh),
    )  # fmt: skip


class Meter:
    """Shows how many solutions are scored: one line that changes on a terminal, a line every few seconds elsewhere."""

    def __init__(self, name: str) -> None:
        self.name, self.begun, self.shown = name, time.monotonic(), -EVERY
        self.first = 0

    def __call__(self, done: int, total: int) -> None:
        """Called after every batch, and once before the first."""
        from prm_jax.runs import processes
        from prm_jax.runs.console import duration

        if not processes.is_first():
            return
        live, now = sys.stderr.isatty(), time.monotonic() - self.begun
        if self.shown < 0:
            self.first = done
        if not live and done < total and now - self.shown < EVERY:
            return
        self.shown = now
        new = done - self.first
        left = f", about {duration(now / new * (total - done))} left" if new and done < total else ""
        line = f"{self.name}: {done} of {total} solutions{left}"
        text, end = (f"\r{line}\x1b[K" if live else line), ("" if live and done < total else "\n")
        print(text, end=end, file=sys.stderr, flush=True)
