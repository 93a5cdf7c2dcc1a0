"""One simulation of a tree search in two steps: `ask` selects leaves, `grow` takes the evaluator's answer."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.search.backups import BackupRule, Visits, backup_with_leaves
from prm_jax.search.evaluation import ExpandFn, Expansion, Leaf, checked_shapes
from prm_jax.search.expansion import Born, NewChildren, expand_and_close
from prm_jax.search.method import Method
from prm_jax.search.selection import Selection, select
from prm_jax.search.tree import NO_NODE, Tree, at, children, has_room, is_node, put
from prm_jax.varying import align


def ask(tree: Tree, method: Method, simulation: ArrayLike, keys: jax.Array | None = None) -> tuple[Selection, Leaf]:
    """Selects leaves and makes the question for the evaluator.

    Args:
      tree: the trees.
      method: the search's constants.
      simulation: scalar i32, number of the simulation; determines its randomness.
      keys: [B] typed PRNG keys, consumed for this simulation; None takes the first of equally good children.

    Returns:
      (selection, leaf): `leaf.ok` is False where there is nothing to evaluate, including where the tree is full.
    """
    simulation = jnp.asarray(simulation, jnp.int32)
    tie = own = None
    if keys is not None:
        both = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, simulation)))(keys)
        tie, own = both[:, 0], both[:, 1]
    selection = select(
        tree, method.score_fn, method.max_depth, method.width, tie, leaves=method.leaves,
        # A parent sees its child's value times the discount: this makes a loss of it for either sign.
        virtual_loss=math.copysign(method.virtual_loss, method.discount),
    )  # fmt: skip
    node, ok = selection.leaf, selection.ok & _fits(tree, selection, method)
    if method.revisit:
        ok &= ~at(tree.terminal, node)
    state = jax.tree.map(lambda x: at(x, node), tree.state)
    return selection, Leaf(node, at(tree.depth, node), ok, simulation, own, state)


def grow(tree: Tree, selection: Selection, expansion: Expansion, method: Method) -> tuple[Tree, jax.Array]:
    """Takes an evaluator's answer into the tree: expands the selected leaves and backs up.

    A node at which selection got stuck is closed. Nothing else happens where the selection is not `ok` or the
    children do not fit.

    Args:
      tree: the trees from which leaves were selected.
      selection: from `select`; with an axis K the leaves are processed in order.
      expansion: the answer.
      method: the search's constants.

    Returns:
      (tree, kids [B, C] or [B, K, C] i32): the children's slots, -1 where there is none.

    Raises:
      ValueError: for an answer of the wrong shape.
    """
    expansion = checked_shapes(expansion, tree, selection.leaf.shape, method.width)
    fits = _fits(tree, selection, method)
    if selection.leaf.ndim == 1:
        return take_in(tree, selection, _look(tree, selection, fits, method), expansion, method)

    def step(tree: Tree, each: tuple[Selection, jax.Array, Expansion]) -> tuple[Tree, jax.Array]:
        selection, fits, expansion = each
        return take_in(tree, selection, _look(tree, selection, fits, method), expansion, method)

    each = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (selection, fits, expansion))
    tree, kids = jax.lax.scan(step, tree, each)
    return tree, jnp.moveaxis(kids, 0, 1)


# What happens to a selected leaf that is not expanded: nothing, it is closed, it is counted as not fitting, or it is
# an answer whose value is backed up again.
_NOTHING, _CLOSE, _DROP, _AGAIN = -1, -2, -3, -4


class Place(NamedTuple):
    """What has to be read from the tree about the selected leaves before it changes.

    Attributes:
      depth: [B] i32, depth of a leaf that can be expanded, or one of the constants above.
      value: [B] f32, the evaluator's value of the leaf.
    """

    depth: jax.Array
    value: jax.Array


def evaluate(
    tree: Tree, selection: Selection, leaf: Leaf, expand_fn: ExpandFn, method: Method
) -> tuple[Place | None, Expansion]:
    """Asks the evaluator unless no question needs it, and looks at the leaves where there is one per question.

    Compilers do not move work across a conditional: so all reads of the tree are done before the writes begin, and
    the writes need no copies of it.
    """
    # As one compiled function it is traced once for both branches.
    evaluated = jax.jit(
        lambda leaf: checked_shapes(expand_fn(leaf), tree, selection.leaf.shape, method.width)
    )

    def answer(leaf: Leaf) -> tuple[Place | None, Expansion]:
        return align((look(), evaluated(leaf)), leaf)

    def nothing(leaf: Leaf) -> tuple[Place | None, Expansion]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(evaluated, leaf))
        return align((look(), zeros), leaf)

    def look() -> Place | None:
        return _look(tree, selection, _fits(tree, selection, method), method) if method.leaves is None else None

    return jax.lax.cond(jnp.any(leaf.ok), answer, nothing, leaf)


def take_in(
    tree: Tree, selection: Selection, place: Place, expansion: Expansion, method: Method
) -> tuple[Tree, jax.Array]:
    """`grow` for one leaf per question whose place is known."""
    leaf, path, _ = selection
    # Without a node, a score was NaN.
    refused = tree.refused + (tree.has_root & (leaf < 0))
    tree = dataclasses.replace(tree, refused=refused, dropped=tree.dropped + (place.depth == _DROP))
    terminal, value = jnp.asarray(expansion.terminal) != 0, jnp.asarray(expansion.value, jnp.float32)
    last = (place.depth + 1 >= method.max_depth)[:, None]
    if method.depth_value is not None:
        value = jnp.where(last & ~terminal, method.depth_value, value)
    ok = place.depth >= 0
    new = NewChildren(
        expansion.prior, value, terminal | last, expansion.valid, expansion.reward, expansion.state
    )
    tree, born = expand_and_close(
        tree, leaf, place.depth, new, place.depth == _CLOSE, close_terminal=not method.revisit
    )
    own = place.value
    if expansion.node_value is not None:
        own = jnp.asarray(expansion.node_value, jnp.float32)
        tree = dataclasses.replace(tree, value=put(tree.value, jnp.where(ok & jnp.isfinite(own), leaf, NO_NODE), own))
    if method.revisit:
        again = place.depth == _AGAIN
        ok, own = ok | again, jnp.where(again, place.value, own)
    return _back_up_expansion(tree, path, born, own, ok, method), born.kids


def _fits(tree: Tree, selection: Selection, method: Method) -> jax.Array:
    """[B] or [B, K] bool: there is room for the leaf's children, and for those of the leaves before it."""
    if selection.leaf.ndim == 1:
        return has_room(tree, method.width)
    return tree.count[:, None] + method.width * jnp.cumsum(selection.ok, axis=1) <= tree.capacity


def _look(tree: Tree, selection: Selection, fits: jax.Array, method: Method) -> Place:
    leaf, _, ok = selection
    is_open = is_node(tree, leaf) & ~at(tree.closed, leaf)
    # Selection led nowhere: the node is exhausted.
    otherwise = jnp.where(is_open & ~ok & _exhausted(tree, leaf, method), _CLOSE, _NOTHING)
    can_grow = ok & is_open & (at(tree.first_child, leaf) < 0)
    grows = jnp.where(fits, at(tree.depth, leaf), _DROP)
    place = jnp.where(can_grow, grows, otherwise)
    if method.revisit:
        place = jnp.where(is_open & at(tree.terminal, leaf), _AGAIN, place)
    return Place(place, at(tree.value, leaf))


def _exhausted(tree: Tree, leaf: jax.Array, method: Method) -> jax.Array:
    """[B] bool: selection cannot continue below `leaf`: it is too deep, or all of its children are closed."""
    kids, is_child = children(tree, leaf, method.width)
    open_child = jnp.any(is_child & ~at(tree.closed, kids), axis=1)
    return ~open_child & ((at(tree.first_child, leaf) >= 0) | (at(tree.depth, leaf) >= method.max_depth))


def _back_up_expansion(tree: Tree, path: jax.Array, born: Born, own: jax.Array, ok: jax.Array, method: Method) -> Tree:
    """Visits the new children that count, and the path once for each of them and for the leaf."""
    counts = born.kids >= 0 if method.returns == "children" else born.terminal
    value = jnp.where(counts, born.value, 0.0)
    returns = jnp.where(counts, born.reward + method.discount * value, 0.0)
    number = jnp.sum(counts, axis=1).astype(jnp.float32)
    best = jnp.max(jnp.where(counts, returns, -jnp.inf), axis=1)
    worst = jnp.min(jnp.where(counts, returns, jnp.inf), axis=1) if method.discount < 0 else best
    total = jnp.sum(returns, axis=1)
    if method.returns == "leaf":
        number, total, best, worst = number + 1.0, total + own, jnp.maximum(best, own), jnp.minimum(worst, own)
    else:
        # Without any child, only the leaf's own value is left.
        none = number == 0
        number, total = jnp.where(none, 1.0, number), jnp.where(none, own, total)
        best, worst = jnp.where(none, own, best), jnp.where(none, own, worst)
    visits = Visits(path, total / number, jnp.where(ok, number, 0.0), best, worst)
    rule = BackupRule(method.rule, method.discount, method.rate, method.width)
    return backup_with_leaves(tree, visits, jnp.where(counts, born.kids, NO_NODE), value, rule)
