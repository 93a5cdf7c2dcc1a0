"""Trees for the tests of this folder: of the problems in ``oracle``, searched by one compiled program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import search as s
from tests.search import oracle

ROWS, SIMS, DEPTH = 12, 30, 5
FULL = 1 + 3 * SIMS
SEEDS = np.arange(1, ROWS + 1, dtype=np.uint32) * 7919


def evaluator(problem, *, own=False):
    def expand_fn(leaf):
        child, prior, value, terminal, valid, reward = problem.answer(leaf.state, jnp)
        node_value = problem.own(leaf.state) if own else None
        return s.Expansion(prior, value, terminal, valid, reward, node_value, state=child)

    return expand_fn


def start(problem, capacity, seeds=SEEDS, **options):
    seeds = jnp.asarray(seeds)
    return s.init_tree(len(seeds), capacity, value=problem.own(seeds), state=seeds, **options)


@functools.partial(jax.jit, static_argnames=("score", "options", "stop_fn"))
def run(tree, key=None, *, problem=oracle.Problem(), sims=SIMS, score=s.puct(1.25), options=(), stop_fn=None):
    """Everything that may differ without another compilation is an argument of the program."""
    method = s.Method(score, **{"width": problem.width, "max_depth": DEPTH, **dict(options)})
    return s.search(tree, evaluator(problem), sims, method, key=key, hooks=s.SearchHooks(stop_fn))


def assert_equal_trees(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def hand_tree(parent, width=2):
    """A tree with the given parents, children in neighbouring slots; also the slot of each node."""
    slots, count, first = [0], 1, {}
    for node, above in enumerate(parent):
        if above < 0:
            continue
        if above not in first:
            first[above], count = count, count + width
        slots.append(first[above] + sum(other == above for other in parent[:node]))
    tree = s.init_tree(1, count)
    for node in first:
        kids = np.isin(np.arange(first[node], first[node] + width), slots)[None]
        zeros = np.zeros((1, width))
        tree, _ = s.expand(tree, [slots[node]], zeros, zeros, zeros, kids, [True])
    return tree, np.array(slots)
