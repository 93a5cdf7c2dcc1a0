"""Shaping: published cases, and why it is done (a policy must not earn by adding steps)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import compiled as rl
from tests.rl import golden

CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def row(x):
    return np.array([x], float), np.ones((1, len(x)), bool)


def padded(rows, width):
    """[B, width] with NaN after each row, and the mask."""
    x, mask = np.full((len(rows), width), np.nan), np.zeros((len(rows), width), bool)
    for i, values in enumerate(rows):
        x[i, : len(values)], mask[i, : len(values)] = values, True
    return x, mask


def test_published_clip_and_delta():
    cases = golden.load("search")["clip_delta"]["cases"]
    for eta in sorted({case["eta"] for case in cases}):
        same = [case for case in cases if case["eta"] == eta]
        p, mask = padded([case["p"] for case in same], 5)
        clip = rl.clip_rewards(p, mask, threshold=eta)
        shaped = {"clip": clip, "delta": rl.delta_rewards(p, mask), "clip_delta": rl.delta_rewards(clip, mask)}
        for name, rewards in shaped.items():
            returns = np.asarray(rl.discounted_returns(rewards, mask))
            for i, case in enumerate(same):
                steps = len(case["p"])
                np.testing.assert_allclose(rewards[i, :steps], case[name], **CLOSE)
                expected = np.array(case["ret_" + name]) - case["success"]
                np.testing.assert_allclose(case["alpha"] * returns[i, :steps], expected, **CLOSE)


def test_published_progress():
    for case in golden.load("search")["pav"]["cases"]:
        q, mask = padded([case["q_pi"]], 4)
        steps = len(case["q_pi"])
        prover = rl.best_of_k_value(q, k=case["K"])
        start = rl.best_of_k_value(np.array([case["v0_pi"]]), k=case["K"])
        np.testing.assert_allclose(prover[0, :steps], case["q_mu"], **CLOSE)
        np.testing.assert_allclose(start, [case["v0_mu"]], **CLOSE)
        progress = rl.progress_rewards(prover, start, mask)
        np.testing.assert_allclose(progress[0, :steps], case["advantage"], **CLOSE)
        np.testing.assert_allclose(progress.sum(), case["sum_advantage"], **CLOSE)
        effective = rl.effective_rewards(q, progress, alpha=case["alpha"])
        np.testing.assert_allclose(effective[0, :steps], case["effective"], **CLOSE)


def test_what_filler_steps_earn():
    """Raw rewards grow with every filler, Clip gives good fillers nothing, Delta pays the first step alone."""
    fillers = np.array([0, 1, 10])
    p, mask = padded([[0.8] * n + [0.6, 0.7, 0.3] for n in fillers], 13)
    raw = np.where(mask, p, 0).sum(1) - 1.6
    np.testing.assert_allclose(raw, 0.8 * fillers, atol=1e-9)
    clip = rl.clip_rewards(p, mask, threshold=0.5)
    np.testing.assert_allclose(clip.sum(1), -0.2, atol=1e-6)
    delta = rl.delta_rewards(p, mask)
    np.testing.assert_allclose(delta.sum(1), p[:, 0], atol=1e-6)
    last = np.asarray(rl.outcome_token_rewards(np.ones(3), mask)) == 1
    returns = rl.discounted_returns(delta, mask)
    np.testing.assert_allclose(returns, np.where(mask & ~last, p, 0), atol=1e-6)


def test_a_prover_that_is_certain_gives_no_signal():
    for q in (0.0, 1.0):
        values, mask = row([q] * 4)
        progress = rl.progress_rewards(rl.best_of_k_value(values, k=4), np.array([q]), mask)
        np.testing.assert_array_equal(progress, np.zeros((1, 4)))


def test_confidence():
    reward, mean = np.array([2.0, -1.0, 0.5]), 0.25
    for kind in ("difference", "threshold"):
        unsaid = rl.confidence_adjusted_rewards(reward, np.full(3, 0.5), mean, weight=2.0, kind=kind)
        np.testing.assert_array_equal(unsaid, reward)
        sure = rl.confidence_adjusted_rewards(reward, np.ones(3), mean, weight=2.0, kind=kind) - reward
        np.testing.assert_array_equal(np.sign(sure), np.sign(reward - mean))
    by_hand = rl.confidence_adjusted_rewards(reward, np.array([1.0, 0.9, 0.0]), mean, weight=2.0)
    np.testing.assert_allclose(by_hand, [2 + 2 * 1.75 * 0.5, -1 - 2 * 1.25 * 0.4, 0.5 - 2 * 0.25 * 0.5], rtol=1e-6)
    by_hand = rl.confidence_adjusted_rewards(reward, np.array([1.0, 0.9, 0.0]), mean, weight=0.5, kind="threshold")
    np.testing.assert_allclose(by_hand, [2.5, -1 - 0.5 * 0.4, 0.5 - 0.5 * 0.5 * 0.5], rtol=1e-6)


def test_one_member_knows_no_doubt():
    reward, epistemic = rl.pessimistic_rewards(np.array([[1.0, 2.0]]), coefficient=3.0)
    np.testing.assert_array_equal(reward, [1.0, 2.0])
    np.testing.assert_array_equal(epistemic, [0.0, 0.0])
    gradient = jax.grad(lambda x: rl.pessimistic_rewards(x, coefficient=3.0)[0].sum())(jnp.ones((4, 2)))
    np.testing.assert_allclose(gradient, 0.25)  # finite where all members agree


def test_law_of_total_variance():
    rng = np.random.default_rng(0)
    members = rng.normal(size=(5, 1)) + rng.normal(size=(5, 1000)) * rng.uniform(0.5, 2, (5, 1))
    _, epistemic = rl.pessimistic_rewards(members.mean(1), coefficient=1.0)
    np.testing.assert_allclose(members.var(), members.var(1).mean() + epistemic**2, rtol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="kind='upper'"):
        rl.pessimistic_rewards(np.ones((2, 2)), coefficient=1.0, kind="upper")
    with pytest.raises(ValueError, match="kind='linear'"):
        rl.confidence_adjusted_rewards(np.ones(2), np.ones(2), 0.0, weight=1.0, kind="linear")
    with pytest.raises(AssertionError):
        rl.progress_rewards(np.ones((2, 3)), np.ones(3), np.ones((2, 3), bool))
