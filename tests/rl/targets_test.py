"""Step labels and targets: published cases, and the identities between methods."""

import numpy as np
import pytest

from tests.rl import compiled as rl
from tests.rl import golden

CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def row(x, width=5):
    """One row and its mask, padded to a common width so that all cases run in one program."""
    return np.array([[*x, *[99] * (width - len(x))]]), np.arange(width)[None] < len(x)


def test_published_monte_carlo_labels():
    for case in golden.load("search")["mc_labels"]["cases"]:
        correct, mask = row(case["correct"])
        for how in ("soft", "hard", "vstar"):
            labels = rl.mc_targets(correct, case["n"], mask, how=how)
            np.testing.assert_allclose(labels[mask], case[how], **CLOSE)
        for how in ("hard", "vstar"):
            labels = rl.mc_targets(correct, case["n"], mask, how=how)
            assert int(rl.first_error(labels, mask, threshold=0.5)[0]) == case[f"first_error_{how}"]
        hard = rl.mc_targets(correct, case["n"], mask, how="hard")
        kept = rl.through_first_error(hard, mask)
        np.testing.assert_array_equal(kept[mask], case["mask_through_first_error"])


def test_published_consensus():
    for case in golden.load("search")["mc_labels"]["consensus"]:
        kept = rl.agree(np.array([case["mc_first_error"]]), np.array([case["judge_first_error"]]))
        assert bool(kept[0]) == case["keep"]


def test_back_filling_is_idempotent():
    correct, mask = row([0, 3, 0, 1, 0])
    once = rl.mc_targets(correct, 4, mask, how="vstar")
    np.testing.assert_array_equal(rl.mc_targets(once, 1, mask, how="vstar"), once)


def test_no_completions_is_label_zero():
    np.testing.assert_array_equal(rl.mc_targets([[3, 0]], np.array([[4, 0]]), [[True, True]]), [[0.75, 0.0]])


def test_published_quality_values():
    for case in golden.load("search")["rest_mcts_value"]["cases"]:
        (wrong, mask), (distance, _) = row(case["wrong"]), row(case["m"])
        np.testing.assert_allclose(rl.quality_value(wrong, distance, mask)[mask], case["v"], **CLOSE)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_correct_path_rises_evenly(steps):
    left, mask = row(range(steps - 1, -1, -1), 7)
    values = rl.quality_value(np.zeros((1, 7), bool), left, mask)
    np.testing.assert_allclose(values[mask], np.arange(1, steps + 1) / steps, rtol=1e-6)


def test_published_tree():
    case = golden.load("search")["rest_mcts_value"]["tree"]
    parent, n = np.array([case["parent"]]), len(case["parent"])
    correct = np.isin(np.arange(n), case["correct_leaf"])[None]
    steps, reachable = rl.steps_to_correct(parent, correct, np.ones((1, n), bool))
    np.testing.assert_array_equal(steps[0], case["steps"])
    np.testing.assert_array_equal(reachable[0], case["has_correct_descendant"])
    # The values of the tree, path by path: a step is wrong where no correct leaf is below it.
    for node in range(1, n):
        path = [node]
        while parent[0, path[0]] > 0:
            path.insert(0, int(parent[0, path[0]]))
        wrong, mask = row(~np.asarray(reachable)[0, path])
        distance, _ = row(np.asarray(steps)[0, path] - 1)
        values = rl.quality_value(wrong, distance, mask)
        np.testing.assert_allclose(values[mask][-1], case["v"][node], **CLOSE)


def test_a_tree_without_a_correct_leaf():
    steps, reachable = rl.steps_to_correct(np.array([[-1, 0, 1]]), np.zeros((1, 3), bool), np.ones((1, 3), bool))
    assert not np.any(steps) and not np.any(reachable)


def test_published_look_ahead():
    case = golden.load("search")["td_lookahead"]
    for one in case["cases"]:
        scores, mask = row(one["r"])
        np.testing.assert_allclose(rl.td_smooth(scores, mask, alpha=0.5)[mask], one["out"], **CLOSE)
    for one in case["code"]:  # the released code: on logits, cut after the first small gain
        scores, mask = row(one["logit"])
        first = rl.td_smooth(scores, mask, alpha=0.5, min_gain=0.05)[0, 0]
        np.testing.assert_allclose(first, one["v0"], **CLOSE)
        np.testing.assert_allclose(1 / (1 + np.exp(-first)), one["p0"], **CLOSE)


def test_look_ahead_is_a_lambda_return():
    """No reward, discount 1, lambda = alpha, and each state's value the score of the step that led to it."""
    rng = np.random.default_rng(0)
    scores, mask = rng.normal(size=(3, 6)), np.arange(6) < np.array([[6], [3], [1]])
    last = scores[np.arange(3), mask.sum(1) - 1]
    shifted = np.concatenate([np.zeros((3, 1)), scores[:, :-1]], 1)
    for alpha in (0.0, 0.3, 1.0):
        returns = rl.lambda_returns(
            np.zeros((3, 6)), shifted, mask, discount=1.0, lambda_=alpha, bootstrap=last
        )
        np.testing.assert_allclose(rl.td_smooth(scores, mask, alpha=alpha), returns, atol=1e-6)
    np.testing.assert_allclose(rl.td_smooth(scores, mask, alpha=0.0), np.where(mask, scores, 0), atol=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match="how='mean'"):
        rl.mc_targets([[1]], 2, [[True]], how="mean")
    with pytest.raises(AssertionError):  # of each response or of each step?
        rl.mc_targets(np.ones((2, 2)), np.array([4, 8]), np.ones((2, 2), bool))
    with pytest.raises(AssertionError):
        rl.steps_to_correct(np.zeros((1, 2)), np.zeros((1, 2), bool), np.ones((1, 2), bool))


def test_published_roll_forward():
    for case in golden.load("search")["rest_mcts_value"]["greedy_rollout_mix"]["cases"]:
        rollouts = np.array([case["rollouts"] + [np.nan]])
        found = rl.roll_forward_value(np.array([case["V"]]), rollouts, np.isfinite(rollouts), alpha=case["a"])
        np.testing.assert_allclose(found, [case["out"]], rtol=1e-6)
