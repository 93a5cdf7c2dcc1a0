"""Training data from finished trees: labels and values of steps, and preferred and rejected steps."""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax import rl
from prm_jax.search.tree import NO_NODE, Tree, at, best_path, put, q_values

Labels = Literal["q", "soft", "hard", "quality"]
Pairing = Literal["best_worst", "first_error", "top_bottom"]


class StepPairs(NamedTuple):
    """Preferred and rejected children of the same node.

    Attributes:
      chosen: [B, N, K] i32, slots of preferred children of each node; -1 where there is no pair.
      rejected: [B, N, K] i32, slots of the rejected ones.
      margin: [B, N, K] f32, difference of their values, 0 where there is no pair.
    """

    chosen: jax.Array
    rejected: jax.Array
    margin: jax.Array


def tree_labels(
    tree: Tree, correct: ArrayLike | None = None, *, how: Labels = "q", answers: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """A label for the step that leads to each node. Nodes below which no answer was reached have none.

    "q": the node's value under the search's backup rule (AlphaMath). "soft": the share of correct ones among the
    answers below the node; "hard": 1 if any is correct. "quality": ReST-MCTS*'s value, from the distance to the nearest
    correct answer; a question without a correct answer gives no labels.

    Args:
      tree: the trees.
      correct: [B, N] bool, True on nodes with a correct answer; needed for all but "q".
      how: see above.
      answers: [B, N] bool, nodes with an answer, correct or wrong; None for all terminal nodes. Leave out those that
        ended for another reason (too deep, too long, unverifiable).

    Returns:
      (labels [B, N] f32, mask [B, N] bool): labels are 0 outside the mask; the root has none. No gradient.

    Raises:
      ValueError: for another `how`, or without `correct`.

    Source: arXiv 2405.03553 ("q"); arXiv 2501.12051 ("soft"); arXiv 2406.03816 ("quality").
    """
    if how not in ("q", "soft", "hard", "quality"):
        raise ValueError(f"how={how!r}; expected one of 'q', 'soft', 'hard', 'quality'")
    if how != "q" and correct is None:
        raise ValueError(f"how={how!r} needs `correct`, which nodes hold a correct answer")
    ended = _answers(tree, answers)
    total = sums_below(tree, ended)
    mask = tree.valid & (total > 0) & (jnp.arange(tree.capacity) > 0)
    if how == "q":
        mask &= tree.visits > 0
        return jnp.where(mask, jax.lax.stop_gradient(q_values(tree)), 0.0), mask
    right = ended & _marks(tree, correct)
    if how == "quality":
        values, found = _quality(tree, right, total > 0)
        mask &= found
        return jnp.where(mask, values, 0.0), mask
    good = sums_below(tree, right)
    found = good / jnp.maximum(total, 1.0) if how == "soft" else (good > 0).astype(jnp.float32)
    return jnp.where(mask, found, 0.0), mask


def step_pairs(
    tree: Tree,
    correct: ArrayLike | None = None,
    *,
    width: int,
    rule: Pairing,
    margin: float = 0.0,
    answers: ArrayLike | None = None,
) -> StepPairs:
    """Pairs of siblings, one of which is preferred over the other.

    * "best_worst": along the best path by value, its child against the sibling of lowest value (step-level Q).
    * "first_error": the best child that leads to a correct answer against the worst that leads to wrong answers only
      (Step-DPO).
    * "top_bottom": the two best children that lead to a correct answer against the two worst that lead to a wrong one
      (rStar-Math, with margin 0.5; it also requires texts that differ enough, which is left to the caller).

    Args:
      tree: the trees.
      correct: [B, N] bool, True on nodes with a correct answer; not needed for "best_worst".
      width: static, the maximum number of children of a node.
      rule: see above.
      margin: minimum difference of values; a pair also needs a difference above 0, except for "first_error", where
        the answers decide: with a margin of 0 the preferred child may even have the lower value.
      answers: [B, N] bool, see `tree_labels`.

    Returns:
      `StepPairs` with K = 1, or 4 for "top_bottom".

    Raises:
      ValueError: for another rule, or without `correct`.

    Source: arXiv 2409.09345; arXiv 2406.18629; arXiv 2501.04519.
    """
    if rule not in ("best_worst", "first_error", "top_bottom"):
        raise ValueError(f"rule={rule!r}; expected one of 'best_worst', 'first_error', 'top_bottom'")
    if rule != "best_worst" and correct is None:
        raise ValueError(f"rule={rule!r} needs `correct`, which nodes hold a correct answer")
    good, bad = _eligible(tree, correct, rule, answers)
    count = 2 if rule == "top_bottom" else 1
    kids, is_child = _all_children(tree, width)
    q = q_values(tree)

    def ranked(eligible: jax.Array, sign: float) -> jax.Array:
        score = jnp.where(is_child & at(eligible, kids), sign * at(q, kids), -jnp.inf)
        order = jnp.argsort(score, axis=-1, descending=True, stable=True)[..., :count]
        exists = jnp.take_along_axis(score, order, axis=-1) > -jnp.inf
        return jnp.where(exists, jnp.take_along_axis(kids, order, axis=-1), NO_NODE)

    best, worst = ranked(good, 1.0), ranked(bad, -1.0)
    pairs = (*tree.parent.shape, best.shape[-1] * worst.shape[-1])
    chosen = jnp.broadcast_to(best[..., :, None], (*best.shape, worst.shape[-1])).reshape(pairs)
    rejected = jnp.broadcast_to(worst[..., None, :], (*best.shape, worst.shape[-1])).reshape(pairs)
    gap = at(q, chosen) - at(q, rejected)
    kept = (chosen >= 0) & (rejected >= 0) & (chosen != rejected)
    kept &= ((gap >= margin) | (margin <= 0)) if rule == "first_error" else (gap >= margin) & (gap > 0)
    return StepPairs(
        jnp.where(kept, chosen, NO_NODE), jnp.where(kept, rejected, NO_NODE), jnp.where(kept, gap, 0.0)
    )


def _eligible(
    tree: Tree, correct: ArrayLike | None, rule: Pairing, answers: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """[B, N] bool twice: nodes that may be preferred, and that may be rejected."""
    visited = tree.valid & (tree.visits > 0)
    if rule == "best_worst":
        return _on_best_path(tree), visited
    ended = _answers(tree, answers)
    right = ended & _marks(tree, correct)
    to_right, to_wrong = sums_below(tree, right) > 0, sums_below(tree, ended & ~right) > 0
    if rule == "first_error":
        to_wrong &= ~to_right
    return visited & to_right, visited & to_wrong


def sums_below(tree: Tree, entries: ArrayLike) -> jax.Array:
    """For each node the sum of the entries of all nodes below it, including its own.

    Args:
      tree: the trees.
      entries: [B, N], any real dtype; ignored in slots without a node.

    Returns:
      [B, N] float32.
    """
    entries = jnp.asarray(entries).astype(jnp.float32)
    chex.assert_shape(entries, tree.parent.shape)
    start = jnp.where(tree.valid, entries, 0.0)
    last = tree.capacity - 1

    def up(i: jax.Array, total: jax.Array) -> jax.Array:
        node = last - i  # children come after their parents
        return put(total, tree.parent[:, node], total[:, node], "add")

    return jax.lax.fori_loop(0, tree.capacity, up, start)


def _answers(tree: Tree, answers: ArrayLike | None) -> jax.Array:
    return tree.valid & (tree.terminal if answers is None else _marks(tree, answers))


def _marks(tree: Tree, nodes: ArrayLike | None) -> jax.Array:
    """[B, N] bool; other shapes would be broadcast and are refused."""
    marks = jnp.asarray(nodes) != 0
    chex.assert_shape(marks, tree.parent.shape)
    return marks


def _quality(tree: Tree, right: jax.Array, finished: jax.Array) -> tuple[jax.Array, jax.Array]:
    """ReST-MCTS*'s values, down from the root, and whether the question has a correct answer."""
    steps, reachable = rl.steps_to_correct(tree.parent, right, tree.valid & finished)
    sign = jnp.where(reachable, 1.0, -1.0)

    def down(node: jax.Array, v: jax.Array) -> jax.Array:
        above = at(v, tree.parent[:, node])
        new = jnp.maximum(above + (1.0 - above) / jnp.maximum(steps[:, node], 1) * sign[:, node], 0.0)
        return v.at[:, node].set(jnp.where(tree.parent[:, node] >= 0, new, 0.0))

    values = jax.lax.fori_loop(0, tree.capacity, down, jnp.zeros(tree.parent.shape, jnp.float32))
    return values, reachable[:, :1]


def _on_best_path(tree: Tree) -> jax.Array:
    """[B, N] bool: nodes of the best path by value that were visited."""
    path = best_path(tree, "q", max_depth=tree.capacity - 1)
    visited = jnp.where(at(tree.visits, path) > 0, path, NO_NODE)
    return put(jnp.zeros(tree.parent.shape, bool), visited, True)


def _all_children(tree: Tree, width: int) -> tuple[jax.Array, jax.Array]:
    """(kids [B, N, C], is_child [B, N, C]) of every node."""
    slot = jnp.maximum(tree.first_child, 0)[..., None] + jnp.arange(width, dtype=jnp.int32)
    kids = jnp.minimum(slot, tree.capacity - 1)
    node = jnp.arange(tree.capacity)[:, None]
    return kids, (tree.first_child >= 0)[..., None] & (slot < tree.capacity) & (at(tree.parent, kids) == node)
