"""The options of ``prm-jax eval``."""

import pathlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from prm_jax.option_ranges import at_least, within
from prm_jax.prm.reward_model_options import ScoringOptions
from prm_jax.runs.distributed_options import DistributedOptions


@dataclass(frozen=True)
class Options:
    """Judge a process reward model on labelled solutions.

    Each file is a subset, named after the file, or NAME=FILE. Finds the first wrong step by ProcessBench's protocol
    (with random and always-right guessing for comparison), picks the best of n by every aggregation and by votes, ranks
    one right solution against the wrong ones, and measures calibration, as far as the data allows. Writes results.json,
    results.html and scores/NAME.jsonl into --out. An interrupted call continues where it stopped.
    """

    data: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Step data to score, or with --scored the scores that prm-jax score or eval wrote."""
    model: str = ""
    """Directory of the model; not with --scored."""
    scored: bool = False
    """The files hold scores already."""
    output: Literal["probability", "value", "log_ratio", "score"] | None = None
    """What the scores of --scored files are; none: chances where all are in [0, 1], otherwise plain scores."""
    out: pathlib.Path = pathlib.Path("eval")
    """Directory for the results."""
    threshold_on: str = ""
    """Subset that chooses the threshold for the first wrong step; empty: gsm8k, or else the first."""
    false_discovery: Annotated[float | None, within(0, 1, low_open=True, high_open=True)] = None
    """Also select solutions of which at most this share is wrong, in expectation."""
    also: tuple[str, ...] = ()
    """Scores of the same solutions by other models, NAME=FILE as prm-jax score writes them, between which and the
    aggregations of this model the selection may choose (--false-discovery)."""
    mask: tuple[str, ...] = ()
    """Also judge the scores without a part of the input: language, mathematics, problem, earlier (all steps before the
    one that is scored), or regex:PATTERN; with --model."""
    venn_abers: bool = False
    """Also calibrate by Venn-ABERS intervals (on at most 400 entries)."""
    resamples: Annotated[int, at_least(0)] = 1000
    """Number of bootstrap resamples for intervals, at least 100; 0: no intervals."""
    seed: Annotated[int, at_least(0)] = 0
    """Seed of resampling."""
    distributed: DistributedOptions = field(default_factory=DistributedOptions)
    """Several processes that work together."""
    scoring: Annotated[ScoringOptions, tyro.conf.arg(name="")] = field(default_factory=ScoringOptions)
