"""Tree search: select, evaluate, expand and back up, many times over.

`search` runs it with an evaluator that is either a JAX function, in one compiled loop, or a function of the host (a
language model behind a loop or a server). Both are made of the same two steps, `select` and `grow`, which outside
loops can call themselves.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from prm_jax.errors import UserError
from prm_jax.search.backups import Rule, backup_with_leaves, check_rule
from prm_jax.search.expansion import Born, check_state, expand_and_close
from prm_jax.search.scores import ScoreFn
from prm_jax.search.selection import Selection, select, split_keys
from prm_jax.search.tree import NO_NODE, Tree, at, check_tree, children, close, has_room, is_node, put
from prm_jax.varying import align

Returned = Literal["leaf", "children"]


class Leaf(NamedTuple):
    """What an evaluator is asked about; with several leaves a question, [B, K] instead of [B].

    Attributes:
      node: [B] i32, slot of the leaf.
      depth: [B] i32.
      ok: [B] bool; what is answered for the others is not used.
      simulation: scalar i32, number of the simulation.
      key: [B] typed keys, one a question and simulation; None when the search has none.
      state: the tree's state at the leaf, pytree of [B, ...], or None.
    """

    node: jax.Array
    depth: jax.Array
    ok: jax.Array
    simulation: jax.Array
    key: jax.Array | None = None
    state: Any = None


class Expansion(NamedTuple):
    """What an evaluator answers; with several leaves a question, [B, K, C] instead of [B, C].

    Attributes:
      prior: [B, C] float, what the policy says of each step.
      value: [B, C] float, value of each child.
      terminal: [B, C] bool, the child is an answer.
      valid: [B, C] bool, the child exists.
      reward: [B, C] float, reward of each step; None for 0.
      node_value: [B] float, value of the leaf itself; None keeps what was said when it became a child.
      state: pytree of [B, C, ...], state of the children; None when the tree has none.
    """

    prior: ArrayLike
    value: ArrayLike
    terminal: ArrayLike
    valid: ArrayLike
    reward: ArrayLike | None = None
    node_value: ArrayLike | None = None
    state: Any = None


ExpandFn = Callable[[Leaf], Expansion]


@dataclasses.dataclass(frozen=True)
class Method:
    """A search method: its constants, hashable, static under jit.

    Attributes:
      score_fn: score of the children, see `scores`.
      rule: backup rule, see `backup`.
      width: C, the most children of a node.
      max_depth: children at this depth are terminal.
      returns: what an expansion backs up. "leaf": the value of the leaf and that of each terminal child (AlphaMath).
        "children": the value of every child, which thereby counts as visited.
      discount: of the backup.
      rate: of the "child_mean" rule.
      leaves: K, leaves to select a question and simulation; None is one, without the axis.
      virtual_loss: see `select`.
      depth_value: value of children that are terminal only because of `max_depth`; None keeps the evaluator's.
        AlphaMath gives -1.
    """

    score_fn: ScoreFn
    width: int
    max_depth: int
    rule: Rule = "mean"
    returns: Returned = "leaf"
    discount: float = 1.0
    rate: float = 1.0
    leaves: int | None = None
    virtual_loss: float = 1.0
    depth_value: float | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.returns not in ("leaf", "children"):
            raise ValueError(f"returns={self.returns!r}; expected 'leaf' or 'children'")
        check_rule(self.rule)
        for name, value, low in (("discount", self.discount, 0.0), ("rate", self.rate, 0.0)):
            if isinstance(value, int | float) and not low <= value <= 1.0:
                raise ValueError(f"{name}={value}; expected a number from 0 to 1")
        if isinstance(self.virtual_loss, int | float) and not self.virtual_loss >= 0:
            raise ValueError(f"virtual_loss={self.virtual_loss}; expected a number of at least 0")
        if self.width < 1 or self.max_depth < 1 or (self.leaves is not None and self.leaves < 1):
            raise ValueError(
                f"width, max_depth and leaves must be at least 1, got {self.width}, {self.max_depth}, {self.leaves}"
            )


def search(
    tree: Tree,
    expand_fn: ExpandFn,
    num_simulations: int | jax.Array,
    score_fn: ScoreFn,
    rule: Rule = "mean",
    *,
    width: int,
    max_depth: int,
    returns: Returned = "leaf",
    discount: float = 1.0,
    rate: float = 1.0,
    leaves: int | None = None,
    virtual_loss: float = 1.0,
    depth_value: float | None = None,
    key: jax.Array | None = None,
    stop_fn: Callable[[Tree], jax.Array] | None = None,
    host: bool = False,
    on_simulation: Callable[[int, Tree], None] | None = None,
) -> Tree:
    """Runs simulations: each selects a leaf of every question, has it evaluated, expands it and backs up.

    A simulation that finds a question finished (its root closed), its tree full, or nothing but closed children does
    nothing to it beyond closing the node where it got stuck. A question's tree depends on its own key and answers, not
    on the others.

    Args:
      tree: where to begin: `init_tree`, an earlier result, or `reroot` of one.
      expand_fn: the evaluator, from `Leaf` to `Expansion`; not asked when no question needs it. A JAX function is
        traced once; call `search` under `jax.jit` to compile once for many calls. With `host` it may do anything, and
        gets NumPy arrays, but for the key and the state, which stay where they are.
      num_simulations: n >= 0; may be traced, so that other numbers need no other compilation, but not with `host`.
      score_fn: see `Method`, which explains the options down to `depth_value`.
      rule: see `Method`.
      width: see `Method`.
      max_depth: see `Method`.
      returns: see `Method`.
      discount: see `Method`.
      rate: see `Method`.
      leaves: see `Method`.
      virtual_loss: see `Method`.
      depth_value: see `Method`.
      key: typed PRNG key, or one a question [B], consumed. It breaks ties at random and is passed on to `expand_fn`;
        with None the first of equals is taken.
      stop_fn: tree -> [B] bool; asked after each simulation, True ends a question's search.
      host: whether `expand_fn` runs on the host, in a Python loop around compiled steps.
      on_simulation: with `host`: called with (number of simulations done, tree) after each; the tree may be kept.

    Returns:
      `Tree`. `dropped` counts expansions that did not fit.

    Raises:
      UserError: an answer with a NaN or infinity; under `jax.jit` it is counted in `Tree.refused` instead, see
        `check_tree`.
      ValueError: an answer of the wrong shape.
    """
    method = Method(score_fn, width, max_depth, rule, returns, discount, rate, leaves, virtual_loss, depth_value)
    keys = None if key is None else split_keys(key, tree.batch)
    if isinstance(num_simulations, int) and num_simulations < 0:
        raise ValueError(f"num_simulations={num_simulations}; expected a number of at least 0")
    if host:
        return _search_on_host(tree, expand_fn, int(num_simulations), method, keys, stop_fn, on_simulation)

    tree, keys = align((tree, keys))  # under shard_map a loop keeps its types

    def more(carry: tuple[jax.Array, Tree]) -> jax.Array:
        return (carry[0] < num_simulations) & ~_all_closed(carry[1])

    def simulate(carry: tuple[jax.Array, Tree]) -> tuple[jax.Array, Tree]:
        number, tree = carry
        selection, leaf = ask(tree, method, number, keys)
        place, expansion = _evaluate(tree, selection, leaf, expand_fn, method)
        if place is None:
            tree, _ = grow(tree, selection, expansion, method)
        else:
            tree, _ = _take_in(tree, selection, place, expansion, method)
        if stop_fn is not None:
            tree = close(tree, jnp.zeros((tree.batch,), jnp.int32), stop_fn(tree))
        return number + 1, tree

    _, tree = jax.lax.while_loop(more, simulate, (jnp.int32(0), tree))
    if not isinstance(tree.refused, jax.core.Tracer):
        check_tree(tree)
    return tree


def ask(tree: Tree, method: Method, simulation: ArrayLike, keys: jax.Array | None = None) -> tuple[Selection, Leaf]:
    """Selects, and says what the evaluator has to be asked.

    Args:
      tree: the trees.
      method: the search's constants.
      simulation: scalar i32, number of the simulation; chooses among the keys' randomness.
      keys: [B] typed PRNG keys, consumed for this simulation; None takes the first of equally good children.

    Returns:
      (selection, leaf): `leaf.ok` is False where there is nothing to evaluate, because the tree is full, too.
    """
    simulation = jnp.asarray(simulation, jnp.int32)
    tie = own = None
    if keys is not None:
        both = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, simulation)))(keys)
        tie, own = both[:, 0], both[:, 1]
    selection = select(
        tree, method.score_fn, method.max_depth, method.width, tie,
        leaves=method.leaves, virtual_loss=method.virtual_loss,
    )  # fmt: skip
    node, ok = selection.leaf, selection.ok & _fits(tree, selection, method)
    state = jax.tree.map(lambda x: at(x, node), tree.state)
    return selection, Leaf(node, at(tree.depth, node), ok, simulation, own, state)


def _fits(tree: Tree, selection: Selection, method: Method) -> jax.Array:
    """[B] or [B, K] bool: there is room for the leaf's children, and for those of the leaves before it."""
    if selection.leaf.ndim == 1:
        return has_room(tree, method.width)
    return tree.count[:, None] + method.width * jnp.cumsum(selection.ok, axis=1) <= tree.capacity


def grow(tree: Tree, selection: Selection, expansion: Expansion, method: Method) -> tuple[Tree, jax.Array]:
    """Takes an evaluator's answer into the tree: expands the selected leaves and backs up.

    A node at which selection got stuck is closed. Nothing else happens where the selection is not `ok` or the
    children do not fit.

    Args:
      tree: the trees from which was selected.
      selection: of `select`; with an axis K the leaves are taken in order.
      expansion: the answer.
      method: the search's constants.

    Returns:
      (tree, kids [B, C] or [B, K, C] i32): the children's slots, -1 where there is none.

    Raises:
      ValueError: for an answer of the wrong shape.
    """
    expansion, fits = _checked_shapes(expansion, tree, selection, method), _fits(tree, selection, method)
    if selection.leaf.ndim == 1:
        return _take_in(tree, selection, _look(tree, selection, fits, method), expansion, method)

    def step(tree: Tree, each: tuple[Selection, jax.Array, Expansion]) -> tuple[Tree, jax.Array]:
        selection, fits, expansion = each
        return _take_in(tree, selection, _look(tree, selection, fits, method), expansion, method)

    each = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (selection, fits, expansion))
    tree, kids = jax.lax.scan(step, tree, each)
    return tree, jnp.moveaxis(kids, 0, 1)


# What has to be done about a selected leaf that is not expanded: nothing, close it, or count that it did not fit.
_NOTHING, _CLOSE, _DROP = -1, -2, -3


class _Place(NamedTuple):
    """What has to be known of the selected leaves before the tree changes.

    Attributes:
      depth: [B] i32, depth of a leaf that can be expanded, or one of the above.
      value: [B] f32, what the evaluator said of the leaf.
    """

    depth: jax.Array
    value: jax.Array


def _look(tree: Tree, selection: Selection, fits: jax.Array, method: Method) -> _Place:
    leaf, _, ok = selection
    is_open = is_node(tree, leaf) & ~at(tree.closed, leaf)
    # Selection led nowhere: the node is exhausted.
    otherwise = jnp.where(is_open & ~ok & _exhausted(tree, leaf, method), _CLOSE, _NOTHING)
    can_grow = ok & is_open & (at(tree.first_child, leaf) < 0)
    grows = jnp.where(fits, at(tree.depth, leaf), _DROP)
    return _Place(jnp.where(can_grow, grows, otherwise), at(tree.value, leaf))


def _evaluate(
    tree: Tree, selection: Selection, leaf: Leaf, expand_fn: ExpandFn, method: Method
) -> tuple[_Place | None, Expansion]:
    """Asks the evaluator unless no question needs it, and looks at the leaves where there is one a question.

    Compilers do not move work across a conditional. So all reads of the tree are done when the writes begin, and these
    need no copies of it.
    """
    # Compiled as one function, it is traced once for both branches.
    evaluate = jax.jit(lambda leaf: _checked_shapes(expand_fn(leaf), tree, selection, method))

    def answer(leaf: Leaf) -> tuple[_Place | None, Expansion]:
        return align((look(), evaluate(leaf)), leaf)

    def nothing(leaf: Leaf) -> tuple[_Place | None, Expansion]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(evaluate, leaf))
        return align((look(), zeros), leaf)

    def look() -> _Place | None:
        return _look(tree, selection, _fits(tree, selection, method), method) if method.leaves is None else None

    return jax.lax.cond(jnp.any(leaf.ok), answer, nothing, leaf)


def _take_in(
    tree: Tree, selection: Selection, place: _Place, expansion: Expansion, method: Method
) -> tuple[Tree, jax.Array]:
    leaf, path, _ = selection
    # Without a node, a score was NaN.
    refused = tree.refused + (tree.has_root & (leaf < 0))
    tree = dataclasses.replace(tree, refused=refused, dropped=tree.dropped + (place.depth == _DROP))
    terminal, value = jnp.asarray(expansion.terminal) != 0, jnp.asarray(expansion.value, jnp.float32)
    last = (place.depth + 1 >= method.max_depth)[:, None]
    if method.depth_value is not None:
        value = jnp.where(last & ~terminal, method.depth_value, value)
    ok = place.depth >= 0
    tree, born = expand_and_close(
        tree, leaf, place.depth, expansion.prior, value, terminal | last, expansion.valid, place.depth == _CLOSE,
        expansion.reward, expansion.state,
    )  # fmt: skip
    own = place.value
    if expansion.node_value is not None:
        own = jnp.asarray(expansion.node_value, jnp.float32)
        tree = dataclasses.replace(tree, value=put(tree.value, jnp.where(ok & jnp.isfinite(own), leaf, NO_NODE), own))
    return _back_up_expansion(tree, path, born, own, ok, method), born.kids


def _back_up_expansion(tree: Tree, path: jax.Array, born: Born, own: jax.Array, ok: jax.Array, method: Method) -> Tree:
    """Visits the new children that count, and the path once for each of them and for the leaf."""
    counts = born.kids >= 0 if method.returns == "children" else born.terminal
    value = jnp.where(counts, born.value, 0.0)
    returns = jnp.where(counts, born.reward + method.discount * value, 0.0)
    number = jnp.sum(counts, axis=1).astype(jnp.float32)
    best = jnp.max(jnp.where(counts, returns, -jnp.inf), axis=1)
    total = jnp.sum(returns, axis=1)
    if method.returns == "leaf":
        number, total, best = number + 1.0, total + own, jnp.maximum(best, own)
    else:
        # No child at all: the leaf's own value is all there is.
        none = number == 0
        number, total = jnp.where(none, 1.0, number), jnp.where(none, own, total)
        best = jnp.where(none, own, best)
    return backup_with_leaves(
        tree,
        path,
        total / number,
        jnp.where(ok, number, 0.0),
        best,
        jnp.where(counts, born.kids, NO_NODE),
        value,
        method.rule,
        method.discount,
        rate=method.rate,
        width=method.width,
    )


def _exhausted(tree: Tree, leaf: jax.Array, method: Method) -> jax.Array:
    """[B] bool: `leaf` cannot be left again: too deep, or all of its children are closed."""
    kids, is_child = children(tree, leaf, method.width)
    open_child = jnp.any(is_child & ~at(tree.closed, kids), axis=1)
    return ~open_child & ((at(tree.first_child, leaf) >= 0) | (at(tree.depth, leaf) >= method.max_depth))


def _checked_shapes(expansion: Expansion, tree: Tree, selection: Selection, method: Method) -> Expansion:
    """Refuses an answer of the wrong shape by the name of its part."""
    lead = selection.leaf.shape
    if not isinstance(expansion, Expansion):
        raise ValueError(f"the evaluator returned {type(expansion).__name__}; expected an Expansion")
    # Lists are numbers here, but containers in a state.
    given = {name: part for name, part in expansion._asdict().items() if name != "state" and part is not None}
    expansion = expansion._replace(
        **{name: jnp.asarray(part) for name, part in given.items()}, state=jax.tree.map(jnp.asarray, expansion.state)
    )
    for name, shape in (("prior", method.width), ("value", method.width), ("terminal", method.width),
                        ("valid", method.width), ("reward", method.width), ("node_value", None)):  # fmt: skip
        part = getattr(expansion, name)
        if part is None and name not in ("reward", "node_value"):
            raise ValueError(f"the evaluator's {name!r} is None; only 'reward', 'node_value' and 'state' may be")
        expected = lead if shape is None else (*lead, shape)
        if part is not None and jnp.shape(part) != expected:
            axes = "[B" + ", K" * (len(lead) - 1) + (", C]" if shape else "]")
            raise ValueError(f"the evaluator's {name!r} has shape {jnp.shape(part)}; expected {expected}, {axes}")
    check_state(tree, expansion.state, (*lead, method.width), "the evaluator's 'state'")
    return expansion


def _all_closed(tree: Tree) -> jax.Array:
    return jnp.all(tree.closed[:, 0] | ~tree.has_root)


_HOST_FIELDS = ("node", "depth", "ok", "simulation")
_ask = functools.partial(jax.jit, static_argnames="method")(ask)
_grow = functools.partial(jax.jit, static_argnames="method", donate_argnames="tree")(grow)


def _search_on_host(
    tree: Tree,
    expand_fn: ExpandFn,
    num_simulations: int,
    method: Method,
    keys: jax.Array | None,
    stop_fn: Callable[[Tree], jax.Array] | None,
    on_simulation: Callable[[int, Tree], None] | None,
) -> Tree:
    tree = jax.tree.map(jnp.copy, tree)  # the steps below reuse its memory
    for number in range(num_simulations):
        if bool(_all_closed(tree)):
            break
        selection, leaf = _ask(tree, method, number, keys)
        asked = leaf._replace(**{name: np.asarray(getattr(leaf, name)) for name in _HOST_FIELDS})
        answer = expand_fn(asked) if asked.ok.any() else _no_answer(tree, selection, method)
        answer = _checked_shapes(answer, tree, selection, method)
        _check_finite(answer, asked)
        tree, _ = _grow(tree, selection, answer, method)
        if stop_fn is not None:
            tree = close(tree, jnp.zeros((tree.batch,), jnp.int32), stop_fn(tree))
        if on_simulation is not None:
            on_simulation(number + 1, jax.tree.map(jnp.copy, tree))  # the next step takes the memory of its own
    check_tree(tree)
    return tree


def _no_answer(tree: Tree, selection: Selection, method: Method) -> Expansion:
    """What stands for an answer when no question asked: nothing of it is used."""
    shape = (*selection.leaf.shape, method.width)
    state = jax.tree.map(lambda x: np.zeros((*shape, *x.shape[2:]), x.dtype), tree.state)
    nothing = np.zeros(shape, np.float32)
    return Expansion(nothing, nothing, nothing != 0, nothing != 0, state=state)


def _check_finite(answer: Expansion, leaf: Leaf) -> None:
    """Refuses NaN and infinity by question, node and child."""
    for name in ("prior", "value", "reward", "node_value"):
        part = getattr(answer, name)
        if part is None:
            continue
        used = np.asarray(leaf.ok)
        if name != "node_value":
            used = used[..., None] & (np.asarray(answer.valid) != 0)
        bad = np.argwhere(used & ~np.isfinite(np.asarray(part)))
        if len(bad):
            place = tuple(int(i) for i in bad[0])
            node = int(leaf.node[place[: leaf.node.ndim]])
            child = "" if name == "node_value" else f", child {place[-1]}"
            raise UserError(
                f"the evaluator's {name!r} is {np.asarray(part)[place]} for question {place[0]}, node {node}{child}: "
                "it must return finite numbers, or mark the child as not valid"
            )
