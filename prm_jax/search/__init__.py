"""Search over reasoning steps: trees as arrays, beams, votes, first errors, and the labels that they give."""

from prm_jax.search.backups import backup
from prm_jax.search.beams import StepBeam, best_of_n, look_ahead_scores, step_beam, top_steps, vote
from prm_jax.search.carry_world import (
    CarryWorld,
    Progress,
    carry_expand,
    carry_next,
    carry_start,
    carry_values,
    carry_world,
)
from prm_jax.search.expansion import expand
from prm_jax.search.expressions import Grammar
from prm_jax.search.labels import StepPairs, step_pairs, sums_below, tree_labels
from prm_jax.search.mcts import Expansion, Leaf, Method, ask, grow, search
from prm_jax.search.omega import FirstError, Halvings, first_error_search, omega_select, omega_use
from prm_jax.search.omega_label import JudgedRollout, LocatedError, OmegaLabels, PrefixRequest, PrefixState, omega_label
from prm_jax.search.rerooting import reroot
from prm_jax.search.scores import ChildValues, ScoreRule, alphazero, blueprint, child_scores, minmax, puct, ucb1
from prm_jax.search.selection import Selection, select
from prm_jax.search.symbolic import Regression, RsrmOptions, formula_reward, regress
from prm_jax.search.tree import (
    Tree,
    best_path,
    check_tree,
    children,
    close,
    has_room,
    init_tree,
    paths_to,
    q_values,
)

__all__ = [
    "alphazero",
    "ask",
    "backup",
    "best_of_n",
    "best_path",
    "blueprint",
    "carry_expand",
    "carry_next",
    "carry_start",
    "carry_values",
    "carry_world",
    "CarryWorld",
    "check_tree",
    "child_scores",
    "children",
    "ChildValues",
    "close",
    "expand",
    "Expansion",
    "first_error_search",
    "FirstError",
    "formula_reward",
    "Grammar",
    "grow",
    "Halvings",
    "has_room",
    "init_tree",
    "Leaf",
    "LocatedError",
    "look_ahead_scores",
    "Method",
    "minmax",
    "omega_label",
    "omega_select",
    "omega_use",
    "OmegaLabels",
    "paths_to",
    "Progress",
    "puct",
    "q_values",
    "regress",
    "Regression",
    "PrefixRequest",
    "reroot",
    "JudgedRollout",
    "RsrmOptions",
    "ScoreRule",
    "search",
    "select",
    "Selection",
    "PrefixState",
    "step_beam",
    "step_pairs",
    "StepBeam",
    "StepPairs",
    "sums_below",
    "top_steps",
    "Tree",
    "tree_labels",
    "ucb1",
    "vote",
]
