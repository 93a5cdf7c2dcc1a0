"""Search over reasoning steps: trees as arrays, beams, votes, first errors, and the labels that they give.

Names are imported on first use, so that importing this package costs nothing.
"""

from typing import TYPE_CHECKING, Any

from prm_jax.lazy_names import lazy_attribute

if TYPE_CHECKING:
    from prm_jax.search.backups import backup
    from prm_jax.search.beams import StepBeam, best_of_n, look_ahead_scores, step_beam, top_steps, vote
    from prm_jax.search.choosing import choose_candidate
    from prm_jax.search.evaluation import Expansion, Leaf
    from prm_jax.search.expansion import expand
    from prm_jax.search.growth import ask, grow
    from prm_jax.search.labels import StepPairs, step_pairs, sums_below, tree_labels
    from prm_jax.search.mcts import SearchHooks, search
    from prm_jax.search.method import Method, alphamath, med_s3, rest_mcts
    from prm_jax.search.omega import FirstError, Halvings, first_error_search, omega_select, omega_use
    from prm_jax.search.omega_prm import (
        JudgedRollout,
        LocatedError,
        OmegaLabels,
        PrefixRequest,
        PrefixState,
        omega_label,
    )
    from prm_jax.search.rerooting import reroot
    from prm_jax.search.scores import ChildValues, ScoreRule, alphazero, blueprint, child_scores, minmax, puct, ucb1
    from prm_jax.search.searchers import Searcher, make_searcher
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

_HOME = {
    "ChildValues": "scores",
    "Expansion": "evaluation",
    "FirstError": "omega",
    "Halvings": "omega",
    "JudgedRollout": "omega_prm",
    "Leaf": "evaluation",
    "LocatedError": "omega_prm",
    "Method": "method",
    "OmegaLabels": "omega_prm",
    "PrefixRequest": "omega_prm",
    "PrefixState": "omega_prm",
    "ScoreRule": "scores",
    "SearchHooks": "mcts",
    "Searcher": "searchers",
    "Selection": "selection",
    "StepBeam": "beams",
    "StepPairs": "labels",
    "Tree": "tree",
    "alphamath": "method",
    "alphazero": "scores",
    "ask": "growth",
    "backup": "backups",
    "best_of_n": "beams",
    "best_path": "tree",
    "blueprint": "scores",
    "check_tree": "tree",
    "child_scores": "scores",
    "children": "tree",
    "choose_candidate": "choosing",
    "close": "tree",
    "expand": "expansion",
    "first_error_search": "omega",
    "grow": "growth",
    "has_room": "tree",
    "init_tree": "tree",
    "look_ahead_scores": "beams",
    "make_searcher": "searchers",
    "minmax": "scores",
    "omega_label": "omega_prm",
    "omega_select": "omega",
    "omega_use": "omega",
    "paths_to": "tree",
    "puct": "scores",
    "q_values": "tree",
    "reroot": "rerooting",
    "med_s3": "method",
    "rest_mcts": "method",
    "search": "mcts",
    "select": "selection",
    "step_beam": "beams",
    "step_pairs": "labels",
    "sums_below": "labels",
    "top_steps": "beams",
    "tree_labels": "labels",
    "ucb1": "scores",
    "vote": "beams",
}

__all__ = [
    "ChildValues",
    "Expansion",
    "FirstError",
    "Halvings",
    "JudgedRollout",
    "Leaf",
    "LocatedError",
    "Method",
    "OmegaLabels",
    "PrefixRequest",
    "PrefixState",
    "ScoreRule",
    "SearchHooks",
    "Searcher",
    "Selection",
    "StepBeam",
    "StepPairs",
    "Tree",
    "alphamath",
    "alphazero",
    "ask",
    "backup",
    "best_of_n",
    "best_path",
    "blueprint",
    "check_tree",
    "child_scores",
    "children",
    "choose_candidate",
    "close",
    "expand",
    "first_error_search",
    "grow",
    "has_room",
    "init_tree",
    "look_ahead_scores",
    "make_searcher",
    "minmax",
    "omega_label",
    "omega_select",
    "omega_use",
    "paths_to",
    "puct",
    "q_values",
    "reroot",
    "med_s3",
    "rest_mcts",
    "search",
    "select",
    "step_beam",
    "step_pairs",
    "sums_below",
    "top_steps",
    "tree_labels",
    "ucb1",
    "vote",
]


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
