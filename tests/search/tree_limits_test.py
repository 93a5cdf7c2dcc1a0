"""Edges of a search: terminal and missing children, full trees, and answers and options that are refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import search as s
from prm_jax.errors import UserError
from tests.search import oracle
from tests.search.trees import FULL, SIMS, assert_equal_trees, run, start


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
