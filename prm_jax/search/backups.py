"""Backup: takes a value from a node up to the root.

Every rule leaves the value of a node in `value_sum / visits`, so the score rules need not know which one was used.
"""

import dataclasses
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.search.tree import NO_NODE, Tree, at, children, put

Rule = Literal["mean", "max", "child_mean"]
_RULES = ("mean", "max", "child_mean")


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
    """Backs up one value a question along a path.

    The return at the last node is the value; going up, G <- reward + discount * G.

    * "mean": a node's value is the mean of the returns backed up through it.
    * "max": the largest of them.
    * "child_mean": the mean of its children's values weighted by their visits; of a node without visited children, the
      value itself. Each is approached as Q <- (1 - rate) * Q + rate * (reward + discount * that mean).

    Args:
      tree: the trees.
      path: [B, D + 1] i32, from the root down, -1 behind the end; a path of -1, or through a slot without a node,
        changes nothing.
      value: [B] float. Where it or the weight is not finite nothing changes and `refused` counts it.
      weight: scalar or [B] float >= 0, as how many visits it counts, fractions included; 0 changes nothing.
      rule: see above.
      discount: in [0, 1].
      best: [B] float, the largest of the `weight` values of which `value` is the mean; None for `value`. It is what
        "max" and `value_max` take.
      rate: of "child_mean", in (0, 1].
      width: static, of "child_mean": the most children that any node has; None for any number, which is slower.

    Returns:
      `Tree`.

    Raises:
      ValueError: for another rule.

    Source: mean: arXiv 2405.03553. child_mean: arXiv 2406.03816; with a rate and a discount: arXiv 2501.11223. max:
    arXiv 2205.11105.
    """
    check_rule(rule)
    path, value = jnp.asarray(path, jnp.int32), jnp.asarray(value, jnp.float32)
    weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), value.shape)
    best = value if best is None else jnp.asarray(best, jnp.float32)
    chex.assert_shape(path, (tree.batch, None))
    nodes_only = (path < 0) | ((path < tree.capacity) & at(tree.valid, path))
    path = jnp.where(jnp.all(nodes_only, axis=1, keepdims=True), path, NO_NODE)
    # An infinite weight is refused as an infinite value is.
    value, weight = jnp.where(jnp.isfinite(weight), value, jnp.nan), jnp.where(jnp.isfinite(weight), weight, 1.0)
    nobody = jnp.full((tree.batch, 1), NO_NODE, jnp.int32)
    return backup_with_leaves(
        tree, path, value, weight, best, nobody, jnp.zeros((tree.batch, 1)), rule, discount, rate=rate, width=width
    )


def check_rule(rule: str) -> None:
    """Raises ValueError for another rule than those of `backup`."""
    if rule not in _RULES:
        raise ValueError(f"rule={rule!r}; expected one of {', '.join(map(repr, _RULES))}")


def backup_with_leaves(
    tree: Tree,
    path: jax.Array,
    value: jax.Array,
    weight: jax.Array,
    best: jax.Array,
    leaves: jax.Array,
    leaf_values: jax.Array,
    rule: Rule,
    discount: float,
    *,
    rate: float,
    width: int | None,
) -> Tree:
    """`backup` together with the first visit of nodes that are not on the path: an expansion's children.

    Args:
      tree: the trees.
      path: see `backup`.
      value: see `backup`.
      weight: see `backup`, [B].
      best: see `backup`, [B].
      leaves: [B, C] i32, nodes without a visit, visited once now; -1 for none.
      leaf_values: [B, C] float, finite, their values.
      rule: see `backup`.
      discount: see `backup`.
      rate: see `backup`.
      width: see `backup`.

    Returns:
      `Tree`.
    """
    chex.assert_shape([value, weight, best], (tree.batch,))
    chex.assert_shape(path, (tree.batch, None))
    chex.assert_equal_shape([leaves, leaf_values])
    counts = (weight > 0) & (path[:, 0] >= 0)
    finite = jnp.isfinite(value) & jnp.isfinite(best)
    refused = tree.refused + (counts & ~finite)
    # From the path as it is, and at all of its places: what does not count is dropped when it is written.
    g, best_g = _returns(tree, path, jnp.stack([value, best]), discount)
    path = jnp.where((counts & finite)[:, None], path, NO_NODE)
    leaves = jnp.where(finite[:, None], leaves, NO_NODE)

    # Nodes of the path and leaves are all different, so one scatter takes both.
    nodes = jnp.concatenate([path, leaves], axis=1)
    weights = jnp.concatenate([jnp.broadcast_to(weight[:, None], path.shape), jnp.ones_like(leaf_values)], axis=1)
    returns = jnp.concatenate([g, leaf_values], axis=1)
    best_returns = jnp.concatenate([best_g, leaf_values], axis=1)
    visits = put(tree.visits, nodes, weights, "add")
    value_max = put(tree.value_max, nodes, best_returns, "max")
    if rule == "max":
        value_sum = put(tree.value_sum, nodes, at(visits, nodes) * jnp.where(nodes >= 0, at(value_max, nodes), 0.0))
    elif rule == "mean":
        value_sum = put(tree.value_sum, nodes, weights * returns, "add")
    else:  # the path's own is recomputed below
        value_sum = put(tree.value_sum, leaves, leaf_values)
    tree = dataclasses.replace(tree, visits=visits, value_max=value_max, value_sum=value_sum, refused=refused)
    if rule != "child_mean":
        return tree
    width = max(tree.capacity - 1, 1) if width is None else width
    return _child_mean(tree, path, value, weight, discount, rate, width)


def _returns(tree: Tree, path: jax.Array, value: jax.Array, discount: float) -> jax.Array:
    """[2, B, D + 1]: the returns of two values at each node of the path; anything off the path."""
    length = path.shape[1]
    reward = at(tree.reward, path)
    on_path = path >= 0
    if isinstance(discount, float | int) and discount == 1:
        # All levels at once, as sums: a CPU runs the chain of the general case below in `length` steps.
        here = jnp.arange(length)
        counts = (here[None, :] > here[:, None]) & on_path[:, None, :]
        return value[:, :, None] + jnp.sum(jnp.where(counts, reward[:, None, :], 0.0), axis=2)
    out = [value]
    for i in range(length - 1, 0, -1):
        out.append(jnp.where(on_path[:, i], reward[:, i] + discount * out[-1], value))
    return jnp.stack(out[::-1], axis=-1)


def _child_mean(
    tree: Tree, path: jax.Array, value: jax.Array, weight: jax.Array, discount: float, rate: float, width: int
) -> Tree:
    """Recomputes the nodes of the path from their children, bottom-up. Their visits are counted already."""
    length = path.shape[1]

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
