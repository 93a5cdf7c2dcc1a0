"""Trees as arrays: B questions, N slots each, the children of a node in neighbouring slots.

Text, tokens and caches stay with the caller, keyed by (question, node). A tree holds numbers only, so its size does
not depend on what its nodes represent.
"""

import dataclasses
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.errors import UserError

NO_NODE = -1
"""Represents "no node" everywhere: the parent of the root, the children of a leaf, the end of a path."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
    """A batch of search trees. Slot 0 is the root; a parent's slot is smaller than its children's.

    The children of an expanded node have the slots `first_child, first_child + 1, ...`; such a slot is a child only if
    its `parent` is the node. Under every backup rule the value of a node is `value_sum / visits` (`q_values`).

    Attributes:
      parent: [B, N] i32, -1 for the root and for slots that hold no node.
      first_child: [B, N] i32, -1 for leaves.
      depth: [B, N] i32, 0 for the root.
      visits: [B, N] f32, N(s): how often a value was backed up through the node.
      value_sum: [B, N] f32, W(s): visits times the node's value.
      value_max: [B, N] f32, the best return that was backed up through the node, -inf before the first.
      value: [B, N] f32, the evaluator's value of the node itself.
      prior: [B, N] f32, the policy's weight of the step that leads to the node; need not sum to 1.
      reward: [B, N] f32, reward of that step.
      terminal: [B, N] bool, the node is an answer and has no children.
      closed: [B, N] bool, selection does not enter: terminal, or nothing is left below.
      count: [B] i32, slots in use, including those of invalid children.
      dropped: [B] i32, expansions that did not fit into the capacity.
      refused: [B] i32, numbers from outside that were not finite: children left out, values not backed up, scores
        that ended a selection.
      state: pytree of [B, N, ...], whatever the caller keeps at each node, or None. It dominates the size of a tree.
    """

    parent: jax.Array
    first_child: jax.Array
    depth: jax.Array
    visits: jax.Array
    value_sum: jax.Array
    value_max: jax.Array
    value: jax.Array
    prior: jax.Array
    reward: jax.Array
    terminal: jax.Array
    closed: jax.Array
    count: jax.Array
    dropped: jax.Array
    refused: jax.Array
    state: Any = None

    @property
    def batch(self) -> int:
        """B, the number of questions."""
        return self.parent.shape[0]

    @property
    def capacity(self) -> int:
        """N, the number of slots per question."""
        return self.parent.shape[1]

    @property
    def has_root(self) -> jax.Array:
        """[B] bool, False for questions that are padding."""
        return self.count > 0

    @property
    def valid(self) -> jax.Array:
        """[B, N] bool, the slot holds a node."""
        return (self.parent >= 0) | (self.has_root[:, None] & (jnp.arange(self.capacity) == 0))


def init_tree(
    batch: int, capacity: int, *, value: ArrayLike = 0.0, active: ArrayLike | None = None, state: Any = None
) -> Tree:
    """Trees that consist of their roots.

    Args:
      batch: B >= 1.
      capacity: N >= 1, slots per question. A search of n simulations that each add C children fills at most
        `1 + n * C`; with fewer, expansions that do not fit are dropped and counted.
      value: scalar or [B] float, the evaluator's value of the roots.
      active: [B] bool, False for questions that are padding: they have no root and never change.
      state: pytree of [B, ...], the caller's state at the roots; its leaves are kept for all nodes, [B, N, ...].

    Returns:
      `Tree`.

    Raises:
      ValueError: for a batch or capacity below 1.
    """
    if batch < 1 or capacity < 1:
        raise ValueError(f"a tree needs batch >= 1 and capacity >= 1, got {batch} and {capacity}")
    root = jnp.ones((batch,), bool) if active is None else jnp.asarray(active) != 0
    chex.assert_shape(root, (batch,))
    shape = (batch, capacity)
    zeros, none, no = jnp.zeros(shape, jnp.float32), jnp.full(shape, NO_NODE, jnp.int32), jnp.zeros(shape, bool)
    value = jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch,))
    finite = jnp.isfinite(value)
    return Tree(
        parent=none,
        first_child=none,
        depth=jnp.zeros(shape, jnp.int32),
        visits=zeros,
        value_sum=zeros,
        value_max=jnp.full(shape, -jnp.inf, jnp.float32),
        value=zeros.at[:, 0].set(jnp.where(root & finite, value, 0.0)),
        prior=zeros,
        reward=zeros,
        terminal=no,
        closed=no,
        count=root.astype(jnp.int32),
        dropped=jnp.zeros((batch,), jnp.int32),
        refused=(root & ~finite).astype(jnp.int32),
        state=jax.tree.map(lambda x: _per_node(jnp.asarray(x), batch, capacity), state),
    )


def q_values(tree: Tree, *, unvisited: float = 0.0) -> jax.Array:
    """The value of every node under the rule that backed it up: W / N.

    Args:
      tree: see above.
      unvisited: value of nodes without visits.

    Returns:
      [B, N] float32; 0 in slots without a node.
    """
    q = jnp.where(tree.visits > 0, tree.value_sum / jnp.maximum(tree.visits, 1e-30), unvisited)
    return jnp.where(tree.valid, q, 0.0)


# The lookups and writes below are mapped over the questions rather than indexed by their numbers: only then does a
# compiler that divides the batch among devices see that no question needs another's tree.


def at(field: jax.Array, nodes: jax.Array) -> jax.Array:
    """[B, ...] entries of a field [B, N] at nodes [B, ...]; nodes out of range are moved to the nearest slot."""
    nodes = jnp.maximum(nodes, 0)
    if field.shape[0] == 1:  # on a CPU the general case takes an additional kernel per lookup
        return field[0].at[nodes].get(mode="clip")
    return jax.vmap(lambda row, own: row.at[own].get(mode="clip"))(field, nodes)


def put(
    field: jax.Array, nodes: jax.Array, entries: ArrayLike, how: Literal["set", "add", "max", "min"] = "set"
) -> jax.Array:
    """A field [B, N] with entries written to, added to, or compared with nodes [B, ...]; -1 means none."""
    entries = jnp.broadcast_to(jnp.asarray(entries, field.dtype), nodes.shape)
    if nodes.shape == (1,) and how == "set":
        return write(field, nodes, entries[:, None], (nodes >= 0) & (nodes < field.shape[1]))
    slots = jnp.where(nodes >= 0, nodes, field.shape[1])
    return jax.vmap(lambda row, own, new: getattr(row.at[own], how)(new, mode="drop"))(field, slots, entries)


def write(field: jax.Array, start: jax.Array, update: jax.Array, where: jax.Array) -> jax.Array:
    """`update` [B, C, ...] written to `field` [B, N, ...] at slots start [B] + arange(C) of the rows `where` [B]."""
    width = update.shape[1]
    if width > field.shape[1]:
        return field
    update = update if update.dtype == field.dtype else update.astype(field.dtype)  # keys have no astype
    if field.shape[0] == 1:
        zero = jnp.zeros_like(start[0])
        begin = [zero, start[0], *[zero] * (field.ndim - 2)]
        old = jax.lax.dynamic_slice(field, begin, update.shape)
        return jax.lax.dynamic_update_slice(field, jnp.where(where[0], update, old), begin)
    # One window per row: a CPU writes it several times as fast as C single entries.
    windows = jax.lax.ScatterDimensionNumbers(
        update_window_dims=tuple(range(update.ndim - 1)), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )

    def write_row(row: jax.Array, slot: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.scatter(
            row, slot[None], new, windows, indices_are_sorted=True, unique_indices=True,
            mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
        )  # fmt: skip

    return jax.vmap(write_row)(field, jnp.where(where, start, field.shape[1]), update)


def is_node(tree: Tree, node: jax.Array) -> jax.Array:
    """[B] bool: the slot [B] holds a node."""
    inside = (node > 0) & (node < tree.capacity) & (at(tree.parent, node) >= 0)
    return inside | ((node == 0) & tree.has_root)


def children(tree: Tree, node: ArrayLike, width: int) -> tuple[jax.Array, jax.Array]:
    """The children of one node per question.

    Args:
      tree: see above.
      node: [B] i32, -1 for none.
      width: static, the maximum number of children of a node.

    Returns:
      (kids [B, width] i32, is_child [B, width] bool). `kids` is in [0, N) but meaningful only where `is_child`.
    """
    node = jnp.asarray(node)
    chex.assert_shape(node, (tree.batch,))
    first = at(tree.first_child, node)
    places = jnp.arange(width, dtype=jnp.int32)
    kids = jnp.minimum(jnp.maximum(first, 0)[:, None] + places, tree.capacity - 1)
    # The slot clamped to N - 1 may repeat a child, so the range is checked too.
    inside = first[:, None] + places < tree.capacity
    expanded = (node >= 0) & (first >= 0)
    return kids, expanded[:, None] & inside & (at(tree.parent, kids) == node[:, None])


def close(tree: Tree, node: ArrayLike, where: ArrayLike) -> Tree:
    """Keeps selection out of a node; closing the root ends the search of a question.

    Args:
      tree: see above.
      node: [B] i32.
      where: [B] bool, questions to which this applies.

    Returns:
      `Tree`.
    """
    node, where = jnp.asarray(node), jnp.asarray(where) != 0
    chex.assert_equal_shape([node, where])
    return dataclasses.replace(tree, closed=put(tree.closed, jnp.where(where, node, NO_NODE), True))


def has_room(tree: Tree, width: int) -> jax.Array:
    """[B] bool: `width` more children fit."""
    return tree.count + width <= tree.capacity


def check_tree(tree: Tree, *, names: list[str] | None = None) -> None:
    """Raises when a number from outside was not finite; for use outside jit.

    Args:
      tree: see above.
      names: of the questions; their numbers when None.

    Raises:
      UserError: naming the questions concerned.
    """
    bad = [int(b) for b in jnp.nonzero(tree.refused)[0]]
    if bad:
        called = ", ".join(names[b] if names else str(b) for b in bad[:8]) + (", ..." if len(bad) > 8 else "")
        raise UserError(
            f"{int(jnp.sum(tree.refused))} values, priors or scores were not finite (NaN or infinite), in "
            f"question{'s' if len(bad) > 1 else ''} {called}: evaluator and score rule must return finite numbers"
        )


def _per_node(x: jax.Array, batch: int, capacity: int) -> jax.Array:
    chex.assert_shape(x, (batch, ...))
    return jnp.zeros((batch, capacity, *x.shape[1:]), x.dtype).at[:, 0].set(x)


def best_path(
    tree: Tree, key: str = "visits", *, max_depth: int | None = None, discount: float | None = None
) -> jax.Array:
    """The path from the root that always continues to the best child, the first among equals.

    Args:
      tree: see above.
      key: "visits", "q" (the node's value; unvisited children come last) or "max" (the best return seen).
      max_depth: static length of the result minus one; None takes the depth of the deepest node, which needs a tree
        that is not traced.
      discount: for "q": None compares the values of the children, a number their `reward + discount * Q`; -1 for the
        players of a two-player game, each of whom chooses what is best for itself.

    Returns:
      [B, max_depth + 1] i32, the root first, -1 after the end.

    Raises:
      ValueError: for another key, or a discount with another key than "q".
    """
    if key not in ("visits", "q", "max"):
        raise ValueError(f"key={key!r}; expected one of 'visits', 'q', 'max'")
    if discount is not None and key != "q":
        raise ValueError(f"discount={discount} with key={key!r}; only 'q' takes a discount")
    if max_depth is None:
        max_depth = int(jnp.max(tree.depth))
    q = q_values(tree) if discount is None else tree.reward + discount * q_values(tree)
    stat = {"visits": tree.visits, "q": jnp.where(tree.visits > 0, q, -jnp.inf), "max": tree.value_max}[key]
    stat = jnp.maximum(stat, jnp.finfo(jnp.float32).min)  # an unvisited child is still better than none

    def step(node: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        is_child = tree.valid & (tree.parent == node[:, None]) & (node >= 0)[:, None]
        best = jnp.argmax(jnp.where(is_child, stat, -jnp.inf), axis=1).astype(jnp.int32)
        best = jnp.where(jnp.any(is_child, 1), best, NO_NODE)
        return best, best

    root = jnp.where(tree.has_root, 0, NO_NODE).astype(jnp.int32)
    _, below = jax.lax.scan(step, root, None, length=max_depth)
    return jnp.concatenate([root[:, None], jnp.moveaxis(below, 0, 1)], axis=1)


def paths_to(tree: Tree, node: ArrayLike, *, max_depth: int) -> jax.Array:
    """The path from the root to a node, in the form that `backup` takes.

    Args:
      tree: see above.
      node: [B] i32, -1 for none.
      max_depth: static, at least the depth of every node given.

    Returns:
      [B, max_depth + 1] i32, the root first, -1 after the node; -1 everywhere for a slot without a node and for a node
      that is deeper.
    """
    node = jnp.asarray(node, jnp.int32)
    chex.assert_shape(node, (tree.batch,))
    node = jnp.where(is_node(tree, node) & (at(tree.depth, node) <= max_depth), node, NO_NODE)

    def step(here: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return jnp.where(here >= 0, at(tree.parent, here), NO_NODE), here

    _, upwards = jax.lax.scan(step, node, None, length=max_depth + 1)
    # Reversed, max_depth - depth empty places precede the root: roll it to the front.
    depth = jnp.where(node >= 0, at(tree.depth, node), 0)
    place = depth[:, None] - jnp.arange(max_depth + 1)
    path = jnp.take_along_axis(jnp.moveaxis(upwards, 0, 1), jnp.maximum(place, 0), axis=1)
    return jnp.where(place >= 0, path, NO_NODE)
