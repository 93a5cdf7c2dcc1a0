"""Labels and pairs from trees: a published tree, slow sums, and what is left out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import search as s
from tests.search.golden import load
from tests.search.trees import hand_tree

labels = functools.partial(jax.jit, static_argnames="how")(s.tree_labels)
pairs = functools.partial(jax.jit, static_argnames=("width", "rule", "margin"))(s.step_pairs)

CASE = load()["rest_mcts_value"]["tree"]


def published():
    """The published tree with its answers; some visits and values of our own."""
    tree, slots = hand_tree(CASE["parent"])
    n = len(CASE["parent"])
    right, ended = np.zeros(tree.parent.shape, bool), np.zeros(tree.parent.shape, bool)
    right[0, slots[CASE["correct_leaf"]]] = True
    ended[0, slots[CASE["correct_leaf"] + CASE["wrong_leaf"]]] = True
    q, visits = np.zeros(tree.parent.shape, np.float32), np.zeros(tree.parent.shape, np.float32)
    q[0, slots] = [0, 0.5, 0.1, 0.6, 0.3, 0.2, 0.9, -1.0, 0.8, 0.2]
    visits[0, slots] = 2
    tree = dataclasses.replace(
        tree, terminal=jnp.asarray(ended), visits=jnp.asarray(visits), value_sum=jnp.asarray(2 * q)
    )
    return tree, slots, right, q[0, slots], n


def test_published_quality_values():
    tree, slots, right, _, n = published()
    found, mask = labels(tree, right, how="quality")
    np.testing.assert_allclose(found[0, slots], CASE["v"], rtol=1e-5, atol=1e-6)
    assert not mask[0, 0] and np.all(mask[0, slots[1:]]) and mask.sum() == n - 1
    _, none = labels(tree, np.zeros_like(right), how="quality")
    assert not np.any(none)


def test_values_and_shares():
    tree, slots, right, q, n = published()
    found, mask = labels(tree, how="q")
    np.testing.assert_allclose(found[0, slots[1:]], q[1:], rtol=1e-6)
    below = {i: [i] for i in range(n)}
    for node in range(n - 1, 0, -1):
        below[CASE["parent"][node]] += below[node]
    soft, _ = labels(tree, right, how="soft")
    hard, _ = labels(tree, right, how="hard")
    for node in range(1, n):
        ends = [k for k in below[node] if k in CASE["correct_leaf"] + CASE["wrong_leaf"]]
        share = np.mean([k in CASE["correct_leaf"] for k in ends])
        np.testing.assert_allclose(soft[0, slots[node]], share, rtol=1e-6)
        assert float(hard[0, slots[node]]) == (share > 0)


def test_nodes_without_an_answer_below_have_no_label():
    tree, slots, right, _, _ = published()
    answers = np.array(tree.terminal)
    answers[0, slots[[5, 9]]] = False  # all that lies below node 2
    jitted = jax.jit(lambda tree, answers: s.tree_labels(tree, how="q", answers=answers))
    _, mask = jitted(tree, answers)
    assert not np.any(mask[0, slots[[0, 2, 5, 9]]]) and np.all(mask[0, slots[[1, 3, 4, 6, 7, 8]]])


def named(found, slots):
    number = {int(slot): i for i, slot in enumerate(slots)}
    flat = zip(np.asarray(found.chosen).ravel().tolist(), np.asarray(found.rejected).ravel().tolist(), strict=True)
    return {(number[c], number[r]) for c, r in flat if c >= 0}


def test_step_pairs():
    tree, slots, right, q, _ = published()
    assert named(pairs(tree, width=2, rule="best_worst"), slots) == {(1, 2), (3, 4), (6, 7)}
    assert named(pairs(tree, right, width=2, rule="first_error"), slots) == {(1, 2), (6, 7)}
    found = pairs(tree, right, width=2, rule="top_bottom")
    assert named(found, slots) == {(1, 2), (6, 7)}  # 4 has no wrong answer below it
    np.testing.assert_allclose(sorted(found.margin[found.margin > 0].tolist()), [0.4, 1.9], rtol=1e-5)
    assert named(pairs(tree, right, width=2, rule="top_bottom", margin=0.5), slots) == {(6, 7)}
    level = dataclasses.replace(tree, value_sum=jnp.zeros_like(tree.value_sum))
    assert named(pairs(level, width=2, rule="best_worst"), slots) == set()


def test_the_answers_decide_about_the_first_error():
    """A right step may look worse than a wrong one to a value function; that is when the pair teaches most."""
    tree, slots, right, *_ = published()
    turned = dataclasses.replace(tree, value_sum=-tree.value_sum)
    found = pairs(turned, right, width=2, rule="first_error")
    assert named(found, slots) == {(1, 2), (6, 7)}
    np.testing.assert_allclose(sorted(found.margin[found.chosen >= 0].tolist()), [-1.9, -0.4], rtol=1e-5)
    assert named(pairs(turned, right, width=2, rule="first_error", margin=0.1), slots) == set()
    assert named(pairs(tree, right, width=2, rule="first_error", margin=0.5), slots) == {(6, 7)}


def test_with_64_bits():
    tree, _, right, *_ = published()
    with jax.enable_x64(True):
        for how in ("q", "soft", "hard", "quality"):
            assert labels(tree, right, how=how)[0].dtype == jnp.float32
        found = pairs(tree, right, width=2, rule="top_bottom")
        assert [x.dtype for x in found] == [jnp.int32, jnp.int32, jnp.float32]


def test_every_question_needs_answers_of_its_own():
    tree = s.init_tree(2, 4)
    for shape in ((4,), (1, 4), (2, 1), ()):
        answers = np.zeros(shape, bool)
        for call in (
            lambda answers=answers: s.tree_labels(tree, answers, how="soft"),
            lambda answers=answers: s.tree_labels(tree, answers, how="quality"),
            lambda answers=answers: s.tree_labels(tree, answers=answers),
            lambda answers=answers: s.step_pairs(tree, answers, width=2, rule="top_bottom"),
            lambda answers=answers: s.step_pairs(
                tree, np.zeros((2, 4)), width=2, rule="first_error", answers=answers
            ),
            lambda answers=answers: s.sums_below(tree, answers),
        ):
            with pytest.raises(AssertionError, match="shape"):
                call()


def test_bad_options():
    tree = s.init_tree(1, 4)
    with pytest.raises(ValueError, match="how='mean'"):
        s.tree_labels(tree, how="mean")
    with pytest.raises(ValueError, match="needs `correct`"):
        s.tree_labels(tree, how="soft")
    with pytest.raises(ValueError, match="needs `correct`"):
        s.step_pairs(tree, width=2, rule="top_bottom")
    with pytest.raises(ValueError, match="rule='all'"):
        s.step_pairs(tree, width=2, rule="all")
