"""Problems whose values are known exactly, to try and to test searches on: sums with carries, and formulas."""

from prm_jax.search.worlds.carry import (
    CarryProgress,
    CarryWorld,
    carry_expand,
    carry_next,
    carry_start,
    carry_values,
    carry_world,
)
from prm_jax.search.worlds.expressions import Grammar
from prm_jax.search.worlds.symbolic import Regression, RsrmOptions, formula_reward, regress

__all__ = [
    "CarryProgress",
    "CarryWorld",
    "Grammar",
    "Regression",
    "RsrmOptions",
    "carry_expand",
    "carry_next",
    "carry_start",
    "carry_values",
    "carry_world",
    "formula_reward",
    "regress",
]
