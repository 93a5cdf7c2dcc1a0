"""What ``prm-jax search`` scores prefixes with, made from its options, and checks of options that belong together."""

from typing import TYPE_CHECKING, Any

from prm_jax.commands.scoring import load
from prm_jax.commands.search_options import Options

if TYPE_CHECKING:
    from prm_jax.search.searchers import Searcher

PROGRESS_METHODS = ("beam", "dvts", "step_beam")
"""The searches that --progress-alpha is for."""


def progress_problem(options: Options) -> str | None:
    """What is wrong with the options of progress, if anything."""
    if options.progress_alpha is None:
        if options.prover or options.progress_best_of > 1:
            name = "prover" if options.prover else "progress-best-of"
            return f"--{name} needs --progress-alpha, the weight of the progress"
        return None
    if options.method not in PROGRESS_METHODS:
        return (
            f"--progress-alpha ranks the steps of {', '.join(PROGRESS_METHODS)}; --method {options.method} does not "
            "compare steps, or needs values between 0 and 1"
        )
    return None


def selection_problem(options: Options) -> str | None:
    """What is wrong with the options of trusted answers and of chances, if anything."""
    if options.venn_abers and options.calibration is None:
        return "--venn-abers needs --calibration: results of the same search on other problems"
    if (options.false_discovery is None) != (options.calibration is None) and not options.venn_abers:
        return (
            "--false-discovery and --calibration need each other: the share of wrong answers to accept, and results of "
            "the same search on other problems"
        )
    if options.trusted is not None and options.false_discovery is None:
        return "--trusted needs --false-discovery: the share of wrong answers to accept"
    return None


def make_scorers(options: Options, searcher: "Searcher", policy: Any) -> tuple[Any, Any]:
    """(the scorer, the second scorer or None)."""
    from prm_jax.prm.prefix_scores import make_prefix_scorer
    from prm_jax.prm.progress_scores import with_progress

    requests, prefixes = searcher.budget()

    def make(name: str, first: int) -> Any:
        return make_prefix_scorer(
            name, policy, rollouts=options.rollouts, first=first,
            load=lambda path: load(path, options.layout, options.reference, options.dtype, options.mesh),
        )  # fmt: skip

    scorer, second = make(options.scorer, requests), searcher.final_scorer or options.prover
    other = make(second, requests + prefixes) if second else None
    if options.progress_alpha is None:
        return scorer, other
    return with_progress(
        scorer, policy, alpha=options.progress_alpha, prover=other, best_of=options.progress_best_of
    ), None  # fmt: skip
