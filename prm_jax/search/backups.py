"""Backup: propagates a value from a node up to the root.

Every rule keeps the value of a node in `value_sum / visits`, so the score rules need not know which one was used.
"""

import dataclasses
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.search.tree import NO_NODE, Tree, at, children, put

Rule = Literal["mean", "max", "child_mean"]
_RULES = ("mean", "max", "child_mean")


class BackupRule(NamedTuple):
    """How values are combined; see `backup`.

    Attributes:
      rule: name of the rule.
      discount: in [-1, 1].
      rate: of "child_mean".
      width: static, the maximum number of children of a node, for "child_mean"; None for any number.
    """

    rule: Rule
    discount: float = 1.0
    rate: float = 1.0
    width: int | None = None


class Visits(NamedTuple):
    """Values to back up, one per question.

    Attributes:
      path: [B, D + 1] i32, see `backup`.
      value: [B] f32.
      weight: [B] f32, how many visits the value counts as.
      best: [B] f32, the largest of the `weight` values whose mean is `value`.
      worst: [B] f32, the smallest of them; read with a negative discount only.
    """

    path: jax.Array
    value: jax.Array
    weight: jax.Array
    best: jax.Array
    worst: jax.Array


def backup(
    tree: Tree,
    path: ArrayLike,
    value: ArrayLike,
    weight: ArrayLike = 1.0,
    rule: Rule = "mean",
    discount: float = 1.0,
    *,
    best: ArrayLike | None = None,
    rate: float = 1.0,
    width: int | None = None,
) -> Tree:
    """Backs up one value per question along a path.

    The return at the last node is the value; going up, G <- reward + discount * G.

    * "mean": a node's value is the mean of the returns backed up through it.
    * "max": the largest of them.
    * "child_mean": the mean of its children's values weighted by their visits; for a node without visited children,
      the value itself. It is approached as Q <- (1 - rate) * Q + rate * (reward + discount * that mean).

    Args:
      tree: the trees.
      path: [B, D + 1] i32, from the root down, -1 after the end; a path of -1, or through a slot without a node,
        changes nothing.
      value: [B] float. Where it or the weight is not finite nothing changes and `refused` counts it.
      weight: scalar or [B] float >= 0, how many visits it counts as, fractions included; 0 changes nothing.
      rule: see above.
      discount: in [-1, 1]; with -1 a node's value is that of the player to move in a two-player zero-sum game.
      best: [B] float, the largest of the `weight` values whose mean is `value`; None for `value`. "max" and
        `value_max` use it. Not with a negative discount.
      rate: of "child_mean", in (0, 1].
      width: static, for "child_mean": the maximum number of children of a node; None for any number, which is slower.

    Returns:
      `Tree`.

    Raises:
      ValueError: for another rule, or `best` with a negative discount.

    Source: mean: arXiv 2405.03553. child_mean: arXiv 2406.03816; with a rate and a discount: arXiv 2501.11223. max:
    arXiv 2205.11105.
    """
    check_rule(rule)
    if best is not None and discount < 0:
        raise ValueError(f"best with discount={discount}: back up the values one at a time")
    path, value = jnp.asarray(path, jnp.int32), jnp.asarray(value, jnp.float32)
    weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), value.shape)
    best = value if best is None else jnp.asarray(best, jnp.float32)
    chex.assert_shape(path, (tree.batch, None))
    nodes_only = (path < 0) | ((path < tree.capacity) & at(tree.valid, path))
    path = jnp.where(jnp.all(nodes_only, axis=1, keepdims=True), path, NO_NODE)
    # An infinite weight is refused like an infinite value.
    value, weight = jnp.where(jnp.isfinite(weight), value, jnp.nan), jnp.where(jnp.isfinite(weight), weight, 1.0)
    nobody = jnp.full((tree.batch, 1), NO_NODE, jnp.int32)
    how = BackupRule(rule, discount, rate, width)
    return backup_with_leaves(tree, Visits(path, value, weight, best, best), nobody, jnp.zeros((tree.batch, 1)), how)


def check_rule(rule: str) -> None:
    """Raises ValueError unless `backup` has this rule."""
    if rule not in _RULES:
        raise ValueError(f"rule={rule!r}; expected one of {', '.join(map(repr, _RULES))}")


def backup_with_leaves(
    tree: Tree, visits: Visits, leaves: jax.Array, leaf_values: jax.Array, how: BackupRule
) -> Tree:
    """`backup` together with the first visit of nodes that are not on the path: an expansion's children.

    Args:
      tree: the trees.
      visits: paths and values.
      leaves: [B, C] i32, nodes without a visit, visited once now; -1 for none.
      leaf_values: [B, C] float, finite, their values.
      how: the rule.

    Returns:
      `Tree`.
    """
    path, value, weight, best, worst = visits
    chex.assert_shape([value, weight, best], (tree.batch,))
    chex.assert_shape(path, (tree.batch, None))
    chex.assert_equal_shape([leaves, leaf_values])
    counts = (weight > 0) & (path[:, 0] >= 0)
    finite = jnp.isfinite(value) & jnp.isfinite(best)
    refused = tree.refused + (counts & ~finite)
    # At every place of the path: values that do not count are dropped when they are written.
    g, best_g = _returns(tree, path, (value, best, worst), how.discount)
    path = jnp.where((counts & finite)[:, None], path, NO_NODE)
    leaves = jnp.where(finite[:, None], leaves, NO_NODE)

    # Nodes of the path and leaves are all different, so one scatter writes both.
    nodes = jnp.concatenate([path, leaves], axis=1)
    weights = jnp.concatenate([jnp.broadcast_to(weight[:, None], path.shape), jnp.ones_like(leaf_values)], axis=1)
    returns = jnp.concatenate([g, leaf_values], axis=1)
    best_returns = jnp.concatenate([best_g, leaf_values], axis=1)
    counted = put(tree.visits, nodes, weights, "add")
    value_max = put(tree.value_max, nodes, best_returns, "max")
    if how.rule == "max":
        value_sum = put(tree.value_sum, nodes, at(counted, nodes) * jnp.where(nodes >= 0, at(value_max, nodes), 0.0))
    elif how.rule == "mean":
        value_sum = put(tree.value_sum, nodes, weights * returns, "add")
    else:  # those of the path are recomputed below
        value_sum = put(tree.value_sum, leaves, leaf_values)
    tree = dataclasses.replace(tree, visits=counted, value_max=value_max, value_sum=value_sum, refused=refused)
    return _child_mean(tree, path, value, weight, how) if how.rule == "child_mean" else tree


def _returns(
    tree: Tree, path: jax.Array, values: tuple[jax.Array, jax.Array, jax.Array], discount: float
) -> tuple[jax.Array, jax.Array]:
    """(mean, largest) [B, D + 1] of the returns at each node of the path; arbitrary off the path.

    `values` holds the mean, the largest and the smallest at its end.
    """
    mean, best, worst = values
    length = path.shape[1]
    reward = at(tree.reward, path)
    on_path = path >= 0
    if isinstance(discount, float | int) and discount == 1:
        # All levels at once, as sums: the chain of the general case below takes `length` steps on a CPU.
        here = jnp.arange(length)
        counts = (here[None, :] > here[:, None]) & on_path[:, None, :]
        later = jnp.sum(jnp.where(counts, reward[:, None, :], 0.0), axis=2)
        return mean[:, None] + later, best[:, None] + later
    # A negative discount turns the smallest return into the largest.
    swaps = discount < 0
    above = jnp.stack([mean, best, worst] if swaps else [mean, best])
    end, out = above, [above]
    for i in range(length - 1, 0, -1):
        below = above[jnp.array([0, 2, 1])] if swaps else above
        above = jnp.where(on_path[:, i], reward[:, i] + discount * below, end)
        out.append(above)
    found = jnp.stack(out[::-1], axis=-1)
    return found[0], found[1]


def _child_mean(tree: Tree, path: jax.Array, value: jax.Array, weight: jax.Array, how: BackupRule) -> Tree:
    """Recomputes the nodes of the path from their children, bottom-up. Their visits are counted already."""
    length, discount, rate = path.shape[1], how.discount, how.rate
    width = max(tree.capacity - 1, 1) if how.width is None else how.width

    def up(i: jax.Array, total: jax.Array) -> jax.Array:
        node = jax.lax.dynamic_index_in_dim(path, length - 1 - i, axis=1, keepdims=False)
        kids, is_child = children(tree, node, width)
        counts = jnp.where(is_child, at(tree.visits, kids), 0.0)
        returns = jnp.where(counts > 0, discount * at(total, kids) + counts * at(tree.reward, kids), 0.0)
        seen = jnp.sum(counts, axis=1)
        q = jnp.where(seen > 0, jnp.sum(returns, axis=1) / jnp.maximum(seen, 1e-30), value)
        visits = at(tree.visits, node)
        earlier = visits - weight
        old = at(total, node) / jnp.maximum(earlier, 1e-30)
        q = jnp.where((seen > 0) & (earlier > 0), (1.0 - rate) * old + rate * q, q)
        return put(total, node, q * visits)

    return dataclasses.replace(tree, value_sum=jax.lax.fori_loop(0, length, up, tree.value_sum))
