"""Online implicit process rewards (PRIME): the loop, its step, and every part of it that can be replaced.

Names are resolved on first use (PEP 562), so that importing this package imports neither jax nor matplotlib.
"""

from typing import TYPE_CHECKING, Any

from prm_jax.lazy_names import lazy_attribute

if TYPE_CHECKING:
    from prm_jax.prime.abstract import abstract_step
    from prm_jax.prime.batch import Batch, Frozen, RewardInputs, State
    from prm_jax.prime.collect import Collected, Collector
    from prm_jax.prime.options import Options
    from prm_jax.prime.plan import Plan, check_fits, make_plan
    from prm_jax.prime.plan_compile import CompiledStep, compile_step
    from prm_jax.prime.presets import PRESETS
    from prm_jax.prime.responses import Responses
    from prm_jax.prime.sampler import Sampler
    from prm_jax.prime.shaping import per_step
    from prm_jax.prime.sources import (
        CriticSource,
        ImplicitPRM,
        Judged,
        Observed,
        PolicyAsPRM,
        PrefixValues,
        RewardSource,
        SavedPRM,
        Source,
        SourceBatch,
        StepChecker,
    )
    from prm_jax.prime.step import Setup, init_state, make_source_step, make_step
    from prm_jax.prime.training import Result, train
    from prm_jax.runs.callbacks import Event

_HOMES = {
    "Batch": "batch",
    "Collected": "collect",
    "Collector": "collect",
    "CompiledStep": "plan_compile",
    "CriticSource": "sources",
    "Event": "prm_jax.runs.callbacks",
    "Frozen": "batch",
    "ImplicitPRM": "sources",
    "Judged": "sources",
    "Observed": "sources",
    "Options": "options",
    "PRESETS": "presets",
    "Plan": "plan",
    "PolicyAsPRM": "sources",
    "PrefixValues": "sources",
    "Responses": "responses",
    "Result": "training",
    "RewardInputs": "batch",
    "RewardSource": "sources",
    "Sampler": "sampler",
    "SavedPRM": "sources",
    "Setup": "step",
    "Source": "sources",
    "SourceBatch": "sources",
    "State": "batch",
    "StepChecker": "sources",
    "abstract_step": "abstract",
    "check_fits": "plan",
    "compile_step": "plan_compile",
    "init_state": "step",
    "make_plan": "plan",
    "make_source_step": "step",
    "make_step": "step",
    "per_step": "shaping",
    "train": "training",
}

__all__ = [
    "Batch",
    "Collected",
    "Collector",
    "CompiledStep",
    "CriticSource",
    "Event",
    "Frozen",
    "ImplicitPRM",
    "Judged",
    "Observed",
    "Options",
    "PRESETS",
    "Plan",
    "PolicyAsPRM",
    "PrefixValues",
    "Responses",
    "Result",
    "RewardInputs",
    "RewardSource",
    "Sampler",
    "SavedPRM",
    "Setup",
    "Source",
    "SourceBatch",
    "State",
    "StepChecker",
    "abstract_step",
    "check_fits",
    "compile_step",
    "init_state",
    "make_plan",
    "make_source_step",
    "make_step",
    "per_step",
    "train",
]


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
