"""PPO-C's reward and running mean, and PPO-M as two Bradley-Terry terms."""

import jax
import numpy as np

from tests.rl import compiled as rl


def test_adjusted_reward_by_hand_and_identities():
    reward, mean = np.array([1.0, -1.0, 0.5]), 0.2
    confidence = np.array([1.0, 0.8, 0.5])
    difference = rl.confidence_adjusted_rewards(reward, confidence, mean, weight=2.0)
    np.testing.assert_allclose(difference, [1 + 2 * 0.8 * 0.5, -1 - 2 * 1.2 * 0.3, 0.5], rtol=1e-6)
    threshold = rl.confidence_adjusted_rewards(reward, confidence, mean, weight=0.5, kind="threshold")
    np.testing.assert_allclose(threshold, [1 + 0.25, -1 - 0.5 * 0.3, 0.5], rtol=1e-6)
    for kind in ("difference", "threshold"):
        same = rl.confidence_adjusted_rewards(reward, np.full(3, 0.5), mean, weight=2.0, kind=kind)
        np.testing.assert_allclose(same, reward)
        same = rl.confidence_adjusted_rewards(reward, confidence, mean, weight=0.0, kind=kind)
        np.testing.assert_allclose(same, reward)


def test_running_mean_by_hand_masks_and_devices():
    out = rl.update_reward_mean(1.0, np.array([2.0, 4.0, np.nan]), np.array([True, True, False]), rate=0.1)
    np.testing.assert_allclose(out, 0.1 * 3 + 0.9, rtol=1e-6)
    np.testing.assert_allclose(rl.update_reward_mean(0.0, np.array([50.0]), rate=0.5), 5.0)  # clamped to 10
    np.testing.assert_allclose(rl.update_reward_mean(0.0, np.array([50.0]), rate=0.5, clip=None), 25.0)
    np.testing.assert_allclose(rl.update_reward_mean(7.0, np.ones(3), np.zeros(3, bool)), 7.0)
    rewards = np.arange(6.0).reshape(2, 3)
    mask = np.array([[True, False, False], [True, True, True]])
    split = jax.vmap(lambda r, m: rl.update_reward_mean(1.0, r, m, axis_name="d"), axis_name="d")(rewards, mask)
    np.testing.assert_allclose(split, np.full(2, 0.9 + 0.1 * 12 / 4), rtol=1e-6)


def test_ppo_m_is_two_bradley_terry_terms():
    high_chosen, low_chosen, high_rejected, low_rejected = jax.random.normal(jax.random.key(0), (4, 6))
    loss = rl.pairwise_loss(high_chosen, low_chosen).mean() + rl.pairwise_loss(low_rejected, high_rejected).mean()
    sigmoid = lambda x: 1 / (1 + np.exp(-np.array(x, np.float64)))  # noqa: E731
    expected = -np.log(sigmoid(high_chosen - low_chosen)) - np.log(sigmoid(low_rejected - high_rejected))
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
