"""Expansion: gives a leaf its children, all at once."""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.search.tree import NO_NODE, Tree, at, has_room, is_node, put, write


class Born(NamedTuple):
    """The children that an expansion made, all [B, C]; where there is none, 0 and False.

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

    Nothing happens to a question where `ok` is False, where the leaf is no node, is terminal or already has children,
    and where C children do not fit any more: that is counted in `dropped`, and what was in the tree stays. A child
    whose prior, value or reward is not finite is left out and counted in `refused`. A leaf without a valid child is
    closed: a dead end.

    Args:
      tree: the trees.
      leaf: [B] i32, -1 for none.
      prior: [B, C] float, what the policy says of each step.
      value: [B, C] float, what the evaluator says of each child.
      terminal: [B, C] bool, an answer stands there.
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
    tree, born = expand_and_close(tree, leaf, depth, prior, value, terminal, valid, no, reward, state)
    return tree, born.kids


def check_state(tree: Tree, state: Any, lead: tuple[int, ...], what: str) -> None:
    """Raises ValueError unless the children's state has the tree's structure, shapes [*lead, ...], and fits its dtypes.

    Numbers may be rounded, not cut: what has fractions does not go into whole numbers.
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
    tree: Tree,
    leaf: jax.Array,
    depth: jax.Array,
    prior: ArrayLike,
    value: ArrayLike,
    terminal: ArrayLike,
    valid: ArrayLike,
    stuck: jax.Array,
    reward: ArrayLike | None,
    state: Any,
) -> tuple[Tree, Born]:
    """`expand` and `close` in one go, without a look at the nodes themselves.

    Args:
      tree: see `expand`.
      leaf: see `expand`.
      depth: [B] i32, depth of the leaf; negative where it is not expanded: there is none, or it has children.
      prior: see `expand`.
      value: see `expand`.
      terminal: see `expand`.
      valid: see `expand`.
      stuck: [B] bool, `leaf` is a node that is to be closed instead.
      reward: see `expand`.
      state: see `expand`.

    Returns:
      (tree, what was born).
    """
    ok = depth >= 0
    prior, value = jnp.asarray(prior, jnp.float32), jnp.asarray(value, jnp.float32)
    terminal, valid = jnp.asarray(terminal) != 0, jnp.asarray(valid) != 0
    reward = None if reward is None else jnp.asarray(reward, jnp.float32)
    given = [x for x in (prior, value, terminal, valid, reward) if x is not None]
    chex.assert_shape(given, (tree.batch, prior.shape[-1]))
    width = prior.shape[1]

    finite = jnp.isfinite(prior) & jnp.isfinite(value)
    if reward is not None:
        finite &= jnp.isfinite(reward)
    refused = jnp.sum(ok[:, None] & valid & ~finite, axis=1, dtype=jnp.int32)
    valid = valid & finite
    some = jnp.any(valid, axis=1)
    fits = has_room(tree, width)
    grows = ok & some & fits

    def fill(field: jax.Array, update: jax.Array) -> jax.Array:
        return write(field, tree.count, update, grows)

    closes = stuck | (ok & ~some)
    prior, value, terminal = jnp.where(valid, prior, 0.0), jnp.where(valid, value, 0.0), valid & terminal
    reward = None if reward is None else jnp.where(valid, reward, 0.0)
    grown = dataclasses.replace(
        tree,
        parent=fill(tree.parent, jnp.where(valid, leaf[:, None], NO_NODE)),
        first_child=put(tree.first_child, jnp.where(grows, leaf, NO_NODE), tree.count),
        depth=fill(tree.depth, jnp.where(valid, depth[:, None] + 1, 0)),
        value=fill(tree.value, value),
        prior=fill(tree.prior, prior),
        reward=tree.reward if reward is None else fill(tree.reward, reward),
        terminal=fill(tree.terminal, terminal),
        closed=fill(put(tree.closed, jnp.where(closes, leaf, NO_NODE), True), terminal),
        count=tree.count + jnp.where(grows, width, 0),
        dropped=tree.dropped + (ok & some & ~fits),
        refused=tree.refused + refused,
        state=jax.tree.map(fill, tree.state, state),
    )
    exists = valid & grows[:, None]
    kids = jnp.where(exists, tree.count[:, None] + jnp.arange(width), NO_NODE)
    no_reward = jnp.zeros_like(value)
    value, reward = (jnp.where(exists, x, 0.0) for x in (value, no_reward if reward is None else reward))
    return grown, Born(kids, value, reward, exists & terminal)
