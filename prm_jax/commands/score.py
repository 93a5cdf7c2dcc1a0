"""``prm-jax score``: solutions in; a score for every step and every solution out, as JSON lines and as a page."""

import json
import pathlib
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from prm_jax.commands.devices import mesh_of
from prm_jax.config_io import OptionsOf
from prm_jax.errors import UserError
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.prm.options import Aggregate

if TYPE_CHECKING:
    from prm_jax.prm.score import PRM

LayoutName = Literal["auto", "qwen_prm", "token_classification", "math_shepherd", "rlhflow", "eurus_prm"]


@dataclass(frozen=True)
class Options:
    """Score the steps of solutions with a process reward model.

    Writes scores.jsonl (a line a solution: the score of each step, and of the whole) and scores.html (each solution
    with its steps coloured by score) into --out.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Directory of a model that train-prm left, or of a public one."""
    data: Annotated[pathlib.Path, tyro.conf.Positional]
    """Step data, or JSON lines with "prompt" and "response"."""
    out: pathlib.Path = pathlib.Path("scores")
    """Directory for the results."""
    layout: LayoutName = "auto"
    """Family of a public checkpoint whose config does not tell."""
    reference: str = ""
    """Reference of an implicit model, where its directory does not hold one."""
    format: str = "auto"
    """Format of step data: prm_jax, prm800k, math_shepherd, processbench, trl; auto: by the first record."""
    split: str = "newline"
    """How a response that comes without steps is cut into them: newline, blank, step_marker, sentence, tag, regex,
    whole, or package.module:function."""
    split_options: Annotated[dict[str, str], OptionsOf("split")] = field(default_factory=dict)
    """Options of that, e.g. pattern ';' for regex, tags '</step>' for tag."""
    aggregate: Aggregate | None = None
    """A solution's score from its steps' scores; none: as the model says."""
    cumulative: bool = False
    """A step's score is the sum of the scores up to it."""
    calibration: str = ""
    """A results.json of prm-jax eval on the same model: turn step scores into chances by the map fitted there."""
    calibrated_on: str = ""
    """Subset of it whose map is taken; empty: the first that has one."""
    skip_long: bool = False
    """Leave out solutions longer than the model's context, instead of refusing."""
    max_tokens: int = 8192
    """Tokens in one batch, padding included."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products."""
    mesh: MeshOptions = field(default_factory=MeshOptions)
    """Devices over which the model and the solutions lie."""
    shown: int = 200
    """Solutions on the page."""


def run(options: Options) -> None:
    """Scores; says where the results are."""
    from prm_jax.data.splitters import make_splitter
    from prm_jax.prm.calibrate import calibrated, read_map
    from prm_jax.prm.inputs import read_solutions
    from prm_jax.prm.page import scores_page
    from prm_jax.prm.score import score_solutions
    from prm_jax.runs.metrics_log import atomic_write

    if options.max_tokens < 1 or options.shown < 0:
        raise UserError("--max-tokens must be at least 1, and --shown must not be negative")
    if options.calibration and options.cumulative:
        raise UserError("--calibration is for the scores of single steps: leave --cumulative out")
    platt = read_map(options.calibration, options.calibrated_on) if options.calibration else None
    splitter = make_splitter(options.split, options.split_options, option="split")
    records = read_solutions(options.data, format=options.format, splitter=splitter)
    prm = load(options.model, options.layout, options.reference, options.dtype, options.mesh)
    scored = score_solutions(
        prm, records, max_tokens=options.max_tokens, aggregate=options.aggregate, cumulative=options.cumulative,
        skip_long=options.skip_long, on_batch=_progress,
    )  # fmt: skip
    output: str = prm.output
    if platt is not None:
        scored = calibrated(scored, platt, output=output, how=options.aggregate or prm.aggregate)
        output = "probability"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with atomic_write(options.out / "scores.jsonl") as file:
            for one in scored:
                file.write(json.dumps(one.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
        title = f"{pathlib.Path(options.model).name or options.model} on {options.data.name}"
        page = scores_page(scored, title=title, output=output, limit=options.shown)
        with atomic_write(options.out / "scores.html") as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"cannot write to {options.out}: {error.strerror or error}") from error
    left = len(records) - len(scored)
    note = f", {left} left out because they are too long" if left else ""
    print(f"{len(scored)} solutions scored{note}: {options.out / 'scores.jsonl'}, {options.out / 'scores.html'}")


def load(model: str, layout: str, reference: str, dtype: str, mesh: MeshOptions) -> "PRM":
    """The model that the options of a command name, on the devices that they name."""
    from prm_jax import prm as prms
    from prm_jax.prm.score import spread

    devices = mesh_of(mesh)
    prm = prms.load(model, layout=layout, reference=reference or None, compute_dtype=dtype)
    return prm if devices is None else spread(prm, devices)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} solutions", end="\n" if done == total else "", file=sys.stderr, flush=True)
