"""Selection: from the root down to a leaf, by the scores of the children."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from prm_jax.search.scores import ScoreFn, child_scores
from prm_jax.search.tree import NO_NODE, Tree, at


class Selection(NamedTuple):
    """Where selection ended.

    With several leaves a question, each array has an axis K behind B.

    Attributes:
      leaf: [B] i32; where `ok` is False the node at which selection got stuck, or -1 for a question without a root and
        one where a score was NaN.
      path: [B, max_depth + 1] i32, from the root to `leaf`, -1 behind it.
      ok: [B] bool, `leaf` is a leaf that can be expanded.
    """

    leaf: jax.Array
    path: jax.Array
    ok: jax.Array


def select(
    tree: Tree,
    score_fn: ScoreFn,
    max_depth: int,
    width: int,
    key: jax.Array | None = None,
    *,
    leaves: int | None = None,
    virtual_loss: float = 1.0,
) -> Selection:
    """Goes to the best child, from the root on, until a node has none.

    A node all of whose children are closed, and a leaf at `max_depth`, end it with `ok` False; `close` such a node, and
    selection does not come back.

    Args:
      tree: the trees.
      score_fn: score of the children, see `scores`.
      max_depth: static, the depth at which leaves are not expanded any more.
      width: static C, the most children that any node has.
      key: typed PRNG key or one a question [B], consumed; None takes the first of equally good children, a key a random
        one. A question's path depends on its own key only; one key is split by the number of the question.
      leaves: static K, the number of leaves to select a question; None is one, without the axis. Each pass leaves a
        visit and a loss on its path that the next one sees. A leaf that was already selected has `ok` False.
      virtual_loss: that loss, >= 0.

    Returns:
      `Selection`. The tree itself does not change.
    """
    keys = None if key is None else split_keys(key, tree.batch)
    if leaves is None:
        return _descend(tree, score_fn, max_depth, width, keys)

    def step(seen: Tree, number: jax.Array) -> tuple[Tree, Selection]:
        own = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        found = _descend(seen, score_fn, max_depth, width, own)
        slot = jnp.where(found.ok[:, None] & (found.path >= 0), found.path, tree.capacity)
        rows = jnp.arange(tree.batch)[:, None]
        return dataclasses.replace(
            seen,
            visits=seen.visits.at[rows, slot].add(1.0, mode="drop"),
            value_sum=seen.value_sum.at[rows, slot].add(-virtual_loss, mode="drop"),
        ), found

    _, found = jax.lax.scan(step, tree, jnp.arange(leaves))
    leaf, path, ok = (jnp.moveaxis(x, 0, 1) for x in found)
    same = (leaf[:, :, None] == leaf[:, None, :]) & ok[:, None, :]
    again = jnp.any(same & jnp.tril(jnp.ones((leaves, leaves), bool), -1), axis=2)
    return Selection(leaf, path, ok & ~again)


# (depth, node [B], path [B, D + 1], going on [B], stuck [B], a score was NaN [B])
_Descent = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _descend(tree: Tree, score_fn: ScoreFn, max_depth: int, width: int, keys: jax.Array | None) -> Selection:
    """One pass; all questions go down together until the last has arrived."""
    batch = tree.batch
    root = jnp.where(tree.has_root, 0, NO_NODE).astype(jnp.int32)
    path = jnp.full((batch, max_depth + 1), NO_NODE, jnp.int32).at[:, 0].set(root)
    going = tree.has_root & (tree.first_child[:, 0] >= 0) & ~tree.closed[:, 0]

    def more(carry: _Descent) -> jax.Array:
        return (carry[0] < max_depth) & jnp.any(carry[3])

    def down(carry: _Descent) -> _Descent:
        depth, node, path, going, stuck, broken = carry
        scores, kids = child_scores(tree, node, score_fn, width=width)
        broken |= going & jnp.any(jnp.isnan(scores), axis=1)
        choice = _best(scores, None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, depth))
        found = jnp.max(scores, axis=1) > -jnp.inf  # argmax alone gives 0; NaN compares False
        child = jnp.take_along_axis(kids, choice[:, None], axis=1)[:, 0]
        stuck |= going & ~found
        going &= found
        node = jnp.where(going, child, node)
        path = jax.lax.dynamic_update_slice_in_dim(path, jnp.where(going, node, NO_NODE)[:, None], depth + 1, axis=1)
        going &= at(tree.first_child, node) >= 0
        return depth + 1, node, path, going, stuck, broken

    no = jnp.zeros((batch,), bool)
    start = (jnp.zeros((), jnp.int32), root, path, going, no, no)
    _, node, path, _, stuck, broken = jax.lax.while_loop(more, down, start)
    deep = at(tree.depth, node) >= max_depth
    ok = (node >= 0) & ~stuck & ~broken & ~deep & ~at(tree.closed, node)
    path = jnp.where(broken[:, None], NO_NODE, path)
    return Selection(jnp.where(broken, NO_NODE, node), path, ok)


def _best(scores: jax.Array, keys: jax.Array | None) -> jax.Array:
    """Index of the best score of each row: the first of equals, or a random one."""
    if keys is None:
        return jnp.argmax(scores, axis=1)
    best = scores == jnp.max(scores, axis=1, keepdims=True)
    noise = jax.vmap(lambda key: jax.random.uniform(key, scores.shape[1:]))(keys)
    return jnp.argmax(jnp.where(best, noise, -1.0), axis=1)


def split_keys(key: jax.Array, batch: int) -> jax.Array:
    """One key a question.

    Args:
      key: typed PRNG key, which is split by the question's number, or [B] of them, which are returned.
      batch: B.

    Returns:
      [B] keys.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError("key must be a typed PRNG key, from jax.random.key")
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    chex.assert_shape(key, (batch,))
    return key
