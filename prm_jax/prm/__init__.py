"""Process reward models: trained on step labels, outcomes or preferences, saved, loaded, used and judged.

Names are resolved on first use (PEP 562), so that the options can be imported without jax.
"""

from typing import TYPE_CHECKING, Any

from prm_jax.lazy_names import lazy_attribute

if TYPE_CHECKING:
    from prm_jax.prm.cases import Case, case_of, read_cases
    from prm_jax.prm.feature_model import FeatureModel, fit_features
    from prm_jax.prm.inputs import read_solutions
    from prm_jax.prm.judge import judge_scores, process_bench
    from prm_jax.prm.judge_page import results_page
    from prm_jax.prm.kinds import (
        GPM,
        KINDS,
        Armo,
        BCoder,
        BradleyTerry,
        DigiQ,
        EarlyExit,
        Generative,
        Imitation,
        Implicit,
        Outcome,
        StepQ,
        Token,
        Value,
    )
    from prm_jax.prm.model import load, save, save_implicit
    from prm_jax.prm.page import scores_page
    from prm_jax.prm.reward_model_options import POLICY_LAYOUT, BaseOptions, DataOptions, OptimizerOptions, TextLayout
    from prm_jax.prm.rewards import (
        check_gives_step_scores,
        ensemble_token_rewards,
        step_scores,
        token_rewards,
    )
    from prm_jax.prm.score import PRM, Scored, score_solutions
    from prm_jax.prm.spec import Kind, Spec, Weights
    from prm_jax.prm.train_options import TrainPRMOptions
    from prm_jax.prm.training import train

_HOMES = {
    "cases": ("Case", "case_of", "read_cases"),
    "feature_model": ("FeatureModel", "fit_features"),
    "inputs": ("read_solutions",),
    "judge": ("judge_scores", "process_bench"),
    "judge_page": ("results_page",),
    "kinds": (
        "KINDS", "Armo", "BCoder", "BradleyTerry", "DigiQ", "EarlyExit", "GPM", "Generative", "Imitation", "Implicit",
        "Outcome", "StepQ", "Token", "Value",
    ),
    "model": ("load", "save", "save_implicit"),
    "reward_model_options": ("POLICY_LAYOUT", "BaseOptions", "DataOptions", "OptimizerOptions", "TextLayout"),
    "page": ("scores_page",),
    "rewards": ("check_gives_step_scores", "ensemble_token_rewards", "step_scores", "token_rewards"),
    "score": ("PRM", "Scored", "score_solutions"),
    "spec": ("Kind", "Spec", "Weights"),
    "train_options": ("TrainPRMOptions",),
    "training": ("train",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Armo",
    "BCoder",
    "BaseOptions",
    "BradleyTerry",
    "Case",
    "DataOptions",
    "DigiQ",
    "EarlyExit",
    "FeatureModel",
    "GPM",
    "Generative",
    "Imitation",
    "Implicit",
    "KINDS",
    "Kind",
    "OptimizerOptions",
    "Outcome",
    "POLICY_LAYOUT",
    "PRM",
    "Scored",
    "Spec",
    "StepQ",
    "TextLayout",
    "Token",
    "TrainPRMOptions",
    "Value",
    "Weights",
    "case_of",
    "check_gives_step_scores",
    "ensemble_token_rewards",
    "fit_features",
    "judge_scores",
    "load",
    "process_bench",
    "read_cases",
    "read_solutions",
    "results_page",
    "save",
    "save_implicit",
    "score_solutions",
    "scores_page",
    "step_scores",
    "token_rewards",
    "train",
]


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _HOME_OF, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
