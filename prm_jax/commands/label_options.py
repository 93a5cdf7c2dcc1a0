"""The options of ``prm-jax label``."""

import pathlib
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from prm_jax.commands.policy import PolicyOptions
from prm_jax.option_ranges import at_least
from prm_jax.prm.labelling.tree_options import TreeOptions

Count = Annotated[int, at_least(1)]


@dataclass(frozen=True, kw_only=True)
class Options(PolicyOptions):
    """Label the steps of solutions by where the policy gets from there.

    Writes a JSON line per solution: prompt, steps, labels (null where nothing is known), outcome, and provenance:
    policy, sampling, and the counts behind every label. A preference pair is two lines in a group of their own, whose
    last steps are labelled 1 and 0.
    """

    out: Annotated[pathlib.Path, tyro.conf.Positional]
    """JSON-lines file to write."""
    method: Literal["omega", "every_step", "adaptive", "tree", "mutate"] = "omega"
    """omega: binary search for the first errors of wrong rollouts (OmegaPRM); every_step: rollouts after every step of
    sampled solutions; adaptive: the same with more rollouts where they disagree; tree: Monte-Carlo tree search over
    steps; mutate: edits of correct programs, labelled by their tests (PRLCoder), with "none" as the policy."""
    labels: Literal["soft", "hard", "vstar", "q", "quality", "best_worst", "first_error", "top_bottom"] = "hard"
    """soft: the share of correct rollouts, or of correct answers below the step; hard: whether any was correct; vstar:
    hard, and correct before a correct step (not for trees). For trees: q, the search's own values (AlphaMath), as
    probabilities; quality (ReST-MCTS*); and preference pairs: best_worst (step-level Q), first_error (Step-DPO),
    top_bottom (rStar-Math)."""
    rollouts: Count = 8
    """Rollouts from each prefix (adaptive: on average)."""
    searches: Count = 16
    """Maximum number of searches per problem (omega)."""
    solutions: Count = 4
    """Solutions per problem (every_step, adaptive)."""
    pilot: Count = 4
    """Rollouts from each prefix that decide where the others go (adaptive)."""
    mutations: Count = 8
    """Edits per problem that are meant to break the program (mutate)."""
    refactors: Annotated[int, at_least(0)] = 2
    """Edits per problem that are meant to keep its meaning (mutate)."""
    tree: TreeOptions = field(default_factory=TreeOptions)
    """The search (tree)."""
    resume: bool = False
    """Continue after an interruption, from the file next to --out that ends in .partial; the labels are those of an
    uninterrupted run."""
