"""Expansion: gives a leaf its children, all at once."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.search.tree import NO_NODE, Tree, at


def expand(
    tree: Tree,
    leaf: ArrayLike,
    prior: ArrayLike,
    value: ArrayLike,
    terminal: ArrayLike,
    valid: ArrayLike,
    ok: ArrayLike,
    *,
    reward: ArrayLike | None = None,
    state: Any = None,
) -> tuple[Tree, jax.Array]:
    """Adds C children to a leaf of each question, in neighbouring slots.

    Nothing happens to a question where `ok` is False, where the node already has children, and where C children do not
    fit any more: that is counted in `dropped`, and what was in the tree stays. A child whose prior, value or reward is
    not finite is left out and counted in `refused`. A leaf without a valid child is closed: a dead end.

    Args:
      tree: the trees.
      leaf: [B] i32, -1 for none.
      prior: [B, C] float, what the policy says of each step.
      value: [B, C] float, what the evaluator says of each child.
      terminal: [B, C] bool, an answer stands there.
      valid: [B, C] bool, False for slots without a child (fewer proposals than C, or duplicates).
      ok: [B] bool.
      reward: [B, C] float, rewards of the steps; None for 0.
      state: pytree of [B, C, ...], the caller's state at the children; of the tree's structure.

    Returns:
      (tree, kids [B, C] i32): the children's slots, -1 where there is none.
    """
    leaf, ok = jnp.asarray(leaf, jnp.int32), jnp.asarray(ok) != 0
    prior, value = jnp.asarray(prior, jnp.float32), jnp.asarray(value, jnp.float32)
    terminal, valid = jnp.asarray(terminal) != 0, jnp.asarray(valid) != 0
    reward = jnp.zeros_like(prior) if reward is None else jnp.asarray(reward, jnp.float32)
    chex.assert_shape([leaf, ok], (tree.batch,))
    chex.assert_shape([prior, value, terminal, valid, reward], (tree.batch, prior.shape[-1]))
    width = prior.shape[1]

    ok = ok & (leaf >= 0) & (at(tree.first_child, leaf) < 0)
    finite = jnp.isfinite(prior) & jnp.isfinite(value) & jnp.isfinite(reward)
    refused = jnp.sum(ok[:, None] & valid & ~finite, axis=1, dtype=jnp.int32)
    valid = valid & finite
    some = jnp.any(valid, axis=1)
    fits = tree.count + width <= tree.capacity
    grows = ok & some & fits
    born = valid & grows[:, None]

    def fill(field: jax.Array, update: jax.Array) -> jax.Array:
        return _write(field, tree.count, update, born)

    rows = jnp.arange(tree.batch)
    expanded = jnp.where(grows, leaf, tree.capacity)
    dead = jnp.where(ok & ~some, leaf, tree.capacity)
    parents = jnp.broadcast_to(leaf[:, None], born.shape)
    depth = jnp.broadcast_to(at(tree.depth, leaf)[:, None] + 1, born.shape)
    closed = fill(tree.closed, terminal).at[rows, dead].set(True, mode="drop")
    grown = dataclasses.replace(
        tree,
        parent=fill(tree.parent, parents),
        first_child=tree.first_child.at[rows, expanded].set(tree.count, mode="drop"),
        depth=fill(tree.depth, depth),
        value=fill(tree.value, value),
        prior=fill(tree.prior, prior),
        reward=fill(tree.reward, reward),
        terminal=fill(tree.terminal, terminal),
        closed=closed,
        valid=fill(tree.valid, born),
        count=tree.count + jnp.where(grows, width, 0),
        dropped=tree.dropped + (ok & some & ~fits),
        refused=tree.refused + refused,
        state=jax.tree.map(fill, tree.state, state),
    )
    kids = jnp.where(born, tree.count[:, None] + jnp.arange(width), NO_NODE)
    return grown, kids


def _write(field: jax.Array, start: jax.Array, update: jax.Array, where: jax.Array) -> jax.Array:
    """Writes `update` [B, C] to `field` [B, N] at slots start + arange(C), where `where`."""
    start = jnp.minimum(start, max(field.shape[1] - update.shape[1], 0))
    if update.shape[1] > field.shape[1]:
        return field  # never fits, so `where` is False everywhere

    def one(row: jax.Array, start: jax.Array, update: jax.Array, where: jax.Array) -> jax.Array:
        # One window a row, read and written back: a scatter of C single entries costs several times as much on a CPU.
        place = [start] + [jnp.zeros((), start.dtype)] * (row.ndim - 1)
        old = jax.lax.dynamic_slice(row, place, update.shape)
        where = where.reshape(-1, *(1,) * (row.ndim - 1))
        return jax.lax.dynamic_update_slice(row, jnp.where(where, update, old), place)

    return jax.vmap(one)(field, start, update.astype(field.dtype), where)
