"""Selection: from the root down to a leaf, by the scores of the children."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from prm_jax.search.scores import ScoreFn, child_scores
from prm_jax.search.tree import NO_NODE, Tree, at, put


class Selection(NamedTuple):
    """Where selection ended.

    With several leaves per question, each array has an axis K after B.

    Attributes:
      leaf: [B] i32; where `ok` is False the node at which selection got stuck, or -1 for a question without a root or
        with a NaN score.
      path: [B, max_depth + 1] i32, from the root to `leaf`, -1 after it.
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
    """Descends from the root to the best child until a node has none.

    It ends with `ok` False at a node whose children are all closed, and at a leaf at `max_depth`; `close` such a node
    to keep selection out of it.

    Args:
      tree: the trees.
      score_fn: score of the children, see `scores`.
      max_depth: static, the depth at which leaves are no longer expanded.
      width: static C, the maximum number of children of a node.
      key: typed PRNG key or one per question [B], consumed; None takes the first of equally good children, a key a
        random one. A question's path depends on its own key only; a single key is folded with the question's number.
      leaves: static K, the number of leaves to select per question; None is one, without the axis. Each pass adds a
        visit and a loss to its path for the next one. A leaf that was already selected has `ok` False.
      virtual_loss: that loss; negative where a node's value is the opponent's (a negative discount).

    Returns:
      `Selection`. The tree itself does not change.
    """
    keys = None if key is None else split_keys(key, tree.batch)
    if leaves is None:
        return _descend(tree, score_fn, max_depth, width, keys)

    def step(seen: Tree, number: jax.Array) -> tuple[Tree, Selection]:
        own = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        found = _descend(seen, score_fn, max_depth, width, own)
        path = jnp.where(found.ok[:, None], found.path, NO_NODE)
        return dataclasses.replace(
            seen,
            visits=put(seen.visits, path, 1.0, "add"),
            value_sum=put(seen.value_sum, path, -virtual_loss, "add"),
        ), found

    _, found = jax.lax.scan(step, tree, jnp.arange(leaves))
    leaf, path, ok = (jnp.moveaxis(x, 0, 1) for x in found)
    same = (leaf[:, :, None] == leaf[:, None, :]) & ok[:, None, :]
    again = jnp.any(same & jnp.tril(jnp.ones((leaves, leaves), bool), -1), axis=2)
    return Selection(leaf, path, ok & ~again)


# What follows the last node of a path, besides "no node": no child could be entered, or a score was NaN.
_STUCK, _BROKEN = -2, -3

# (depth, node [B] or -1 where the descent is over, path [B, D + 1])
_Descent = tuple[jax.Array, jax.Array, jax.Array]


def _descend(tree: Tree, score_fn: ScoreFn, max_depth: int, width: int, keys: jax.Array | None) -> Selection:
    """One pass; all questions descend together until the last has arrived.

    The loop carries as little as possible: on CPUs XLA runs bodies of at most eight kernels without its scheduler,
    which takes half of the time for small batches.
    """
    is_open = tree.has_root & ~tree.closed[:, 0]
    node = jnp.where(is_open & (tree.first_child[:, 0] >= 0), 0, NO_NODE)
    path = jnp.full((tree.batch, max_depth + 1), NO_NODE, jnp.int32).at[:, 0].set(jnp.where(tree.has_root, 0, NO_NODE))

    def more(carry: _Descent) -> jax.Array:
        return (carry[0] < max_depth) & jnp.any(carry[1] >= 0)

    def down(carry: _Descent) -> _Descent:
        depth, node, path = carry
        scores, kids = child_scores(tree, node, score_fn, width=width)
        choice = _best(scores, None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, depth))
        best = jnp.max(scores, axis=1)  # NaN if there is one; -inf without an open child, where argmax gives 0
        child = jnp.take_along_axis(kids, choice[:, None], axis=1)[:, 0]
        move = jnp.where(best > -jnp.inf, child, jnp.where(jnp.isnan(best), _BROKEN, _STUCK))
        move = jnp.where(node >= 0, move, NO_NODE).astype(jnp.int32)
        path = jax.lax.dynamic_update_slice_in_dim(path, move[:, None], depth + 1, axis=1)
        return depth + 1, jnp.where((move >= 0) & (at(tree.first_child, move) >= 0), move, NO_NODE), path

    _, _, path = jax.lax.while_loop(more, down, (jnp.zeros((), jnp.int32), node, path))
    stuck, broken = (jnp.any(path == what, axis=1) for what in (_STUCK, _BROKEN))
    path = jnp.where(broken[:, None], NO_NODE, jnp.maximum(path, NO_NODE))
    leaf = jnp.max(path, axis=1)  # children come after their parents
    return Selection(leaf, path, is_open & ~stuck & ~broken & (path[:, -1] < 0))


def _best(scores: jax.Array, keys: jax.Array | None) -> jax.Array:
    """Index of the best score of each row: the first of equals, or a random one."""
    if keys is None:
        return jnp.argmax(scores, axis=1)
    best = scores == jnp.max(scores, axis=1, keepdims=True)
    noise = jax.vmap(lambda key: jax.random.uniform(key, scores.shape[1:]))(keys)
    return jnp.argmax(jnp.where(best, noise, -1.0), axis=1)


def split_keys(key: jax.Array, batch: int) -> jax.Array:
    """One key per question.

    Args:
      key: typed PRNG key, which is split by the question's number, or [B] of them, which are returned.
      batch: B.

    Returns:
      [B] keys.
    """
    if not jnp.issubdtype(getattr(key, "dtype", None) or type(key), jax.dtypes.prng_key):
        raise TypeError("key must be a typed PRNG key, from jax.random.key")
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    chex.assert_shape(key, (batch,))
    return key
