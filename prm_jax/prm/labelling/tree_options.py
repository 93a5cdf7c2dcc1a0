"""Options of the search trees that label. Importing this module imports nothing heavy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from prm_jax.option_ranges import at_least
from prm_jax.prm.reward_model_options import LayoutName

TREE_LABELS = ("soft", "hard", "q", "quality")
PAIRS = ("best_worst", "first_error", "top_bottom")
Count = Annotated[int, at_least(1)]
StepValues = Callable[[Any, Sequence[Any]], list[float]]
"""(policy, prefixes) -> probability of success after each prefix."""


@dataclass(frozen=True)
class TreeOptions:
    """The search of --method tree."""

    rule: Literal["alphamath", "rest_mcts", "med_s3"] = "alphamath"
    """alphamath: PUCT, mean of the returns, answers worth 1 or -1; rest_mcts: UCB1, values of the children weighted by
    visits, answers worth 1 or 0; med_s3: UCB1, the mean of a node's value and its children's, answers worth 1 or 0."""
    scorer: str = "none"
    """Value of a step before an answer is found below it: none (the middle of the range, as in AlphaMath's first
    round), rollouts (the share of correct ones), or the path of a process reward model that gives probabilities or
    values."""
    layout: LayoutName = "auto"
    """Family of a public reward model whose config does not name it."""
    simulations: Count = 16
    """Simulations per problem."""
    width: Count = 4
    """Steps proposed at each leaf."""
    max_steps: Count = 16
    """Depth of the tree."""
    margin: Annotated[float | None, at_least(0)] = None
    """Minimum difference between the values of a pair, on the scale of the answers' values; none: as published, 0.5 for
    top_bottom and 0 otherwise."""
    look_back: Annotated[float, at_least(0)] = 0.0
    """Lower the labels q of steps that fall below the step before them by this share of the loss (MedS3)."""
    min_edits: Annotated[int, at_least(0)] = 0
    """Leave out pairs whose steps differ in fewer characters (edit distance); 20 in rStar-Math."""

    @property
    def uses_model(self) -> bool:
        """Whether the scorer is the path of a reward model."""
        return self.scorer not in ("none", "rollouts")
