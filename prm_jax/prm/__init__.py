"""Process reward models: trained on step labels, outcomes or preferences, saved, loaded, used and judged.

Names are resolved on first use (PEP 562), so that the options can be imported without jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prm_jax.prm.cases import Case, case_of, read_cases
    from prm_jax.prm.inputs import read_solutions
    from prm_jax.prm.judge import judge_scores, process_bench
    from prm_jax.prm.judge_page import results_page
    from prm_jax.prm.model import PRM, load_prm, save_prm
    from prm_jax.prm.options import (
        BaseOptions,
        DataOptions,
        KindOptions,
        OptimizerOptions,
        TextLayout,
        TrainPRMOptions,
    )
    from prm_jax.prm.page import scores_page
    from prm_jax.prm.score import Scored, score_solutions
    from prm_jax.prm.train import train_prm

_HOMES = {
    "BaseOptions": "options",
    "Case": "cases",
    "DataOptions": "options",
    "KindOptions": "options",
    "OptimizerOptions": "options",
    "PRM": "model",
    "Scored": "score",
    "TextLayout": "options",
    "TrainPRMOptions": "options",
    "case_of": "cases",
    "judge_scores": "judge",
    "load_prm": "model",
    "process_bench": "judge",
    "read_cases": "cases",
    "read_solutions": "inputs",
    "results_page": "judge_page",
    "save_prm": "model",
    "score_solutions": "score",
    "scores_page": "page",
    "train_prm": "loop",
}

__all__ = [
    "BaseOptions",
    "Case",
    "DataOptions",
    "KindOptions",
    "OptimizerOptions",
    "PRM",
    "Scored",
    "TextLayout",
    "TrainPRMOptions",
    "case_of",
    "judge_scores",
    "load_prm",
    "process_bench",
    "read_cases",
    "read_solutions",
    "results_page",
    "save_prm",
    "score_solutions",
    "scores_page",
    "train_prm",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
