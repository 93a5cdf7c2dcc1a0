"""The constants of a tree search, and those of published searches."""

import dataclasses
from typing import Any, Literal

from prm_jax.search.backups import Rule, check_rule
from prm_jax.search.scores import ChildValues, ScoreFn, ScoreRule, puct, ucb1

Returned = Literal["leaf", "children"]


@dataclasses.dataclass(frozen=True)
class Method:
    """A search method: its constants, hashable, static under jit.

    Attributes:
      score_fn: score of the children, see `scores`.
      width: C, the maximum number of children of a node.
      max_depth: children at this depth are terminal.
      rule: backup rule, see `backup`.
      returns: what an expansion backs up. "leaf": the value of the leaf and that of each terminal child (AlphaMath).
        "children": the value of every child, which thereby counts as visited.
      discount: of the backup, in [-1, 1]. With -1 the two players of a zero-sum game alternate: the value of a node is
        that of the player to move, and the score rule needs the same discount (``puct(discount=-1.0)``).
      rate: of the rule "child_mean", in [0, 1].
      leaves: K, leaves to select per question and simulation; None is one, without the axis.
      virtual_loss: see `select`.
      depth_value: value of children that are terminal only because of `max_depth`; None keeps the evaluator's.
        AlphaMath uses -1.
      revisit: terminal nodes are selected again and their values backed up again, as games need it. False closes them:
        a solution that is known teaches nothing new.

    Raises:
      ValueError: a constant is out of range, or a negative discount is missing in the score rule.
    """

    score_fn: ScoreFn
    width: int
    max_depth: int
    rule: Rule = "mean"
    returns: Returned = "leaf"
    discount: float = 1.0
    rate: float = 1.0
    leaves: int | None = None
    virtual_loss: float = 1.0
    depth_value: float | None = None
    revisit: bool = False

    def __post_init__(self) -> None:
        """Checks the constants."""
        if self.returns not in ("leaf", "children"):
            raise ValueError(f"returns={self.returns!r}; expected 'leaf' or 'children'")
        check_rule(self.rule)
        if not -1.0 <= self.discount <= 1.0:
            raise ValueError(f"discount={self.discount}; expected a number from -1 to 1")
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"rate={self.rate}; expected a number from 0 to 1")
        if not self.virtual_loss >= 0:
            raise ValueError(f"virtual_loss={self.virtual_loss}; expected a number of at least 0")
        if self.width < 1 or self.max_depth < 1 or (self.leaves is not None and self.leaves < 1):
            raise ValueError(
                f"width, max_depth and leaves must be at least 1, got {self.width}, {self.max_depth}, {self.leaves}"
            )
        self._check_players()

    def _check_players(self) -> None:
        values: Any = self.score_fn if isinstance(self.score_fn, ScoreRule) else None
        while hasattr(values, "values"):  # of a rule, and of values that are normalised
            values = values.values
        if self.discount < 0 and isinstance(values, ChildValues) and not (values.discount or 0.0) < 0:
            raise ValueError(
                f"discount={self.discount}, but the score rule has discount={values.discount}: it would choose what is "
                "best for the opponent; give the rule the same discount"
            )


def alphamath(
    width: int, max_depth: int, *, c: float = 1.25, depth_value: float | None = None
) -> Method:
    """AlphaMath's search: PUCT and the mean of the returns.

    Args:
      width: see `Method`.
      max_depth: see `Method`.
      c: weight of the exploration; 1.5 in the training rounds, 1.25 at inference.
      depth_value: see `Method`.

    Source: arXiv 2405.03553.
    """
    return Method(puct(c), width, max_depth, depth_value=depth_value)


def rest_mcts(
    width: int, max_depth: int, *, c: float = 0.7, depth_value: float | None = None
) -> Method:
    """ReST-MCTS*'s search: UCB1 and the mean of the children's values, weighted by visits.

    Args:
      width: see `Method`.
      max_depth: see `Method`.
      c: weight of the exploration.
      depth_value: see `Method`.

    Source: arXiv 2406.03816.
    """
    rule = ucb1(c, unvisited=1.0, initial="value")
    return Method(rule, width, max_depth, rule="child_mean", depth_value=depth_value)


def med_s3(
    width: int, max_depth: int, *, c: float = 2.0, depth_value: float | None = None
) -> Method:
    """MedS3's search: UCB1 without the factor 2, and the mean of a node's value and that of its children.

    Args:
      width: see `Method`.
      max_depth: see `Method`.
      c: weight of the exploration.
      depth_value: see `Method`.

    Source: arXiv 2501.12051 and its released code.
    """
    rule = ucb1(c, two=1.0, unvisited=5.0)
    return Method(rule, width, max_depth, rule="child_mean", rate=0.5, depth_value=depth_value)
