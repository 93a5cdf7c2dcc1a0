"""Training runs that differ in a few options and begin at the same warm start, seed by seed."""

import contextlib
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments import report
from prm_jax.prime import Options
from prm_jax.prime.training import train

Changes = Mapping[str, Mapping[str, Any]]
"""Section of the options -> field -> value."""


def train_arms(
    options: Options, arms: Mapping[str, Changes], folder: pathlib.Path, start: pathlib.Path | None = None
) -> None:
    """Trains every arm from one start; finished ones are left alone.

    Args:
      options: what all arms have in common.
      arms: name -> what differs.
      folder: of this seed; each arm gets a run directory in it.
      start: model from which all arms begin; None: the warm start of ``options.seed``.
    """
    start = start or warm_start(options, folder / "warm_start")
    model = dataclasses.replace(options.model, path=str(start))
    same = dataclasses.replace(options, model=model, sft=dataclasses.replace(options.sft, steps=0))
    for name, changes in arms.items():
        path = folder / folder_of(name)
        if not (path / "result.json").is_file():
            print(f"== seed {options.seed}, {name}", flush=True)
            train(changed(same, changes), path, resume=path.is_dir())


def warm_start(options: Options, folder: pathlib.Path) -> pathlib.Path:
    """The model of ``--sft.steps`` alone; trained unless it is there."""
    if not (folder / "result.json").is_file():
        outcomes = dataclasses.replace(options.advantage, process_coef=0.0)
        train(dataclasses.replace(options, steps=0, advantage=outcomes), folder, resume=folder.is_dir())
    return folder / "start"


@contextlib.contextmanager
def run_folder(path: str) -> Iterator[pathlib.Path]:
    """A directory that stays, or for an empty path one that is removed afterwards."""
    if path:
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as found:
        yield pathlib.Path(found)


def changed(options: Options, changes: Changes) -> Options:
    """Options with some fields of some sections replaced."""
    sections = {name: dataclasses.replace(getattr(options, name), **fields) for name, fields in changes.items()}
    return dataclasses.replace(options, **sections)


def folder_of(arm: str) -> str:
    """The name of an arm's run directory."""
    return arm.replace(", ", "_").replace(" ", "_")


def curve(path: pathlib.Path, metric: str) -> dict[int, float]:
    """Step -> value of a metric of a run."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {int(row["step"]): float(row[metric]) for row in rows if metric in row}


def curves(
    folders: Sequence[pathlib.Path], arms: Sequence[str], metric: str, every: int = 1
) -> dict[str, dict[str, float]]:
    """A table of estimates over seeds: a row per `every` steps at which all runs have the metric, a column per arm."""
    found = {arm: [curve(folder / folder_of(arm), metric) for folder in folders] for arm in arms}
    steps = sorted(set.intersection(*(set(one) for runs in found.values() for one in runs)))
    return {
        str(step): {"step": step, **{arm: report.estimate([one[step] for one in runs]) for arm, runs in found.items()}}
        for step in steps
        if step % every == 0
    }


def steps_to(found: Mapping[int, float], level: float) -> float:
    """The step at which a curve first reaches a level, interpolated; twice the last step if it never does."""
    steps, values = np.array(list(found)), np.array(list(found.values()))
    above = np.flatnonzero(values >= level)
    if not len(above):
        return 2.0 * float(steps[-1])
    i = int(above[0])
    return float(steps[0]) if i == 0 else float(np.interp(level, values[i - 1 : i + 1], steps[i - 1 : i + 1]))
