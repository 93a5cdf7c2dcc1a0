"""Scores by which selection chooses a child: the rules of published searches.

A rule is a callable `(tree, node [B], kids [B, C]) -> [B, C]`. Those made here are a child's value plus an exploration
term, frozen dataclasses that compare by their constants, so that searches with equal constants share one compiled
program. Which children may be entered is decided by `child_scores`, not by the rules.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.search.tree import Tree, at, children

ScoreFn = Callable[[Tree, jax.Array, jax.Array], jax.Array]
"""(tree, node [B] i32, kids [B, C] i32) -> [B, C] float, finite or +inf."""

Unvisited = float | Literal["value"]
"""Value of a child without visits: a number, or "value" for the evaluator's value of it."""


def child_scores(tree: Tree, node: ArrayLike, score_fn: ScoreFn, *, width: int) -> tuple[jax.Array, jax.Array]:
    """Scores of a node's children, -inf for slots without a child and for closed children.

    Args:
      tree: the trees.
      node: [B] i32, -1 for none.
      score_fn: a rule.
      width: static C, the maximum number of children of a node.

    Returns:
      (scores [B, C] f32, kids [B, C] i32).

    Raises:
      ValueError: when the rule returns another shape.
    """
    node = jnp.asarray(node, jnp.int32)
    kids, is_child = children(tree, node, width)
    scores = jnp.asarray(score_fn(tree, node, kids), jnp.float32)
    if scores.shape != kids.shape:
        raise ValueError(f"the score rule returned shape {scores.shape}; expected {kids.shape}, one score per child")
    return jnp.where(is_child & ~at(tree.closed, kids), scores, -jnp.inf), kids


@dataclasses.dataclass(frozen=True)
class ChildValues:
    """Q of the children: W / N.

    Attributes:
      unvisited: used before the first visit.
      discount: None when steps have no rewards and one player makes all of them; a number makes it
        `reward + discount * W / N`, also of "value". -1 for two players who alternate.
    """

    unvisited: Unvisited = 0.0
    discount: float | None = None

    def __call__(self, tree: Tree, node: jax.Array, kids: jax.Array) -> jax.Array:
        """[B, C] values."""
        visits = at(tree.visits, kids)
        q = at(tree.value_sum, kids) / jnp.maximum(visits, 1e-30)
        if self.discount is not None:
            q = at(tree.reward, kids) + self.discount * q
        if self.unvisited != "value":
            return jnp.where(visits > 0, q, jnp.float32(self.unvisited))
        value = at(tree.value, kids)
        if self.discount is not None:
            value = at(tree.reward, kids) + self.discount * value
        return jnp.where(visits > 0, q, value)


@dataclasses.dataclass(frozen=True)
class ScoreRule:
    """A child's value plus an exploration term.

    Attributes:
      values: (tree, node, kids) -> [B, C], Q of the children.
    """

    values: ScoreFn

    def __call__(self, tree: Tree, node: jax.Array, kids: jax.Array) -> jax.Array:
        """[B, C] scores."""
        return self.values(tree, node, kids) + self.exploration(tree, node, kids)

    def exploration(self, tree: Tree, node: jax.Array, kids: jax.Array) -> jax.Array:
        """[B, C], what is added to the values."""
        raise NotImplementedError


def puct(c: float = 1.25, *, unvisited: Unvisited = 0.0, discount: float | None = None) -> ScoreRule:
    """AlphaMath's rule: `Q + c * P * sqrt(N_parent) / (1 + N)`.

    Args:
      c: 1.5 in AlphaMath's training rounds, 1.25 at inference.
      unvisited: Q of a child without visits.
      discount: None when steps have no rewards, see `ChildValues`.

    Returns:
      A rule.

    Source: arXiv 2405.03553.
    """
    return _Puct(ChildValues(unvisited, discount), c)


def alphazero(
    c1: float = 1.25, c2: float = 19652.0, *, unvisited: Unvisited = 0.0, discount: float | None = None
) -> ScoreRule:
    """AlphaZero's rule: `Q + (c1 + ln((N_parent + c2 + 1) / c2)) * P * sqrt(N_parent) / (1 + N)`.

    Args:
      c1: initial weight of the exploration.
      c2: number of visits after which it grows.
      unvisited: Q of a child without visits; "value" as in openr.
      discount: None when steps have no rewards, see `ChildValues`.

    Returns:
      A rule.
    """
    return _AlphaZero(ChildValues(unvisited, discount), c1, c2)


def ucb1(
    c: float = 1.0,
    *,
    two: float = 2.0,
    unvisited: float | Literal["inf", "first"] = "inf",
    initial: Unvisited = 0.0,
    discount: float | None = None,
) -> ScoreRule:
    """The UCB1 rule: `Q + c * sqrt(two * ln N_parent / N)`.

    ReST-MCTS*: `ucb1(0.7, unvisited=1.0, initial="value")`. rStar and MedS3: `ucb1(2.0, two=1.0)`. rStar-Math:
    `ucb1(2.0, two=1.0, unvisited=0.0)`.

    Args:
      c: weight of the exploration.
      two: the factor under the root, 2 or 1.
      unvisited: what is added to Q of a child without visits; "inf", or "first", visits every child once before any
        twice.
      initial: Q of a child without visits.
      discount: None when steps have no rewards, see `ChildValues`.

    Returns:
      A rule.

    Source: arXiv 2406.03816, 2408.06195, 2501.04519, 2501.12051.
    """
    if isinstance(unvisited, str):
        if unvisited not in ("inf", "first"):
            raise ValueError(f"unvisited={unvisited!r}; expected 'inf', 'first' or a number")
        unvisited = math.inf
    return _Ucb1(ChildValues(initial, discount), c, two, float(unvisited))


def blueprint(c1: float = 1.25, c2: float = 19652.0, *, discount: float | None = None) -> ScoreRule:
    """The rule of x1: `Q + (c1 + ln((N_parent + c2) / c2)) * sqrt(N_parent - 1) / (1 + N)`, no prior.

    It was published with values normalised over siblings: `minmax(blueprint())`.

    Args:
      c1: see `alphazero`.
      c2: see `alphazero`.
      discount: None when steps have no rewards, see `ChildValues`.

    Returns:
      A rule.

    Source: arXiv 2501.11223 and its released code.
    """
    return _Blueprint(ChildValues(0.0, discount), c1, c2)


def minmax(rule: ScoreRule, *, over: Literal["siblings", "parent"] = "siblings", eps: float = 1e-8) -> ScoreRule:
    """A rule whose values are first mapped to [0, 1] by their minimum and maximum.

    Args:
      rule: one of those above.
      over: "siblings" takes the extremes over the children; "parent", like MuZero's released code, over the node's own
        value and its visited children, with 0 for children without visits.
      eps: the smallest range that is stretched; children within a smaller one score about 0.

    Returns:
      A rule.

    Source: arXiv 1911.08265 (appendix B).
    """
    if over not in ("siblings", "parent"):
        raise ValueError(f"over={over!r}; expected 'siblings' or 'parent'")
    return dataclasses.replace(rule, values=_MinMax(rule.values, over == "parent", eps))


@dataclasses.dataclass(frozen=True)
class _Puct(ScoreRule):
    c: float

    def exploration(self, tree: Tree, node: jax.Array, kids: jax.Array) -> jax.Array:
        scale = self.c * jnp.sqrt(at(tree.visits, node))[:, None]
        return scale * at(tree.prior, kids) / (1.0 + at(tree.visits, kids))


@dataclasses.dataclass(frozen=True)
class _AlphaZero(ScoreRule):
    c1: float
    c2: float

    def exploration(self, tree: Tree, node: jax.Array, kids: jax.Array) -> jax.Array:
        visits = at(tree.visits, node)
        scale = (self.c1 + jnp.log((visits + self.c2 + 1.0) / self.c2)) * jnp.sqrt(visits)
        return scale[:, None] * at(tree.prior, kids) / (1.0 + at(tree.visits, kids))


@dataclasses.dataclass(frozen=True)
class _Ucb1(ScoreRule):
    c: float
    two: float
    unvisited: float

    def exploration(self, tree: Tree, node: jax.Array, kids: jax.Array) -> jax.Array:
        visits = at(tree.visits, kids)
        # The guards come before the logarithm and the division, so that no NaN is ever formed.
        log_parent = jnp.log(jnp.maximum(at(tree.visits, node), 1.0))[:, None]
        bonus = self.c * jnp.sqrt(self.two * log_parent / jnp.maximum(visits, 1.0))
        return jnp.where(visits > 0, bonus, self.unvisited)


@dataclasses.dataclass(frozen=True)
class _Blueprint(ScoreRule):
    c1: float
    c2: float

    def exploration(self, tree: Tree, node: jax.Array, kids: jax.Array) -> jax.Array:
        others = jnp.maximum(at(tree.visits, node) - 1.0, 0.0)
        scale = (self.c1 + jnp.log((others + self.c2 + 1.0) / self.c2)) * jnp.sqrt(others)
        return scale[:, None] / (1.0 + at(tree.visits, kids))


@dataclasses.dataclass(frozen=True)
class _MinMax:
    values: ScoreFn
    parent: bool
    eps: float

    def __call__(self, tree: Tree, node: jax.Array, kids: jax.Array) -> jax.Array:
        _, is_child = children(tree, node, kids.shape[1])
        q = self.values(tree, node, kids)
        if self.parent:
            visits = at(tree.visits, node)
            own = jnp.where(
                visits > 0, at(tree.value_sum, node) / jnp.maximum(visits, 1e-30), at(tree.value, node)
            )[:, None]
            visited = at(tree.visits, kids) > 0
            q = jnp.where(visited, q, own)
        low = jnp.min(jnp.where(is_child, q, jnp.inf), 1, keepdims=True)
        high = jnp.max(jnp.where(is_child, q, -jnp.inf), 1, keepdims=True)
        if self.parent:
            low, high = jnp.minimum(low, own), jnp.maximum(high, own)
            q = jnp.where(visited, q, low)
        return jnp.where(is_child, (q - low) / jnp.maximum(high - low, self.eps), 0.0)
