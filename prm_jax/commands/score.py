"""``prm-jax score``: solutions in; a score for every step and every solution out, as JSON lines and as a page."""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from prm_jax.commands.devices import mesh_of
from prm_jax.errors import UserError
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.option_ranges import at_least, check_ranges
from prm_jax.prm.options import ScoringOptions

if TYPE_CHECKING:
    from prm_jax.data.step_data import StepRecord
    from prm_jax.prm.score import PRM, Scored
    from prm_jax.rollouts import TaskPolicy

EVERY = 10.0
"""Seconds between lines of progress where the standard error is not a terminal."""


@dataclass(frozen=True)
class Options:
    """Score the steps of solutions with a process reward model.

    Writes scores.jsonl (one line per solution: the score of each step, and of the whole) and scores.html (solutions
    with their steps coloured by score) into --out. An interrupted call continues where it stopped.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Directory of a model that train-prm or train left, or of a public one."""
    data: Annotated[pathlib.Path, tyro.conf.Positional]
    """Step data, or JSON lines with "prompt" and "response"."""
    out: pathlib.Path = pathlib.Path("scores")
    """Directory for the results."""
    calibration: str = ""
    """A results.json of prm-jax eval on the same model: turn step scores into chances by the map fitted there."""
    calibrated_on: str = ""
    """Subset of it whose map is taken; empty: the first that has one."""
    shown: Annotated[int, at_least(0)] = 200
    """Number of solutions on the page."""
    scoring: Annotated[ScoringOptions, tyro.conf.arg(name="")] = field(default_factory=ScoringOptions)


def run(options: Options) -> None:
    """Scores; prints where the results are."""
    from prm_jax.prm.calibrate import calibrated, read_map
    from prm_jax.prm.page import model_name, scores_page
    from prm_jax.prm.score_log import ScoreLog, identity_of, score_logged
    from prm_jax.runs.metrics_log import atomic_write

    problems = check_ranges(options)
    if options.calibration and options.scoring.cumulative:
        problems.append("--calibration is for the scores of single steps: leave --cumulative out")
    if problems:
        raise UserError("\n".join(problems))
    platt = read_map(options.calibration, options.calibrated_on) if options.calibration else None
    records = read(options.data, options.scoring)
    make_directory(options.out)
    prm = load_for(options.model, options.scoring)
    identity = identity_of(options.model, options.scoring, records)
    with ScoreLog(options.out / "scores.partial.jsonl", identity, resume=options.scoring.resume) as log:
        scored = score_logged(prm, records, log, options.scoring, on_batch=Meter(options.data.name))
        output: str = prm.output
        if platt is not None:
            scored = calibrated(scored, platt, output=output, how=options.scoring.aggregate or prm.aggregate)
            output = "probability"
        write_scores(options.out / "scores.jsonl", scored)
        title = f"{model_name(options.model)} on {options.data.name}"
        with atomic_write(options.out / "scores.html") as file:
            file.write(scores_page(scored, title=title, output=output, limit=options.shown))
        log.finish()
    left = len(records) - len(scored)
    note = f", {left} left out because they are too long" if left else ""
    print(f"{len(scored)} solutions scored{note}: {options.out / 'scores.jsonl'}, {options.out / 'scores.html'}")


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
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out {path}: {error.strerror or error}") from error


def load_for(model: str, options: ScoringOptions) -> "PRM":
    """The model on the devices that the options name."""
    return load(
        model, options.layout, options.reference, options.dtype, options.mesh, convention=options.convention
    )  # fmt: skip


def load(
    model: str, layout: str, reference: str, dtype: str, mesh: MeshOptions, *, convention: Any = "own"
) -> "PRM":
    """The model that the options of a command name, on the devices that they name."""
    from prm_jax import prm as prms
    from prm_jax.prm.score import spread

    devices = mesh_of(mesh)
    prm = prms.load(
        model, layout=layout, reference=reference or None, convention=convention, compute_dtype=dtype
    )  # fmt: skip
    return prm if devices is None else spread(prm, devices)


class Meter:
    """Shows how many solutions are scored: one line that changes on a terminal, a line every few seconds elsewhere."""

    def __init__(self, name: str) -> None:
        self.name, self.begun, self.shown = name, time.monotonic(), -EVERY
        self.first = 0

    def __call__(self, done: int, total: int) -> None:
        """Called after every batch, and once before the first."""
        from prm_jax.runs.console import duration

        live, now = sys.stderr.isatty(), time.monotonic() - self.begun
        if self.shown < 0:
            self.first = done
        if not live and done < total and now - self.shown < EVERY:
            return
        self.shown = now
        new = done - self.first
        left = f", about {duration(now / new * (total - done))} left" if new and done < total else ""
        line = f"{self.name}: {done} of {total} solutions{left}"
        print(f"\r{line}\x1b[K" if live else line, end="" if live and done < total else "\n", file=sys.stderr, flush=True)


def score_prefixes(prm: "PRM", engine: "TaskPolicy", partials: Sequence[Any], *, blank: float) -> list[float]:
    """The scores of prefixes of a search as whole solutions; `blank` for one without a step."""
    from prm_jax.prm.score import score_solutions

    records = [as_record(engine, partial) for partial in partials]
    # A prefix that goes on has no end token, whatever the layout says of whole solutions.
    written = [
        dataclasses.replace(record, provenance={**record.provenance, "finished": partial.finished})
        for partial, record in zip(partials, records, strict=True)
        if record is not None
    ]
    scored = iter(score_solutions(prm, written) if written else [])
    return [blank if record is None else next(scored).response for record in records]


def as_record(policy: "TaskPolicy", partial: Any, name: str = "") -> "StepRecord | None":
    """A prefix of a search as step data; None while it has no step."""
    from prm_jax.data.step_data import StepRecord

    problem, steps = policy.problems[partial.question], policy.texts(partial)
    return StepRecord(problem.prompt, steps, None, None, problem.id, name or problem.id) if steps else None
