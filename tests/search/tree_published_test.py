"""Child scores, backups and paths against published trees and numbers worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import search as s
from tests.search.golden import load
from tests.search.trees import assert_equal_trees, hand_tree


def golden(name):
    return load()[name]


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


def test_random_ties():
    """Without a key the first of equals is taken; with one every child is, about as often."""
    z = np.zeros((512, 4))
    tree, _ = expand(s.init_tree(512, 5), np.zeros(512, int), z, z, z, z == 0, np.ones(512))
    assert set(select(tree, s.puct(1.0), 2, 4).leaf.tolist()) == {1}
    leaf = select(tree, s.puct(1.0), 2, 4, jax.random.key(0)).leaf
    assert np.min(np.bincount(leaf, minlength=5)[1:]) > 90
    with pytest.raises(TypeError, match="jax.random.key"):
        s.select(tree, s.puct(1.0), 2, 4, jnp.zeros(2, jnp.uint32))
