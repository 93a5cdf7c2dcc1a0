"""``prm-jax eval``: how good a process reward model's step scores are, by the field's own protocols."""

import json
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from prm_jax.commands.score import LayoutName
from prm_jax.errors import UserError
from prm_jax.models.mesh_options import MeshOptions
from prm_jax.prm.options import Aggregate

if TYPE_CHECKING:
    from prm_jax.prm.cases import Case


@dataclass(frozen=True)
class Options:
    """Judge a process reward model on labelled solutions.

    Each file is a subset, called as the file is, or NAME=FILE. Finds the first wrong step by ProcessBench's protocol
    (beside random and always-right guessing), picks the best of n by every aggregation and by votes, ranks one right
    solution against the wrong ones, and measures calibration; whatever the data allows. Writes results.json and
    results.html into --out.
    """

    data: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Step data to score, or with --scored the scores.jsonl that prm-jax score wrote."""
    model: str = ""
    """Directory of the model; left out with --scored."""
    scored: bool = False
    """The files hold scores already."""
    output: Literal["probability", "value", "log_ratio", "score"] | None = None
    """What the scores of --scored files are; none: chances where all lie in [0, 1], else plain scores."""
    out: pathlib.Path = pathlib.Path("eval")
    """Directory for the results."""
    threshold_on: str = ""
    """Subset that chooses the threshold for the first wrong step; empty: gsm8k, or else the first."""
    false_discovery: float | None = None
    """Also select solutions of which at most this share is wrong, in expectation."""
    resamples: int = 1000
    """Resamples of bootstrap intervals; 0: none."""
    seed: int = 0
    """Seed of resampling."""
    layout: LayoutName = "auto"
    """Family of a public checkpoint whose config does not tell."""
    reference: str = ""
    """Reference of an implicit model, where its directory does not hold one."""
    format: str = "auto"
    """Format of step data; auto: by the first record of a file."""
    aggregate: Aggregate | None = None
    """A solution's score from its steps' scores; none: as the model says."""
    cumulative: bool = False
    """A step's score is the sum of the scores up to it."""
    skip_long: bool = False
    """Leave out solutions longer than the model's context, instead of refusing."""
    max_tokens: int = 8192
    """Tokens in one batch, padding included."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products."""
    mesh: MeshOptions = field(default_factory=MeshOptions)
    """Devices over which the model and the solutions lie."""


def run(options: Options) -> None:
    """Judges; prints the main numbers and where the rest is."""
    from prm_jax.prm.judge import judge_scores
    from prm_jax.prm.judge_page import results_page
    from prm_jax.runs.metrics_log import atomic_write

    files = _subsets(options.data)
    _check(options)
    subsets, output = _read(options, files) if options.scored else _score(options, files)
    results = judge_scores(
        subsets, output=output, threshold_on=options.threshold_on, false_discovery=options.false_discovery,
        resamples=options.resamples, seed=options.seed,
    )  # fmt: skip
    results = {"model": options.model, "step_score": output, **results}
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with atomic_write(options.out / "results.json") as file:
            json.dump(results, file, indent=1, allow_nan=False)
            file.write("\n")
        with atomic_write(options.out / "results.html") as file:
            file.write(results_page(results, title=f"{options.model or 'scores'} judged"))
    except OSError as error:
        raise UserError(f"cannot write to {options.out}: {error.strerror or error}") from error
    bench = results["process_bench"]
    for name, found in bench.get("subsets", {}).items():
        print(f"{name}: first-error F1 {found['f1']:.3f} (random {found['random_f1']:.3f})")
    print(f"results: {options.out / 'results.json'}, {options.out / 'results.html'}")


def _subsets(data: Sequence[str]) -> dict[str, pathlib.Path]:
    if not data:
        raise UserError("which data? Give one file or several: prm-jax eval data.jsonl --model runs/mine/model")
    found: dict[str, pathlib.Path] = {}
    for word in data:
        name, separator, path = word.partition("=")
        file = pathlib.Path(path if separator else word)
        name = name if separator else file.stem
        if name in found:
            raise UserError(f"two subsets are called {name!r}; give names: {name}=FILE")
        found[name] = file
    return found


def _check(options: Options) -> None:
    if options.scored == bool(options.model):
        raise UserError("give --model to score the data, or --scored when the files hold scores already, not both")
    if options.false_discovery is not None and not 0 < options.false_discovery < 1:
        raise UserError(f"--false-discovery is {options.false_discovery}; it must be within (0, 1)")
    if options.resamples < 0 or options.max_tokens < 1:
        raise UserError("--resamples must not be negative, and --max-tokens must be at least 1")


def _read(options: Options, files: dict[str, pathlib.Path]) -> "tuple[dict[str, list[Case]], str]":
    from prm_jax.prm.cases import read_cases

    subsets = {name: read_cases(path) for name, path in files.items()}
    values = [x for cases in subsets.values() for case in cases for x in (*case.scores, case.response)]
    guess = "probability" if all(0 <= x <= 1 for x in values) else "score"
    return subsets, options.output or guess


def _score(options: Options, files: dict[str, pathlib.Path]) -> "tuple[dict[str, list[Case]], str]":
    from prm_jax.commands.score import load
    from prm_jax.prm.cases import case_of
    from prm_jax.prm.inputs import read_solutions
    from prm_jax.prm.score import score_solutions

    records = {name: read_solutions(path, format=options.format) for name, path in files.items()}
    prm = load(options.model, options.layout, options.reference, options.dtype, options.mesh)
    subsets = {}
    for name, found in records.items():
        scored = score_solutions(
            prm, found, max_tokens=options.max_tokens, aggregate=options.aggregate, cumulative=options.cumulative,
            skip_long=options.skip_long,
        )  # fmt: skip
        subsets[name] = [case_of(one) for one in scored]
    return subsets, prm.output
