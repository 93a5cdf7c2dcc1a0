"""``prm-jax plot``: learning curves of runs as PNG files, or a run as an interactive page."""

import pathlib
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from prm_jax.errors import UserError


@dataclass(frozen=True)
class Options:
    """Draw the curves of one run, or compare runs.

    Runs whose configurations differ only in the seed are drawn as one line with a band.
    """

    runs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Run directories (or metrics.jsonl files)."""
    out: pathlib.Path | None = None
    """Directory for the pictures; default: plots/ inside a single run, ./plots for several runs."""
    metrics: tuple[str, ...] = ()
    """Only these metrics, such as eval/greedy_accuracy; default: the standard pictures."""
    x: Literal["step", "rollouts", "seconds"] = "step"
    """The horizontal axis."""
    center: Literal["iqm", "median", "mean"] = "iqm"
    """Line drawn for several seeds: interquartile mean, median or mean."""
    band: Literal["quartiles", "range"] = "quartiles"
    """Band drawn for several seeds: between the quartiles, or from minimum to maximum."""
    html: pathlib.Path | None = None
    """Write one run as an interactive page instead: curves of every metric, and the samples with their rewards."""
    dpi: int = 150
    """Resolution in dots per inch."""


def run(options: Options) -> int:
    """Draws the pictures and prints their paths."""
    from prm_jax.runs import plots

    if not options.runs:
        raise UserError("no run given; expected one or more run directories: prm-jax plot runs/mine")
    if options.html is not None:
        return _page(options.runs, options.html)
    out = options.out or (options.runs[0] / "plots" if len(options.runs) == 1 else pathlib.Path("plots"))
    if len(options.runs) == 1 and options.runs[0].is_file():
        out = options.out or options.runs[0].parent / "plots"
    style = plots.Style(center=options.center, band=options.band, dpi=options.dpi)
    for path in plots.plot_runs(options.runs, out, metrics=options.metrics, x=options.x, style=style):
        print(path)
    return 0


def _page(runs: tuple[pathlib.Path, ...], path: pathlib.Path) -> int:
    from prm_jax.runs.metrics_log import atomic_write
    from prm_jax.runs.run_page import run_page

    if len(runs) > 1:
        raise UserError(f"--html shows one run, found {len(runs)}: name one, or leave --html out to compare them")
    text = run_page(runs[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text)
    print(path)
    return 0
