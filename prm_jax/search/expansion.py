"""Expansion: gives a leaf its children, all at once."""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.search.tree import NO_NODE, Tree, at, has_room, is_node, put, write


class NewChildren(NamedTuple):
    """Children to add; see `expand`."""

    prior: ArrayLike
    value: ArrayLike
    terminal: ArrayLike
    valid: ArrayLike
    reward: ArrayLike | None = None
    state: Any = None


class Born(NamedTuple):
    """The children that an expansion made, all [B, C]; 0 and False where there is none.

    Attributes:
      kids: i32, their slots, -1 for none.
      value: f32.
      reward: f32.
      terminal: bool.
    """

    kids: jax.Array
    value: jax.Array
    reward: jax.Array
    terminal: jax.Array


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

    A question does not change where `ok` is False, where the leaf is not a node, is terminal or already has children,
    and where C children no longer fit, which `dropped` counts. A child whose prior, value or reward is not finite is
    left out and counted in `refused`. A leaf without a valid child is a dead end and is closed.

    Args:
      tree: the trees.
      leaf: [B] i32, -1 for none.
      prior: [B, C] float, the policy's weight of each step.
      value: [B, C] float, the evaluator's value of each child.
      terminal: [B, C] bool, the child is an answer.
      valid: [B, C] bool, False for slots without a child (fewer proposals than C, or duplicates).
      ok: [B] bool.
      reward: [B, C] float, rewards of the steps; None for 0.
      state: pytree of [B, C, ...], the caller's state at the children; of the tree's structure and dtypes.

    Returns:
      (tree, kids [B, C] i32): the children's slots, -1 where there is none.
    """
    leaf, ok = jnp.asarray(leaf, jnp.int32), jnp.asarray(ok) != 0
    chex.assert_shape([leaf, ok], (tree.batch,))
    check_state(tree, state, jnp.shape(prior), "'state'")
    ok = ok & is_node(tree, leaf) & ~at(tree.terminal, leaf) & (at(tree.first_child, leaf) < 0)
    depth, no = jnp.where(ok, at(tree.depth, leaf), NO_NODE), jnp.zeros_like(ok)
    tree, born = expand_and_close(tree, leaf, depth, NewChildren(prior, value, terminal, valid, reward, state), no)
    return tree, born.kids


def check_state(tree: Tree, state: Any, lead: tuple[int, ...], what: str) -> None:
    """Raises ValueError unless the children's state has the tree's structure, shapes [*lead, ...], and fits its dtypes.

    Floats may be rounded to the tree's dtype, but are not truncated to integers.
    """
    given, expected = str(jax.tree.structure(state)), str(jax.tree.structure(tree.state))
    if given != expected:
        raise ValueError(f"{what} is {given}; expected {expected}, as the tree's own state")
    for own, new in zip(jax.tree.leaves(tree.state), jax.tree.leaves(state), strict=True):
        if jnp.shape(new) != (*lead, *own.shape[2:]):
            raise ValueError(f"{what} has shape {jnp.shape(new)}; expected {(*lead, *own.shape[2:])}")
        given_type = jnp.result_type(new)
        if jnp.issubdtype(given_type, jnp.inexact) and not jnp.issubdtype(own.dtype, jnp.inexact):
            raise ValueError(f"{what} has dtype {given_type}; expected {own.dtype}, as the tree's own state")


def expand_and_close(
    tree: Tree, leaf: jax.Array, depth: jax.Array, new: NewChildren, stuck: jax.Array, *, close_terminal: bool = True
) -> tuple[Tree, Born]:
    """`expand` and `close` at once, without reading the nodes themselves.

    Args:
      tree: see `expand`.
      leaf: see `expand`.
      depth: [B] i32, depth of the leaf; negative where it is not expanded: there is none, or it has children.
      new: its children.
      stuck: [B] bool, `leaf` is a node to be closed instead.
      close_terminal: static; False lets selection enter terminal children again.

    Returns:
      (tree, the children that were added).
    """
    ok = depth >= 0
    child, refused = _finite(tree, new, ok)
    some = jnp.any(child.valid, axis=1)
    width = child.valid.shape[1]
    fits = has_room(tree, width)
    grows = ok & some & fits

    def fill(field: jax.Array, update: jax.Array) -> jax.Array:
        return write(field, tree.count, update, grows)

    closed = put(tree.closed, jnp.where(stuck | (ok & ~some), leaf, NO_NODE), True)
    grown = dataclasses.replace(
        tree,
        parent=fill(tree.parent, jnp.where(child.valid, leaf[:, None], NO_NODE)),
        first_child=put(tree.first_child, jnp.where(grows, leaf, NO_NODE), tree.count),
        depth=fill(tree.depth, jnp.where(child.valid, depth[:, None] + 1, 0)),
        value=fill(tree.value, child.value),
        prior=fill(tree.prior, child.prior),
        reward=tree.reward if child.reward is None else fill(tree.reward, child.reward),
        terminal=fill(tree.terminal, child.terminal),
        closed=fill(closed, child.terminal & close_terminal),
        count=tree.count + jnp.where(grows, width, 0),
        dropped=tree.dropped + (ok & some & ~fits),
        refused=tree.refused + refused,
        state=jax.tree.map(fill, tree.state, child.state),
    )
    exists = child.valid & grows[:, None]
    kids = jnp.where(exists, tree.count[:, None] + jnp.arange(width), NO_NODE)
    reward = jnp.zeros_like(child.value) if child.reward is None else child.reward
    value, reward = (jnp.where(exists, x, 0.0) for x in (child.value, reward))
    return grown, Born(kids, value, reward, exists & child.terminal)


class _Children(NamedTuple):
    """`NewChildren` as arrays, with zeros where a child is not valid."""

    prior: jax.Array
    value: jax.Array
    terminal: jax.Array
    valid: jax.Array
    reward: jax.Array | None
    state: Any


def _finite(tree: Tree, new: NewChildren, ok: jax.Array) -> tuple[_Children, jax.Array]:
    """(the children whose numbers are finite, how many of each question are not)."""
    prior, value = jnp.asarray(new.prior, jnp.float32), jnp.asarray(new.value, jnp.float32)
    terminal, valid = jnp.asarray(new.terminal) != 0, jnp.asarray(new.valid) != 0
    reward = None if new.reward is None else jnp.asarray(new.reward, jnp.float32)
    given = [x for x in (prior, value, terminal, valid, reward) if x is not None]
    chex.assert_shape(given, (tree.batch, prior.shape[-1]))
    finite = jnp.isfinite(prior) & jnp.isfinite(value)
    if reward is not None:
        finite &= jnp.isfinite(reward)
    refused = jnp.sum(ok[:, None] & valid & ~finite, axis=1, dtype=jnp.int32)
    valid = valid & finite
    prior, value, terminal = jnp.where(valid, prior, 0.0), jnp.where(valid, value, 0.0), valid & terminal
    reward = None if reward is None else jnp.where(valid, reward, 0.0)
    return _Children(prior, value, terminal, valid, reward, new.state), refused
