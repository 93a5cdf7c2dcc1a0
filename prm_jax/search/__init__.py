"""Search over reasoning steps: trees as arrays, beams, votes, first errors, and the labels that they give."""

from prm_jax.search.backups import backup
from prm_jax.search.expansion import expand
from prm_jax.search.mcts import Expansion, Leaf, Method, ask, grow, search
from prm_jax.search.reroot import reroot
from prm_jax.search.scores import ChildValues, ScoreRule, alphazero, blueprint, child_scores, minmax, puct, ucb1
from prm_jax.search.selection import Selection, select
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
    "best_path",
    "blueprint",
    "check_tree",
    "child_scores",
    "children",
    "ChildValues",
    "close",
    "expand",
    "Expansion",
    "grow",
    "has_room",
    "init_tree",
    "Leaf",
    "Method",
    "minmax",
    "paths_to",
    "puct",
    "q_values",
    "reroot",
    "ScoreRule",
    "search",
    "select",
    "Selection",
    "Tree",
    "ucb1",
]
