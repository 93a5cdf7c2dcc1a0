"""``prm-jax score``: solutions in; a score for every step and every solution out, as JSON lines and as a page."""

import pathlib
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from prm_jax.commands.scoring import Meter, load_for, make_directory, read, write_scores
from prm_jax.errors import UserError
from prm_jax.option_ranges import at_least, check_ranges, within
from prm_jax.prm.reward_model_options import ScoringOptions
from prm_jax.runs.distributed_options import DistributedOptions


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
    """Subset of --calibration whose map is used; empty: the first that has one."""
    interval: Annotated[float | None, within(0, 1, low_open=True, high_open=True)] = None
    """Give each step an interval that holds its value with this probability; needs --interval-from."""
    interval_from: pathlib.Path | None = None
    """Scores of the same model on solutions with step labels or outcomes, as score and eval write them."""
    shown: Annotated[int, at_least(0)] = 200
    """Number of solutions on the page."""
    distributed: DistributedOptions = field(default_factory=DistributedOptions)
    """Several processes that work together."""
    scoring: Annotated[ScoringOptions, tyro.conf.arg(name="")] = field(default_factory=ScoringOptions)


def run(options: Options) -> None:
    """Scores; prints where the results are."""
    from prm_jax.prm.calibrate import calibrated, read_map, with_intervals
    from prm_jax.prm.cases import read_cases
    from prm_jax.prm.page import model_name, scores_page
    from prm_jax.prm.score_log import ScoreLog, identity_of, score_logged
    from prm_jax.runs import processes
    from prm_jax.runs.metrics_log import atomic_write

    problems = check_ranges(options)
    if options.calibration and options.scoring.cumulative:
        problems.append("--calibration is for the scores of single steps: leave --cumulative out")
    if (options.interval is None) != (options.interval_from is None):
        problems.append("--interval and --interval-from belong together: the level, and scores whose truth is known")
    if options.interval is not None and (options.calibration or options.scoring.cumulative):
        problems.append("--interval is for the scores as they are: leave --calibration and --cumulative out")
    if problems:
        raise UserError("\n".join(problems))
    platt = read_map(options.calibration, options.calibrated_on) if options.calibration else None
    known = read_cases(options.interval_from) if options.interval_from else []
    records = read(options.data, options.scoring)
    make_directory(options.out)
    prm = load_for(options.model, options.scoring)
    identity = identity_of(options.model, options.scoring, records)
    with ScoreLog(options.out / "scores.partial.jsonl", identity, resume=options.scoring.resume) as log:
        scored = score_logged(prm, records, log, options.scoring, on_batch=Meter(options.data.name))
        if not processes.is_first():
            return
        output: str = prm.output
        if platt is not None:
            scored = calibrated(scored, platt, output=output, how=options.scoring.aggregate or prm.aggregate)
            output = "probability"
        if options.interval is not None:
            scored = with_intervals(
                scored, known, level=options.interval, bounded=prm.output in ("probability", "value")
            )
        write_scores(options.out / "scores.jsonl", scored)
        title = f"{model_name(options.model)} on {options.data.name}"
        with atomic_write(options.out / "scores.html") as file:
            file.write(scores_page(scored, title=title, output=output, limit=options.shown))
        log.finish()
    left = len(records) - len(scored)
    note = f", {left} left out because they are too long" if left else ""
    print(f"{len(scored)} solutions scored{note}: {options.out / 'scores.jsonl'}, {options.out / 'scores.html'}")
