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
    reward = None if reward is None else jnp.asarray(reward, jnp.float32)
    chex.assert_shape([leaf, ok], (tree.batch,))
    given = [x for x in (prior, value, terminal, valid, reward) if x is not None]
    chex.assert_shape(given, (tree.batch, prior.shape[-1]))
    width = prior.shape[1]

    ok = ok & (leaf >= 0) & (at(tree.first_child, leaf) < 0)
    finite = jnp.isfinite(prior) & jnp.isfinite(value)
    if reward is not None:
        finite &= jnp.isfinite(reward)
    refused = jnp.sum(ok[:, None] & valid & ~finite, axis=1, dtype=jnp.int32)
    valid = valid & finite
    some = jnp.any(valid, axis=1)
    fits = tree.count + width <= tree.capacity
    grows = ok & some & fits
    start = jnp.where(grows, tree.count, tree.capacity)
    rows = jnp.arange(tree.batch)

    def fill(field: jax.Array, update: jax.Array) -> jax.Array:
        return _write(field, start, update)

    dead = jnp.where(ok & ~some, leaf, tree.capacity)
    grown = dataclasses.replace(
        tree,
        parent=fill(tree.parent, jnp.where(valid, leaf[:, None], NO_NODE)),
        first_child=tree.first_child.at[rows, jnp.where(grows, leaf, tree.capacity)].set(tree.count, mode="drop"),
        depth=fill(tree.depth, jnp.where(valid, at(tree.depth, leaf)[:, None] + 1, 0)),
        value=fill(tree.value, jnp.where(valid, value, 0.0)),
        prior=fill(tree.prior, jnp.where(valid, prior, 0.0)),
        reward=tree.reward if reward is None else fill(tree.reward, jnp.where(valid, reward, 0.0)),
        terminal=fill(tree.terminal, valid & terminal),
        closed=fill(tree.closed, valid & terminal).at[rows, dead].set(True, mode="drop"),
        count=tree.count + jnp.where(grows, width, 0),
        dropped=tree.dropped + (ok & some & ~fits),
        refused=tree.refused + refused,
        state=jax.tree.map(fill, tree.state, state),
    )
    born = valid & grows[:, None]
    kids = jnp.where(born, tree.count[:, None] + jnp.arange(width), NO_NODE)
    return grown, kids


def _write(field: jax.Array, start: jax.Array, update: jax.Array) -> jax.Array:
    """Writes `update` [B, C, ...] to `field` [B, N, ...] at slots start + arange(C); rows that do not fit are left."""
    width, rest = update.shape[1], tuple(range(1, update.ndim))
    if width > field.shape[1]:
        return field
    # A window a row: a CPU writes it several times as fast as C single entries.
    windows = jax.lax.ScatterDimensionNumbers(
        update_window_dims=rest, inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 1)
    )
    return jax.lax.scatter(
        field,
        jnp.stack([jnp.arange(field.shape[0]), start], axis=-1),
        update.astype(field.dtype),
        windows,
        indices_are_sorted=True,
        unique_indices=True,
        mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
    )
