"""Gates, length bias and the verifier's order."""

import jax
import numpy as np

from tests.rl import compiled as rl
from tests.stats import compiled as stats


def test_gates_and_selection():
    gates = rl.objective_gates(np.array([[10.0, 0.0, -10.0]]), scale=2.0)
    expected = np.exp([1, 0, -1]) / np.exp([1, 0, -1]).sum() * 2
    np.testing.assert_allclose(gates[0], expected, rtol=1e-5)
    objectives = np.array([[0.1, 0.7, -0.3], [1.0, 2.0, 3.0]])
    np.testing.assert_allclose(rl.gated_objectives(objectives, np.array([0.0, 1.0, 0.0])), [0.7, 2.0])
    np.testing.assert_allclose(
        rl.gated_objectives(objectives[:1], gates), (objectives[:1] * gates).sum(-1), rtol=1e-6
    )


def test_invalid_responses_get_the_floor():
    objectives = np.array([[5.0, np.nan], [1.0, 2.0]])
    valid = np.array([False, True])
    out = rl.gated_objectives(objectives, np.array([1.0, 0.5]), valid=valid, floor=-1.0)
    np.testing.assert_allclose(out, [-1.0, 2.0])
    gradient = jax.grad(lambda x: rl.gated_objectives(x, np.array([1.0, 0.5]), valid=valid).sum())(
        objectives
    )
    np.testing.assert_array_equal(gradient, [[0, 0], [1, 0.5]])


def test_transform_subtracts_the_reference_and_released_training_omits_it():
    objectives = np.array([[2.0, 3.0, 4.0]])
    transform = stats.debias_transform(np.array([0.5, 0.0, 1.0]), reference_index=2)
    np.testing.assert_allclose(objectives @ transform, [[0.0, 3.0, 0.0]])  # the reference removes itself
    gates = np.array([0.2, 0.3, 0.5])
    inference = rl.gated_objectives(objectives, gates, transform=transform)
    training = rl.gated_objectives(objectives, gates)
    np.testing.assert_allclose([inference[0], training[0]], [0.9, 3.3], rtol=1e-6)


def test_verifier_outranks_the_reward_model():
    rewards = np.linspace(-6, 6, 9)
    right = rl.verifier_rewards(rewards, np.ones(9))
    wrong = rl.verifier_rewards(rewards, np.zeros(9))
    np.testing.assert_allclose([right[0], right[-1]], [0.04743, 0.95257], atol=1e-4)
    assert float(wrong.max()) < 0 < float(right.min())
    np.testing.assert_allclose(right - wrong, np.ones(9), rtol=1e-5)
    np.testing.assert_allclose(rl.verifier_rewards(rewards, np.ones(9), scale=0.0), np.full(9, 0.5))
    half = rl.verifier_rewards(np.zeros(1), np.array([0.5]))
    np.testing.assert_allclose(half, [0.0])  # fractions survive
