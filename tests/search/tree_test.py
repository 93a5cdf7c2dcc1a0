"""Trees of arrays against trees of objects, node for node, and the rules that hold for every tree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import search as s
from prm_jax.errors import UserError
from tests.search import oracle

ROWS, SIMS, DEPTH = 12, 30, 5
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


@functools.partial(jax.jit, static_argnames=("problem", "sims", "score", "options"))
def run(tree, key=None, *, problem=oracle.Problem(), sims=SIMS, score=s.puct(1.25), options=()):
    options = {"width": problem.width, "max_depth": DEPTH, "returns": "leaf", **dict(options)}
    return s.search(tree, evaluator(problem), sims, score, key=key, **options)


CASES = {
    "alphamath": (s.puct(1.25), oracle.puct(1.25), {}, {}),
    "mean of the children": (s.puct(1.5), oracle.puct(1.5), {"returns": "children"}, {}),
    "alphazero with rewards": (
        s.alphazero(1.25, 100.0, discount=0.9),
        oracle.alphazero(1.25, 100.0, 0.9),
        {"discount": 0.9},
        {"rewards": True},
    ),
    "rest-mcts": (
        s.ucb1(0.7, unvisited=1.0, initial="value"),
        oracle.ucb1(0.7, 2, 1.0, True),
        {"rule": "child_mean", "returns": "children"},
        {},
    ),
    "every child once": (s.ucb1(2.0, two=1.0), oracle.ucb1(2.0, 1, float("inf")), {}, {}),
    "rstar-math": (s.ucb1(2.0, two=1.0, unvisited=0.0), oracle.ucb1(2.0, 1, 0.0), {"returns": "children"}, {}),
    "max": (s.puct(0.5), oracle.puct(0.5), {"rule": "max", "returns": "children"}, {}),
    "blueprint": (
        s.minmax(s.blueprint()),
        oracle.blueprint(1.25, 19652.0),
        {"rule": "child_mean", "returns": "children", "discount": 0.96},
        {},
    ),
}


@pytest.mark.parametrize("capacity", [1 + 3 * SIMS, 40])
@pytest.mark.parametrize("name", CASES)
def test_equals_a_tree_of_objects(name, capacity):
    score, slow_score, options, kind = CASES[name]
    problem = oracle.Problem(**kind)
    tree = run(start(problem, capacity), problem=problem, score=score, options=tuple(options.items()))
    tree = jax.tree.map(np.asarray, tree)
    q = np.asarray(s.q_values(tree))
    slow_options = {"rule": "mean", "returns": "leaf", "discount": 1.0, **options}
    for b, seed in enumerate(SEEDS):
        slow = oracle.Search(problem, seed, slow_score, capacity=capacity, max_depth=DEPTH, **slow_options)
        for _ in range(SIMS):
            slow.simulate()
        slots = [node.slot for node in slow.nodes]
        assert sorted(slots) == np.flatnonzero(tree.valid[b]).tolist()
        np.testing.assert_array_equal(tree.visits[b, slots], [node.visits for node in slow.nodes])
        np.testing.assert_allclose(q[b, slots], [node.q for node in slow.nodes], rtol=2e-5, atol=2e-6)
        best = [max(node.returns, default=node.value if node.visits else -np.inf) for node in slow.nodes]
        np.testing.assert_allclose(tree.value_max[b, slots], best, rtol=2e-5, atol=2e-6)
        np.testing.assert_array_equal(tree.terminal[b, slots], [node.terminal for node in slow.nodes])
        np.testing.assert_array_equal(tree.closed[b, slots], [node.closed for node in slow.nodes])
        np.testing.assert_array_equal(tree.depth[b, slots], [node.depth for node in slow.nodes])
        parents = [-1 if node.parent is None else node.parent.slot for node in slow.nodes]
        np.testing.assert_array_equal(tree.parent[b, slots], parents)
        np.testing.assert_array_equal(tree.state[b, slots], [node.state for node in slow.nodes])
        assert tree.count[b] == slow.used and (tree.dropped[b] > 0) == (slow.dropped > 0)
