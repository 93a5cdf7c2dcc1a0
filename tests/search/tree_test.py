"""Trees of arrays against trees of objects, node for node, and what leaves a tree as it is."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prm_jax import search as s
from tests.search import oracle
from tests.search.trees import DEPTH, FULL, ROWS, SEEDS, SIMS, assert_equal_trees, evaluator, run, start

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
    "two players": (s.puct(1.25, discount=-1.0), oracle.puct(1.25, -1.0), {"discount": -1.0}, {"rewards": True}),
    "two players, answers again": (
        s.puct(1.25, discount=-1.0), oracle.puct(1.25, -1.0), {"discount": -1.0, "revisit": True}, {"ends": 0.3}
    ),
    "two players, mean of the children": (
        s.ucb1(0.7, initial="value", unvisited=1.0, discount=-1.0),
        oracle.ucb1(0.7, 2, 1.0, True, -1.0),
        {"rule": "child_mean", "returns": "children", "discount": -1.0},
        {"rewards": True},
    ),
    "max": (s.puct(0.5), oracle.puct(0.5), {"rule": "max", "returns": "children"}, {}),
    "blueprint": (
        s.minmax(s.blueprint()),
        oracle.blueprint(1.25, 19652.0),
        {"rule": "child_mean", "returns": "children", "discount": 0.96},
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_a_tree_of_objects(name):
    capacity = {"mean of the children": 40, "max": 40}.get(name, FULL)  # two of them overflow
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


@pytest.mark.optional
def test_equals_mctx():
    """One leaf at a time with MuZero's constants: the same visits as mctx's policy, child by child."""
    mctx = pytest.importorskip("mctx", reason="needs mctx (pip install mctx)")
    problem = dataclasses.replace(oracle.Problem(width=4, rewards=True), ends=0.0, holes=0.0)
    seeds = jnp.asarray(SEEDS)

    def recurrent(params, key, action, state):
        pick = lambda x: jnp.take_along_axis(x, action[:, None], 1)[:, 0]  # noqa: E731
        child, _, _, _, _, reward = problem.answer(state, jnp)
        state = pick(child)
        prior = problem.answer(state, jnp)[1]
        out = mctx.RecurrentFnOutput(
            reward=pick(reward), discount=jnp.full(ROWS, 0.9), prior_logits=jnp.log(prior + 1e-3),
            value=problem.own(state),
        )  # fmt: skip
        return out, state

    root = mctx.RootFnOutput(
        prior_logits=jnp.log(problem.answer(seeds, jnp)[1] + 1e-3), value=problem.own(seeds), embedding=seeds
    )
    theirs = jax.jit(
        lambda root: mctx.muzero_policy(
            (), jax.random.key(0), root, recurrent, num_simulations=24, max_depth=20, dirichlet_fraction=0.0
        ).search_tree
    )(root)

    def expand_fn(leaf):
        child, prior, value, terminal, valid, reward = problem.answer(leaf.state, jnp)
        prior = jax.nn.softmax(jnp.log(prior + 1e-3))
        return s.Expansion(prior, value, terminal, valid, reward, problem.own(leaf.state), child)

    score = s.minmax(s.alphazero(discount=0.9), over="parent")
    method = s.Method(score, width=4, max_depth=21, discount=0.9)
    ours = jax.jit(lambda tree: s.search(tree, expand_fn, 25, method))(start(problem, 1 + 4 * 25))
    np.testing.assert_array_equal(ours.visits[:, 0], theirs.node_visits[:, 0])
    np.testing.assert_array_equal(ours.visits[:, 1:5], theirs.children_visits[:, 0])
    for b in range(ROWS):
        state = {int(x): float(n) for x, n in zip(ours.state[b], ours.visits[b], strict=True) if n > 0}
        other = {int(x): float(n) for x, n in zip(theirs.embeddings[b], theirs.node_visits[b], strict=True) if n > 0}
        assert state == other


def test_a_question_does_not_see_the_others():
    """Batched equals one at a time, with random ties too; padding stays empty."""
    keys = jax.random.split(jax.random.key(3), ROWS)
    problem = oracle.Problem()
    active = np.arange(ROWS) % 5 != 2
    together = run(start(problem, FULL, active=active), keys, problem=problem, sims=20)
    for b in (0, 2, 7):
        seeds = np.full(ROWS, SEEDS[b])  # the same question everywhere, so that one program serves
        same = run(start(problem, FULL, seeds, active=np.full(ROWS, active[b])), keys[np.full(ROWS, b)], sims=20)
        one, other = [x[b] for x in jax.tree.leaves(together)], [x[0] for x in jax.tree.leaves(same)]
        assert_equal_trees(one, other)
    assert not np.any(together.visits[2]) and together.count[2] == 0


def test_the_host_loop_equals_the_compiled_one():
    problem, asked = oracle.Problem(), []

    def on_host(leaf):
        assert isinstance(leaf.node, np.ndarray)
        asked.append(int(leaf.ok.sum()))
        child, prior, value, terminal, valid, _ = problem.answer(np.asarray(leaf.state))
        return s.Expansion(prior, value, terminal, valid, state=child)

    seen, kept = [], []
    tree = s.search(
        start(problem, FULL), on_host, 20, s.puct(1.25), width=3, max_depth=DEPTH, host=True,
        hooks=s.SearchHooks(on_simulation=lambda number, tree: (seen.append(number), kept.append(tree))),
    )  # fmt: skip
    assert_equal_trees(tree, run(start(problem, FULL), sims=20))
    assert asked[0] == ROWS and seen == list(range(1, 21))
    # A tree that was shown can be kept: the steps after it do not take its memory.
    assert_equal_trees(kept[7], run(start(problem, FULL), sims=8))
    assert_equal_trees(kept[-1], tree)


@pytest.mark.slow
def test_jit_changes_nothing():
    problem = oracle.Problem()
    with jax.disable_jit():
        slow = s.search(start(problem, 13, SEEDS[:2]), evaluator(problem), 4, s.puct(1.25), width=3, max_depth=DEPTH)
    fast = run(start(problem, 13, SEEDS[:2]), sims=4)
    np.testing.assert_allclose(slow.value_sum, fast.value_sum, rtol=1e-6)
    assert_equal_trees(slow.visits, fast.visits)


def test_several_leaves_at_once():
    """Leaves of one simulation differ; the tree stays one: visits of a node cover those of its children."""
    problem = oracle.Problem(ends=0.1)
    tree = run(start(problem, FULL), problem=problem, sims=10, options=(("leaves", 3),))
    visits, parent, total = (np.asarray(x) for x in (tree.visits, tree.parent, tree.value_sum))
    assert np.median(tree.count) > 1 + 3 * 12  # more than one leaf a simulation
    # No virtual visit is left: a node's visits are its own one, if it was expanded or is an end, and its children's.
    rows, nodes = np.nonzero(parent >= 0)
    for field, own in ((visits, 1.0), (total, np.asarray(tree.value))):
        below = np.zeros(field.shape)
        np.add.at(below, (rows, parent[rows, nodes]), field[rows, nodes])
        np.testing.assert_allclose(field, np.where(visits > 0, own + below, 0), atol=1e-5)


def test_leaves_of_one_simulation_differ():
    problem = oracle.Problem(ends=0.0, holes=0.0)
    tree = run(start(problem, FULL), problem=problem, sims=6)
    leaf, path, ok = jax.jit(lambda tree: s.select(tree, s.puct(1.25), DEPTH, 3, leaves=4))(tree)
    assert leaf.shape == (ROWS, 4) and path.shape == (ROWS, 4, DEPTH + 1)
    for row, good in zip(np.asarray(leaf), np.asarray(ok), strict=True):
        assert len(set(row[good])) == good.sum() >= 2
    assert np.all(ok[:, 0])


def test_reroot():
    problem = oracle.Problem()
    tree = jax.tree.map(np.asarray, run(start(problem, FULL), problem=problem))
    child = np.array(s.best_path(tree, "visits", max_depth=2))[:, 1]
    child[3] = -1
    new, old = jax.tree.map(np.asarray, jax.jit(s.reroot)(tree, child))
    for b in range(ROWS):
        keep = []
        for n in np.flatnonzero(tree.valid[b]) if child[b] >= 0 else ():
            keep += [n] if child[b] in ancestors(tree, b, n) else []
        assert [n for n in np.asarray(old)[b] if n >= 0] == keep
        assert int(new.count[b]) == len(keep)
        for slot, n in enumerate(keep):
            for name in ("visits", "value_sum", "value", "prior", "terminal", "closed", "state"):
                assert getattr(new, name)[b, slot] == getattr(tree, name)[b, n], name
            assert int(new.depth[b, slot]) == int(tree.depth[b, n] - tree.depth[b, child[b]])
            if slot:
                assert keep[int(new.parent[b, slot])] == int(tree.parent[b, n])
        assert not np.any(np.asarray(new.valid)[b, len(keep) :]) and not np.any(np.asarray(new.visits)[b, len(keep) :])
    # And the search goes on from there.
    again = run(new, problem=problem, sims=10)
    assert int(again.count[3]) == 0 and np.all(np.asarray(again.visits[:, 0]) >= np.asarray(new.visits[:, 0]))
    assert np.any(np.asarray(again.count) > np.asarray(new.count))
    slow = ancestors(again, 0, int(again.count[0]) - 1)
    assert slow[-1] == 0
    np.testing.assert_array_equal(jax.jit(s.reroot)(tree, np.zeros(ROWS, int))[0].visits.sum(1), tree.visits.sum(1))


def test_reroot_moves_keys():
    """PRNG keys are a state as any other."""
    keys = jax.random.split(jax.random.key(0), 4).reshape(2, 2)
    ones = jnp.ones((2, 2))
    tree = s.init_tree(2, 5, state=keys[:, 0])
    tree, _ = s.expand(tree, [0, 0], ones, ones, ones == 0, ones > 0, [True] * 2, state=keys)
    new, _ = jax.jit(s.reroot)(tree, [2, -1])
    held = jax.random.key_data(new.state)
    np.testing.assert_array_equal(held[0, 0], jax.random.key_data(keys[0, 1]))
    assert not np.any(held[0, 1:]) and not np.any(held[1])


def ancestors(tree, b, node):
    out = [node]
    while tree.parent[b, out[-1]] >= 0:
        out.append(int(tree.parent[b, out[-1]]))
    return out


def test_stop_ends_a_question():
    problem = oracle.Problem()

    def stop(tree):
        return jnp.max(jnp.where(tree.terminal, tree.value, -1), 1) >= 0.5

    tree = run(start(problem, FULL), problem=problem, stop_fn=stop)
    free = run(start(problem, FULL), problem=problem)
    stopped = np.asarray(stop(tree))
    assert np.all(tree.closed[stopped, 0]) and np.any(tree.visits[:, 0] < free.visits[:, 0])
    np.testing.assert_array_equal(tree.visits[~stopped], free.visits[~stopped])


@pytest.mark.parametrize("name", ["search", "keys, two leaves", "mean of the children", "reroot", "labels"])
def test_questions_on_several_devices_exchange_nothing(name):
    """Divided by the batch, a tree stays where it is: devices only agree on when to end."""
    problem, questions = oracle.Problem(), 16

    def searched(state, key=None, **constants):
        def expand(leaf):
            child, prior, value, terminal, valid, _ = problem.answer(leaf.state, jnp)
            return s.Expansion(prior, value, terminal, valid, state=child)

        tree = s.init_tree(questions, 40, state=state)
        return s.search(tree, expand, 12, s.Method(s.minmax(s.puct()), width=3, max_depth=5, **constants), key=key)

    def run(state):
        if name == "keys, two leaves":
            return searched(state, leaves=2, key=jax.random.key(0))
        if name == "mean of the children":
            return searched(state, rule="child_mean", discount=0.9)
        tree = searched(state)
        if name == "reroot":
            return s.reroot(tree, s.best_path(tree, max_depth=5)[:, 1])
        if name == "labels":
            return s.tree_labels(tree, tree.terminal & (tree.value > 0), how="soft"), s.paths_to(
                tree, jnp.argmax(tree.visits[:, 1:], axis=1) + 1, max_depth=5
            )
        return tree

    split = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("data",)), PartitionSpec("data"))
    state = jnp.arange(questions, dtype=jnp.uint32)
    compiled = jax.jit(run, in_shardings=split, out_shardings=split).lower(state).compile()
    exchanged = re.findall(r"= ([^=]+) (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", compiled.as_text())
    assert {shape for shape, _ in exchanged} <= {"pred[]", "s32[]"}
    jax.tree.map(
        lambda here, there: np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-6),
        compiled(jax.device_put(state, split)), jax.jit(run)(state),
    )  # fmt: skip


@pytest.mark.parametrize("leaves", [None, 2])
def test_with_64_bits(leaves):
    """Numbers of 64 bits around it change nothing."""
    problem = oracle.Problem()
    expected = run(start(problem, FULL), problem=problem, options=(("leaves", leaves),))
    with jax.enable_x64(True):
        found = run(start(problem, FULL), problem=problem, options=(("leaves", leaves),))
    np.testing.assert_array_equal(found.visits, expected.visits)
    assert found.parent.dtype == jnp.int32 and found.value_sum.dtype == jnp.float32
    with jax.enable_x64(True):
        assert s.children(found, np.zeros(ROWS, int), 3)[0].dtype == jnp.int32


@pytest.mark.parametrize("options", [{}, {"leaves": 2}, {"rule": "child_mean", "discount": 0.9}, {"random": True}])
def test_devices_that_do_not_wait_for_each_other(options):
    """Under shard_map, with its types checked, each device searches its own questions."""
    problem, options = oracle.Problem(), dict(options)
    random = options.pop("random", False)

    def run(state, keys):
        tree = s.init_tree(len(state), 40, state=state)
        key = keys if random else None
        return s.search(tree, evaluator(problem), 12, s.Method(s.puct(), width=3, max_depth=5, **options), key=key)

    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    apart = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")))
    given = jnp.arange(16, dtype=jnp.uint32), jax.random.split(jax.random.key(0), 16)
    assert not re.search(r"(all-\w+|collective-\w+)\(", apart.lower(*given).compile().as_text())
    jax.tree.map(
        lambda here, there: np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-6),
        apart(*given), jax.jit(run)(*given),
    )  # fmt: skip
