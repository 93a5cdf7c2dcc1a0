"""Critiques: a language model judges the steps of solutions in words and ends with verdicts.

Names are imported on first use, so that the options can be read without jax.
"""

from typing import TYPE_CHECKING, Any

from prm_jax.lazy_names import lazy_attribute

if TYPE_CHECKING:
    from prm_jax.prm.critiques.formats import FORMATS, CritiqueFormat, find_format
    from prm_jax.prm.critiques.sampling import Critique, sample_critiques
    from prm_jax.prm.critiques.voting import Judges, critique_records, judge, outcome_weights, scores_of_votes

_HOME = {
    "Critique": "sampling",
    "CritiqueFormat": "formats",
    "FORMATS": "formats",
    "Judges": "voting",
    "critique_records": "voting",
    "find_format": "formats",
    "judge": "voting",
    "outcome_weights": "voting",
    "sample_critiques": "sampling",
    "scores_of_votes": "voting",
}

__all__ = [
    "FORMATS",
    "Critique",
    "CritiqueFormat",
    "Judges",
    "critique_records",
    "find_format",
    "judge",
    "outcome_weights",
    "sample_critiques",
    "scores_of_votes",
]


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
