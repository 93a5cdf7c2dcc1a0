"""Trees of arrays against trees of objects, node for node, and the rules that hold for every tree."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prm_jax import search as s
from prm_jax.errors import UserError
from tests.search import oracle
from tests.search.golden import load

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


def golden(name):
    return load()[name]


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


def one_node(case):
    """A root with the case's children and statistics, padded with slots that are no children."""
    n = len(case["visits"])

    def row(entries):
        return np.array([[*entries, *[0] * (WIDTH - len(entries))]], np.float32)

    prior, value = case.get("prior", []), case.get("params", {}).get("prior_value", [])
    answer = (row(prior), row(value), row(case.get("terminal", [])), row(np.ones(n)))
    tree, _ = expand(s.init_tree(1, 1 + WIDTH), [0], *answer, [True])
    total = case.get("value_sum", np.multiply(case.get("q", 0), case["visits"]))
    stats = {"visits": [[case["parent_visits"], *row(case["visits"])[0]]], "value_sum": [[0, *row(total)[0]]]}
    return dataclasses.replace(tree, **{k: jnp.array(v, jnp.float32) for k, v in stats.items()}), n


WIDTH = 5
expand = jax.jit(s.expand)
select = jax.jit(s.select, static_argnums=(1, 2, 3))
child_scores = jax.jit(s.child_scores, static_argnums=2, static_argnames="width")


def rule_of(case):
    c, p = case["params"].get("c"), case["params"]
    if case["rule"] == "puct":
        return s.puct(c)
    if case["rule"] == "alphazero":
        return s.alphazero(p["c1"], p["c2"], unvisited="value" if "prior_value" in p else 0.0)
    return s.ucb1(c, two=2.0 if case["rule"] == "uct2" else 1.0, unvisited=0.0 if "zero" in case["rule"] else "inf")


def test_published_child_scores():
    for case in golden("puct")["cases"]:
        tree, n = one_node(case)
        scores, kids = child_scores(tree, [0], rule_of(case), width=WIDTH)
        np.testing.assert_array_equal(kids, [[1, 2, 3, 4, 5]])
        np.testing.assert_allclose(scores[0], [*map(float, case["score"]), *[-np.inf] * (WIDTH - n)], rtol=1e-5)
        leaf, path, ok = select(tree, rule_of(case), 2, WIDTH)
        found = case["argmax"] >= 0
        assert bool(ok[0]) == found and int(leaf[0]) == (1 + case["argmax"] if found else 0)
        assert path.tolist() == [[0, int(leaf[0]) if found else -1, -1]]


def test_published_blueprint():
    case = golden("x1_blueprint")
    tree, n = one_node(case)
    scores, _ = child_scores(tree, [0], s.minmax(s.blueprint()), width=WIDTH)
    np.testing.assert_allclose(scores[0, :n], case["score"], rtol=1e-5)
    assert int(np.argmax(scores[0])) == case["argmax"]
    # One more visit of the root at rate 1 replaces its value by the discounted mean of the children's.
    new = s.backup(tree, [[0]], [0.0], 1.0, "child_mean", case["backup"]["gamma"], rate=case["backup"]["lr"])
    np.testing.assert_allclose(s.q_values(new)[0, 0], case["backup"]["out"], rtol=1e-5)
    old = 5 * case["backup"]["q_old"]
    half = dataclasses.replace(tree, value_sum=tree.value_sum.at[0, 0].set(old))
    half = s.backup(half, [[0]], [0.0], 1.0, "child_mean", case["backup"]["gamma"], rate=0.5)
    np.testing.assert_allclose(s.q_values(half)[0, 0], 0.5 * case["backup"]["q_old"] + 0.5 * 0.216, rtol=1e-5)


@pytest.mark.parametrize("rule", ["mean", "child_mean", "max", "discounted"])
def test_published_backups(rule):
    case = golden("backup")
    tree, slots = hand_tree(case["parent"])
    if rule == "max":
        steps = [{"leaf": e["leaf"], "value": e["value"]} for e in case["mean"]]
    elif rule == "discounted":
        steps = [{"leaf": leaf, "value": value} for leaf, value in case["discounted"]["leaf_values"]]
        reward = np.zeros(tree.reward.shape, np.float32)
        reward[0, slots] = case["discounted"]["reward"]
        tree = dataclasses.replace(tree, reward=jnp.asarray(reward))
    else:
        steps = case[rule]
    step = jax.jit(
        lambda tree, leaf, value: s.backup(
            tree,
            s.paths_to(tree, leaf, max_depth=3),
            value,
            rule="mean" if rule == "discounted" else rule,
            discount=case["discounted"]["gamma"] if rule == "discounted" else 1.0,
        )
    )
    for each in steps:
        tree = step(tree, slots[[each["leaf"]]], jnp.float32([each["value"]]))
        if "V" in each:
            np.testing.assert_allclose(s.q_values(tree)[0, slots], each["V"], rtol=1e-5, atol=1e-7)
        if "value_sum" in each:
            np.testing.assert_allclose(tree.value_sum[0, slots], each["value_sum"], rtol=1e-5, atol=1e-7)
        if "visits" in each:
            np.testing.assert_array_equal(tree.visits[0, slots], each["visits"])
    if rule == "max":
        np.testing.assert_allclose(s.q_values(tree)[0, slots], case["max"], rtol=1e-6)
        np.testing.assert_allclose(tree.value_max[0, slots], case["max"], rtol=1e-6)
    if rule == "discounted":
        np.testing.assert_allclose(s.q_values(tree)[0, slots], case["discounted"]["node_mean"], rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(tree.visits[0, slots], case["discounted"]["visits"])


def family(questions=1, capacity=9):
    """A root with two children, the first of which has two."""
    ones = jnp.ones((questions, 2))
    tree = s.init_tree(questions, capacity)
    for leaf in (0, 1):
        tree, _ = s.expand(tree, [leaf] * questions, ones, ones, ones == 0, ones > 0, [True] * questions)
    return tree


def test_visits_may_be_fractions():
    """A weight is a share of a visit as well as a number of them: means do not change when all weights are scaled."""
    for scale in (1.0, 0.125):
        tree = family()
        for path, value, weight in (([0, 1, 3], 0.4, 2.0), ([0, 2, -1], 0.8, 1.0), ([0, 1, 4], -0.2, 1.0)):
            tree = s.backup(tree, [path], [value], [scale * weight], "child_mean", width=2)
        np.testing.assert_allclose(tree.visits[0, :5], np.multiply(scale, [4, 3, 1, 2, 1]), rtol=1e-6)
        np.testing.assert_allclose(s.q_values(tree)[0, :5], [0.35, 0.2, 0.8, 0.4, -0.2], rtol=1e-6)
        half = s.backup(tree, [[0, 2, -1]], [0.0], [scale], "child_mean", rate=0.5)
        np.testing.assert_allclose(s.q_values(half)[0, [0, 2]], [(0.35 + 0.2 * 3 / 5) / 2, 0.0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("questions", [1, 2])
def test_backups_that_change_nothing(questions):
    tree = family(questions)
    for path in ([0, 7], [0, 9], [7, -1], [-1, 0]):
        assert_equal_trees(s.backup(tree, [path] * questions, [1.0] * questions), tree)
    for weight in (np.nan, np.inf):
        found = s.backup(tree, [[0, 1]] * questions, [1.0] * questions, weight)
        np.testing.assert_array_equal(found.refused, 1)
        assert_equal_trees(dataclasses.replace(found, refused=tree.refused), tree)


@pytest.mark.parametrize("questions", [1, 2])
def test_paths_to_nodes(questions):
    tree = family(questions)
    none = [-1, -1, -1]
    for node, path in ((4, [0, 1, 4]), (2, [0, 2, -1]), (0, [0, -1, -1]), (-1, none), (7, none), (99, none)):
        assert s.paths_to(tree, [node] * questions, max_depth=2).tolist() == [path] * questions
    assert s.paths_to(tree, [4] * questions, max_depth=1).tolist() == [[-1, -1]] * questions  # it does not fit


def assert_equal_trees(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


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


def test_random_ties():
    """Without a key the first of equals is taken; with one every child is, about as often."""
    z = np.zeros((512, 4))
    tree, _ = expand(s.init_tree(512, 5), np.zeros(512, int), z, z, z, z == 0, np.ones(512))
    assert set(select(tree, s.puct(1.0), 2, 4).leaf.tolist()) == {1}
    leaf = select(tree, s.puct(1.0), 2, 4, jax.random.key(0)).leaf
    assert np.min(np.bincount(leaf, minlength=5)[1:]) > 90
    with pytest.raises(TypeError, match="jax.random.key"):
        s.select(tree, s.puct(1.0), 2, 4, jnp.zeros(2, jnp.uint32))


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


def test_best_path():
    tree, slots = hand_tree([-1, 0, 0, 1, 1, 2, 3])
    stats = {"visits": [9, 6, 2, 1, 4, 2, 1], "value_sum": [0, 3, 1.8, 0.9, 1, 1.8, 0.9], "value_max": [1] * 7}
    for name, entries in stats.items():
        field = np.zeros(tree.parent.shape, np.float32)
        field[0, slots] = entries
        tree = dataclasses.replace(tree, **{name: jnp.asarray(field)})
    find = lambda key: [slots.tolist().index(n) if n >= 0 else -1 for n in s.best_path(tree, key)[0].tolist()]  # noqa: E731
    assert find("visits") == [0, 1, 4, -1]
    assert find("q") == [0, 2, 5, -1]
    assert find("max") == [0, 1, 3, 6]
    with pytest.raises(ValueError, match="key='value'"):
        s.best_path(tree, "value")


def test_all_children_terminal_at_the_root():
    """They are backed up once, the root closes, and the remaining simulations change nothing."""
    problem = oracle.Problem(ends=1.1, holes=0.0)
    tree = run(start(problem, FULL), problem=problem)
    assert np.all(tree.closed[:, 0]) and not np.any(tree.terminal[:, 0])
    np.testing.assert_array_equal(tree.visits.sum(1), 4 + 3)
    np.testing.assert_array_equal(tree.count, 4)


def test_no_valid_child():
    problem = oracle.Problem(holes=1.1)
    tree = run(start(problem, FULL), problem=problem)
    assert np.all(tree.closed[:, 0]) and not np.any(tree.first_child >= 0)
    np.testing.assert_array_equal(tree.count, 1)
    np.testing.assert_array_equal(tree.visits[:, 0], 1)
    np.testing.assert_array_equal(tree.value_sum[:, 0], tree.value[:, 0])


def test_a_full_tree_stays_as_it_is():
    problem = oracle.Problem()
    once = run(start(problem, 40), problem=problem)
    more = run(once, problem=problem)
    full = np.asarray(once.dropped) > 0
    assert full.sum() > 3
    assert np.all(np.asarray(more.dropped)[full] == np.asarray(once.dropped)[full] + SIMS)
    rows = lambda tree: jax.tree.map(lambda x: np.asarray(x)[full], tree)  # noqa: E731
    assert_equal_trees(rows(dataclasses.replace(more, dropped=once.dropped)), rows(once))


def bad_answer(**parts):
    good = {"prior": np.ones((2, 3)), "value": np.zeros((2, 3)), "terminal": np.zeros((2, 3)), "valid": np.ones((2, 3))}
    return lambda leaf: s.Expansion(**(good | parts))


def test_bad_answers():
    def go(**parts):
        return s.search(s.init_tree(2, 20), bad_answer(**parts), 2, s.puct(), width=3, max_depth=3, host=True)

    nan = np.array([[0, 0, 0], [0, np.nan, 0]])
    with pytest.raises(UserError, match="'value' is nan for question 1, node 0, child 1"):
        go(value=nan)
    with pytest.raises(UserError, match="'node_value' is inf for question 0, node 0:"):
        go(node_value=np.array([np.inf, 0]))
    assert go(value=nan, valid=~np.isnan(nan)).refused.sum() == 0  # nobody reads what is not valid
    with pytest.raises(ValueError, match=r"'value' has shape \(2, 4\); expected \(2, 3\)"):
        go(value=np.zeros((2, 4)))


@pytest.mark.parametrize("host", [False, True])
def test_answers_may_be_lists(host):
    """An evaluator on the host need not know of arrays."""

    def expand(make):
        parts = [[0.5, 0.5]], [[0.25, -1.0]], [[False, True]], [[True, True]], [[0.0, 0.5]], [0.75]
        return lambda leaf: s.Expansion(*map(make, parts))

    def go(make):
        return s.search(s.init_tree(1, 9), expand(make), 3, s.puct(), width=2, max_depth=3, host=host)

    assert_equal_trees(go(list), go(np.array))


def test_refused_under_jit_is_counted():
    @functools.partial(jax.jit, static_argnames="score")
    def go(value, score=s.puct()):
        return s.search(s.init_tree(2, 9), bad_answer(value=value), 2, score, width=3, max_depth=3)

    np.testing.assert_array_equal(go(np.full((2, 3), np.nan)).refused, 3)
    with pytest.raises(UserError, match="2 values, priors or scores were not finite .* second"):
        s.check_tree(go(np.array([[0, 0, 0], [0, 0, np.inf]])), names=["first", "second"])
    with pytest.raises(UserError, match="questions 0, 1"):
        s.check_tree(go(np.zeros((2, 3)), score=lambda tree, node, kids: jnp.full(kids.shape, jnp.nan)))
    with pytest.raises(ValueError, match="score rule returned shape"):
        go(np.zeros((2, 3)), score=lambda tree, node, kids: node)
    with pytest.raises(ValueError, match=r"'value' has shape \(2, 4\)"):
        go(np.zeros((2, 4)))


def test_bad_options():
    tree = s.init_tree(1, 4)
    with pytest.raises(ValueError, match="rule='sum'"):
        s.backup(tree, [[0]], [1.0], rule="sum")
    for call, words in (
        (lambda: s.init_tree(0, 4), "batch >= 1"),
        (lambda: s.minmax(s.puct(), over="all"), "over='all'"),
        (lambda: s.ucb1(unvisited="last"), "unvisited='last'"),
        (lambda: s.Method(s.puct(), 2, 1, rule="median"), "rule='median'"),
        (lambda: s.Method(s.puct(), 2, 1, discount=1.5), "discount=1.5"),
        (lambda: s.Method(s.puct(), 2, 1, rate=-0.5), "rate=-0.5"),
        (lambda: s.Method(s.puct(), 2, 1, virtual_loss=float("nan")), "virtual_loss=nan"),
        (lambda: s.Method(s.minmax(s.puct(discount=0.9)), 2, 1, discount=-1.0), "give the rule the same discount"),
        (lambda: s.search(tree, None, -1, s.puct(), width=2, max_depth=2), "num_simulations=-1"),
        (lambda: s.search(tree, None, 1, s.puct(), width=2), "needs width and max_depth"),
        (lambda: s.search(tree, None, 1, s.alphamath(2, 2), width=2), "leave them out with a Method"),
        (lambda: s.search(tree, None, 1, s.alphamath(2, 2), hooks=s.SearchHooks(None, print)), "host=True only"),
        (lambda: s.backup(tree, [[0]], [1.0], best=[1.0], discount=-1.0), "one at a time"),
        (lambda: s.best_path(tree, "max", discount=-1.0), "only 'q' takes a discount"),
        (lambda: s.Method(s.puct(), 2, 0), "max_depth"),
        (lambda: s.Method(s.puct(), 2, 1, returns="best"), "returns='best'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("key", [0, np.zeros(2, np.uint32)])
def test_keys_are_typed(key):
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        s.select(s.init_tree(1, 4), s.puct(), 2, 2, key)


def test_stop_ends_a_question():
    problem = oracle.Problem()

    def stop(tree):
        return jnp.max(jnp.where(tree.terminal, tree.value, -1), 1) >= 0.5

    tree = run(start(problem, FULL), problem=problem, stop_fn=stop)
    free = run(start(problem, FULL), problem=problem)
    stopped = np.asarray(stop(tree))
    assert np.all(tree.closed[stopped, 0]) and np.any(tree.visits[:, 0] < free.visits[:, 0])
    np.testing.assert_array_equal(tree.visits[~stopped], free.visits[~stopped])


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


@pytest.mark.parametrize("leaves", [None, 2])
def test_the_evaluator_is_not_asked_for_nothing(leaves):
    """Full trees have the simulations pass without a call, and the evaluator is traced once."""
    problem, calls, traces = oracle.Problem(ends=0.0, holes=0.0), [], []

    def expand(leaf):
        traces.append(1)
        jax.debug.callback(lambda number: calls.append(int(number)), leaf.simulation)
        child, prior, value, terminal, valid, _ = problem.answer(leaf.state, jnp)
        return s.Expansion(prior, value, terminal, valid, state=child)

    tree = s.init_tree(2, 1 + 3 * 4, state=jnp.arange(2, dtype=jnp.uint32))
    found = s.search(tree, expand, 20, s.Method(s.puct(), width=3, max_depth=9, leaves=leaves))
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert len(traces) == 1
    assert 2 <= len(calls) <= 4
    np.testing.assert_array_equal(found.count, 13)
    assert np.all(np.asarray(found.dropped) >= 20 - len(calls))


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


@pytest.mark.parametrize("questions", [1, 2])
def test_what_was_not_asked_is_not_used(questions):
    """Room for one of two leaves: the other is dropped, whatever is answered for it, though the first needs no room."""
    method = s.Method(s.puct(), 2, 4, leaves=2)
    ones = jnp.ones((questions, 2))
    tree, _ = s.expand(s.init_tree(questions, 5), [0] * questions, ones, ones, ones == 0, ones > 0, [True] * questions)
    selection, leaf = s.ask(tree, method, 0)
    np.testing.assert_array_equal(leaf.ok, [[True, False]] * questions)
    answer = jnp.stack([ones, jnp.nan * ones], 1)
    valid = jnp.stack([ones == 0, ones > 0], 1)
    grown, kids = s.grow(tree, selection, s.Expansion(answer, answer, valid & False, valid), method)
    assert np.all(np.asarray(kids) == -1)
    np.testing.assert_array_equal(grown.closed[0], [False, True, False, False, False])  # the first is a dead end
    np.testing.assert_array_equal(grown.visits[0], [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(grown.dropped, 1)
    np.testing.assert_array_equal(grown.refused, 0)


@pytest.mark.parametrize("questions", [1, 2])
def test_slots_without_a_node_stay_empty(questions):
    ones = jnp.ones((questions, 2))
    tree, ok = s.init_tree(questions, 7), [True] * questions
    for slot in (3, 7, 99, -1):
        assert not np.any(s.close(tree, [slot] * questions, ok).closed[:, :3])
        grown, kids = s.expand(tree, [slot] * questions, ones, ones, ones == 0, ones > 0, ok)
        assert np.all(np.asarray(kids) == -1)
        assert_equal_trees(grown, tree)
    tree, _ = s.expand(tree, [0] * questions, ones, ones, ones > 0, ones > 0, ok)
    grown, _ = s.expand(tree, [1] * questions, ones, ones, ones == 0, ones > 0, ok)
    assert_equal_trees(grown, tree)  # below an answer there is nothing
    full, _ = s.expand(s.init_tree(questions, 2), [0] * questions, ones, ones, ones == 0, ones == 0, ok)
    assert np.all(full.closed[:, 0]) and not np.any(full.dropped)  # a dead end needs no room


def test_the_state_of_the_children_is_checked():
    tree = s.init_tree(2, 5, state=jnp.zeros((2, 3)))
    ones = jnp.ones((2, 2))
    for state, words in (
        (jnp.zeros((2, 2, 1)), r"shape \(2, 2, 1\); expected \(2, 2, 3\)"),
        (jnp.zeros((2, 4, 3)), r"shape \(2, 4, 3\); expected"),
        (jnp.zeros((1, 2, 3)), r"shape \(1, 2, 3\); expected"),
        (None, "'state' is"),
        ((jnp.zeros((2, 2, 3)),), "'state' is"),
    ):
        with pytest.raises(ValueError, match=words):
            s.expand(tree, [0, 0], ones, ones, ones == 0, ones > 0, [True, True], state=state)
        for host in (False, True):
            with pytest.raises(ValueError, match="the evaluator's .*" + words):
                s.search(
                    tree, lambda leaf, state=state: s.Expansion(ones, ones, ones == 0, ones > 0, state=state), 2,
                    s.puct(), width=2, max_depth=2, host=host,
                )  # fmt: skip
    counts = s.init_tree(2, 5, state=jnp.zeros(2, jnp.int32))
    for state in (ones, ones > 0, np.ones((2, 2), np.int64)):
        given = s.Expansion(ones, ones, ones == 0, ones > 0, state=state)
        if state is not ones:
            assert s.expand(counts, [0, 0], *given[:4], [True] * 2, state=state)[0].state.dtype == jnp.int32
            continue
        with pytest.raises(ValueError, match="'state' has dtype float32; expected int32"):  # fractions would be lost
            s.expand(counts, [0, 0], *given[:4], [True] * 2, state=state)
        with pytest.raises(ValueError, match="the evaluator's 'state' has dtype float32"):
            s.search(counts, lambda leaf, given=given: given, 2, s.puct(), width=2, max_depth=2)
    with pytest.raises(ValueError, match="returned tuple; expected an Expansion"):
        s.search(tree, lambda leaf: (ones, ones), 2, s.puct(), width=2, max_depth=2)
    with pytest.raises(ValueError, match="'prior' is None"):
        s.search(tree, lambda leaf: s.Expansion(None, ones, ones == 0, ones > 0), 2, s.puct(), width=2, max_depth=2)


def test_a_value_that_is_not_finite_visits_nothing():
    def expand(leaf):
        child, prior, value, terminal, valid, _ = oracle.Problem(ends=1.1, holes=0.0).answer(leaf.state, jnp)
        return s.Expansion(prior, value, terminal, valid, node_value=leaf.depth * jnp.nan, state=child)

    run = jax.jit(lambda state: s.search(s.init_tree(2, 9, state=state), expand, 1, s.puct(), width=3, max_depth=3))
    tree = run(jnp.arange(2, dtype=jnp.uint32))
    assert not np.any(tree.visits) and np.all(np.asarray(tree.refused) == 1)


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
