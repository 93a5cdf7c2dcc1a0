"""Re-rooting: a node becomes the root, its subtree is kept, and all other slots become free."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.search.tree import NO_NODE, Tree, at, put


def reroot(tree: Tree, node: ArrayLike) -> tuple[Tree, jax.Array]:
    """Keeps the subtree of one node per question, with its statistics.

    Slots are packed in their old order, so a parent's is still smaller than its children's. Closed nodes stay closed. A
    stop only closes the old root, so that a search can continue below any other node that is not exhausted.

    Args:
      tree: the trees.
      node: [B] i32, the new roots; -1 for a question that ends, which then has no root.

    Returns:
      (tree, old [B, N] i32): `old` is the former slot of each slot's node, -1 in free slots, for data that the caller
      keeps by (question, slot). `dropped` and `refused` keep their counts.
    """
    node = jnp.asarray(node, jnp.int32)
    chex.assert_shape(node, (tree.batch,))
    node = jnp.where((node >= 0) & at(tree.valid, node), node, NO_NODE)
    inside = _below(tree, node)
    # Slots of invalid children are freed, too: `parent` identifies them.
    count = jnp.sum(inside, axis=1, dtype=jnp.int32)
    order = jnp.argsort(~inside, axis=1, stable=True).astype(jnp.int32)
    used = jnp.arange(tree.capacity) < count[:, None]
    old = jnp.where(used, order, NO_NODE)
    new = jnp.where(inside, jnp.cumsum(inside, axis=1, dtype=jnp.int32) - 1, NO_NODE)

    def move(field: jax.Array, empty: ArrayLike | None = None) -> jax.Array:
        shape = (*used.shape, *(1,) * (field.ndim - 2))
        taken = jnp.take_along_axis(field, order.reshape(shape), axis=1)
        # PRNG keys in a state have zeros but cannot be converted from numbers.
        free = jnp.zeros((), field.dtype) if empty is None else jnp.asarray(empty, field.dtype)
        return jnp.where(used.reshape(shape), taken, free)

    def renumber(field: jax.Array) -> jax.Array:
        moved = move(field, NO_NODE)
        return jnp.where(moved >= 0, at(new, moved), NO_NODE)

    first = _first_children(tree, inside, new)
    depth = move(tree.depth, 0)
    root = jnp.arange(tree.capacity) == 0
    moved = dataclasses.replace(
        tree,
        parent=jnp.where(root, NO_NODE, renumber(tree.parent)),
        first_child=move(first, NO_NODE),
        depth=jnp.where(used, depth - depth[:, :1], 0),
        visits=move(tree.visits, 0.0),
        value_sum=move(tree.value_sum, 0.0),
        value_max=move(tree.value_max, -jnp.inf),
        value=move(tree.value, 0.0),
        prior=move(tree.prior, 0.0),
        reward=move(tree.reward, 0.0),
        terminal=move(tree.terminal, False),
        closed=move(tree.closed, False),
        count=count,
        state=jax.tree.map(move, tree.state),
    )
    return moved, old


def _below(tree: Tree, node: jax.Array) -> jax.Array:
    """[B, N] bool: the node and its descendants, by pointer doubling."""
    slots = jnp.arange(tree.capacity)
    at_node = (slots == node[:, None]) & (node >= 0)[:, None]
    # The root and the node point to themselves: every pointer ends at one of the two.
    pointer = jnp.where(at_node | (tree.parent < 0), slots, tree.parent)

    def double(_: int, pointer: jax.Array) -> jax.Array:
        return jnp.take_along_axis(pointer, pointer, axis=1)

    pointer = jax.lax.fori_loop(0, max(tree.capacity - 1, 1).bit_length(), double, pointer)
    return (pointer == node[:, None]) & (node >= 0)[:, None] & tree.valid


def _first_children(tree: Tree, inside: jax.Array, new: jax.Array) -> jax.Array:
    """[B, N] i32, by old slot: the new slot of the node's first child."""
    none = tree.capacity
    parent = jnp.where(inside, tree.parent, NO_NODE)
    first = put(jnp.full_like(tree.first_child, none), parent, new, "min")
    return jnp.where(first < none, first, NO_NODE)
