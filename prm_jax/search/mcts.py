"""Tree search: select, evaluate, expand and back up, many times.

`search` runs it with an evaluator that is either a JAX function, in one compiled loop, or a function on the host (a
language model in a loop or on a server). Loops of your own call the same two steps, `ask` and `grow`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.search.backups import Rule
from prm_jax.search.evaluation import ExpandFn, check_finite, checked_shapes, no_answer
from prm_jax.search.growth import ask, evaluate, grow, take_in
from prm_jax.search.method import Method
from prm_jax.search.scores import ScoreFn
from prm_jax.search.selection import split_keys
from prm_jax.search.tree import Tree, check_tree, close
from prm_jax.varying import align


@dataclasses.dataclass(frozen=True)
class SearchHooks:
    """What is called during a search.

    Attributes:
      stop_fn: tree -> [B] bool, called after each simulation; True ends a question's search.
      on_simulation: with ``host=True`` only: called with (number of simulations done, tree) after each; the tree may be
        kept.
    """

    stop_fn: Callable[[Tree], jax.Array] | None = None
    on_simulation: Callable[[int, Tree], None] | None = None


def search(
    tree: Tree,
    expand_fn: ExpandFn,
    num_simulations: int | jax.Array,
    score_fn: ScoreFn | Method,
    rule: Rule = "mean",
    *,
    width: int | None = None,
    max_depth: int | None = None,
    key: jax.Array | None = None,
    host: bool = False,
    hooks: SearchHooks = SearchHooks(),
) -> Tree:
    """Runs simulations: each selects a leaf of every question, has it evaluated, expands it and backs up.

    A simulation that finds a question finished (its root closed), its tree full, or nothing but closed children only
    closes the node where it got stuck. A question's tree depends on its own key and answers, not on the others.

    Args:
      tree: where to begin: `init_tree`, an earlier result, or `reroot` of one.
      expand_fn: the evaluator, from `Leaf` to `Expansion`; not called when no question needs it. A JAX function is
        traced once; call `search` under `jax.jit` to compile once for many calls. With `host` it may do anything, and
        gets NumPy arrays except for the key and the state, which stay on their device.
      num_simulations: n >= 0; may be traced, so that other values need no new compilation, but not with `host`.
      score_fn: a `Method` with all constants of the search; or a score rule, with `rule`, `width` and `max_depth`.
      rule: see `Method`.
      width: see `Method`.
      max_depth: see `Method`.
      key: typed PRNG key, or one per question [B], consumed. It breaks ties at random and is passed to `expand_fn`;
        with None the first of equals is taken.
      host: `expand_fn` runs on the host, in a Python loop around compiled steps.
      hooks: functions to call during the search.

    Returns:
      `Tree`. `dropped` counts expansions that did not fit.

    Raises:
      UserError: an answer with a NaN or infinity; under `jax.jit` it is counted in `Tree.refused` instead, see
        `check_tree`.
      ValueError: an answer of the wrong shape, or constants that are missing, given twice, or out of range.
    """
    method = _method(score_fn, rule, width, max_depth)
    keys = None if key is None else split_keys(key, tree.batch)
    if isinstance(num_simulations, int) and num_simulations < 0:
        raise ValueError(f"num_simulations={num_simulations}; expected a number of at least 0")
    if host:
        return _search_on_host(tree, expand_fn, int(num_simulations), method, keys, hooks)
    if hooks.on_simulation is not None:
        raise ValueError("on_simulation is called by searches with host=True only")
    tree = _search_compiled(tree, expand_fn, num_simulations, method, keys, hooks)
    if not isinstance(tree.refused, jax.core.Tracer):
        check_tree(tree)
    return tree


def _method(score_fn: ScoreFn | Method, rule: Rule, width: int | None, max_depth: int | None) -> Method:
    if isinstance(score_fn, Method):
        if (rule, width, max_depth) != ("mean", None, None):
            raise ValueError("rule, width and max_depth are constants of the Method: leave them out with a Method")
        return score_fn
    if width is None or max_depth is None:
        raise ValueError("a search needs width and max_depth: give both, or a Method instead of the score rule")
    return Method(score_fn, width, max_depth, rule)


def _search_compiled(
    tree: Tree, expand_fn: ExpandFn, num_simulations: int | jax.Array, method: Method, keys: jax.Array | None,
    hooks: SearchHooks,
) -> Tree:  # fmt: skip
    tree, keys = align((tree, keys))  # under shard_map the types of a loop's carry must not change

    def more(carry: tuple[jax.Array, Tree]) -> jax.Array:
        return (carry[0] < num_simulations) & ~_all_closed(carry[1])

    def simulate(carry: tuple[jax.Array, Tree]) -> tuple[jax.Array, Tree]:
        number, tree = carry
        selection, leaf = ask(tree, method, number, keys)
        place, expansion = evaluate(tree, selection, leaf, expand_fn, method)
        if place is None:
            tree, _ = grow(tree, selection, expansion, method)
        else:
            tree, _ = take_in(tree, selection, place, expansion, method)
        return number + 1, _stopped(tree, hooks)

    return jax.lax.while_loop(more, simulate, (jnp.int32(0), tree))[1]


def _stopped(tree: Tree, hooks: SearchHooks) -> Tree:
    if hooks.stop_fn is None:
        return tree
    return close(tree, jnp.zeros((tree.batch,), jnp.int32), hooks.stop_fn(tree))


def _all_closed(tree: Tree) -> jax.Array:
    return jnp.all(tree.closed[:, 0] | ~tree.has_root)


_HOST_FIELDS = ("node", "depth", "ok", "simulation")
_ask = functools.partial(jax.jit, static_argnames="method")(ask)
_grow = functools.partial(jax.jit, static_argnames="method", donate_argnames="tree")(grow)


def _search_on_host(
    tree: Tree, expand_fn: ExpandFn, num_simulations: int, method: Method, keys: jax.Array | None, hooks: SearchHooks
) -> Tree:
    tree = jax.tree.map(jnp.copy, tree)  # the steps below reuse its memory
    for number in range(num_simulations):
        if bool(_all_closed(tree)):
            break
        selection, leaf = _ask(tree, method, number, keys)
        asked = leaf._replace(**{name: np.asarray(getattr(leaf, name)) for name in _HOST_FIELDS})
        lead = selection.leaf.shape
        answer = expand_fn(asked) if asked.ok.any() else no_answer(tree, lead, method.width)
        answer = checked_shapes(answer, tree, lead, method.width)
        check_finite(answer, asked)
        tree, _ = _grow(tree, selection, answer, method)
        tree = _stopped(tree, hooks)
        if hooks.on_simulation is not None:
            hooks.on_simulation(number + 1, jax.tree.map(jnp.copy, tree))  # the next step reuses the tree's own memory
    check_tree(tree)
    return tree
