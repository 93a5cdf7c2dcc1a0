"""Votes of judges against binomials and loops, look-back and balance by hand."""

import math

import numpy as np

from tests.rl import compiled as rl


def test_majority_by_hand():
    votes = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, np.nan], [0.0, 1.0, 1.0]])
    present = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1]], bool)
    label, confidence = rl.judge_labels(votes, present)
    np.testing.assert_array_equal(label, [True, True, False])
    np.testing.assert_allclose(confidence, [2 / 3, 2 / 3, 1 / 2], rtol=1e-6)
    label, confidence = rl.judge_labels(votes, present, weights=np.array([0.5, 3.0, 0.5]))
    np.testing.assert_allclose(confidence, [3.5 / 4, 1 / 4, 1 / 2], rtol=1e-6)
    label, confidence = rl.judge_labels(votes, np.zeros((3, 3), bool))
    np.testing.assert_allclose(confidence, np.full(3, 0.5))
    assert not label.any()


def test_majority_of_independent_judges_is_binomial():
    """Condorcet: five judges, each right 70 % of the time."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=20_000) < 0.5
    votes = np.where(rng.uniform(size=(5, 20_000)) < 0.7, truth, ~truth)
    label, _ = rl.judge_labels(np.array(votes, np.float32))
    expected = sum(math.comb(5, k) * 0.7**k * 0.3 ** (5 - k) for k in (3, 4, 5))
    np.testing.assert_allclose((np.array(label) == truth).mean(), expected, atol=0.01)


def test_weights_from_checked_items_beat_a_biased_majority():
    rng = np.random.default_rng(1)
    truth = rng.uniform(size=4000) < 0.5
    accuracy = np.array([0.9, 0.55, 0.5, 0.3, 0.55])
    votes = np.where(rng.uniform(size=(5, 4000)) < accuracy[:, None], truth, ~truth).astype(np.float32)
    weights = rl.judge_weights(np.array(votes[:, :1000]), np.array(truth[:1000]))
    np.testing.assert_allclose(weights, np.log(accuracy / (1 - accuracy)), atol=0.35)
    assert weights[3] < 0  # its votes count the other way
    rest = np.array(votes[:, 1000:])
    plain, _ = rl.judge_labels(rest)
    weighted, _ = rl.judge_labels(rest, weights=weights)
    score = lambda label: (np.array(label) == truth[1000:]).mean()  # noqa: E731
    assert score(weighted) > 0.88 > score(plain) + 0.05
    none = rl.judge_weights(np.array(votes), np.array(truth), np.zeros(votes.shape, bool))
    np.testing.assert_allclose(none, np.zeros(5), atol=1e-6)


def test_look_back_by_hand():
    values = np.array([[0.8, 0.2, 0.6, 0.5, np.nan], [0.1, 0.4, 0.9, 0.3, 0.2]])
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
    out = rl.look_back_penalty(values, mask, coefficient=0.5)
    # Row 0: 0.2 is a valley (0.8 - 0.6), 0.5 falls by 0.1 at the end. Row 1: 0.3 falls by 0.6, 0.2 by 0.1.
    expected = [[0.8, 0.2 - 0.1, 0.6, 0.5 - 0.05, 0], [0.1, 0.4, 0.9, 0.3 - 0.3, 0.2 - 0.05]]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    same = rl.look_back_penalty(values, mask, coefficient=0.0)
    np.testing.assert_allclose(same, np.where(mask, values, 0))


def test_balance_by_step():
    labels = np.array([[1.0, 1, 0], [1, 0, 1], [0, 0, 1], [1, np.nan, np.nan]])
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]], bool)
    weights = np.array(rl.balanced_step_weights(labels, mask))
    np.testing.assert_allclose(weights[:, 0], [2 / 3, 2 / 3, 2, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(weights[:, 1], [1.5, 0.75, 0.75, 0], rtol=1e-6)
    np.testing.assert_array_equal(weights[:, 2], np.zeros(4))  # only right ones: nothing to learn
    right = np.nan_to_num(np.array(labels)) > 0.5
    for s in (0, 1):
        np.testing.assert_allclose(weights[right[:, s], s].sum(), weights[~right[:, s], s].sum())


def test_hard_labels_and_their_rising_form():
    values = np.array([[0.6, 0.9, 0.7, 0.7, 0.2], [0.4, 0.6, np.nan, 0.8, 0.9]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], bool)
    plain = rl.hard_step_labels(values, mask)
    np.testing.assert_array_equal(plain, [[1, 1, 1, 1, 0], [0, 1, 0, 1, 0]])
    # A step that loses ground is wrong, however likely success still is.
    rising = rl.hard_step_labels(values, mask, rising=True)
    np.testing.assert_array_equal(rising, [[1, 1, 0, 1, 0], [0, 1, 0, 1, 0]])
