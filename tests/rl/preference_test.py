"""General preferences: algebra of the score, cycles that Bradley-Terry cannot learn, and the policy loss."""

import jax
import numpy as np
import optax
import pytest

from tests.rl import compiled as rl


def test_score_against_the_matrix_form():
    rng = np.random.default_rng(0)
    left, right, scales = rng.normal(size=(5, 6)), rng.normal(size=(5, 6)), rng.uniform(size=3)
    rotation = np.zeros((6, 6))
    for k in range(3):
        rotation[2 * k, 2 * k + 1], rotation[2 * k + 1, 2 * k] = scales[k], -scales[k]
    expected = np.einsum("bi,ij,bj->b", left, rotation, right)
    score = rl.preference_score(np.array(left), np.array(right), scales=np.array(scales))
    np.testing.assert_allclose(score, expected, atol=1e-5)
    swapped = rl.preference_score(np.array(right), np.array(left), scales=np.array(scales))
    np.testing.assert_allclose(swapped, -expected, atol=1e-5)
    np.testing.assert_array_equal(rl.preference_score(np.array(left), np.array(left)), np.zeros(5))


def test_two_dimensions_are_bradley_terry():
    chosen, rejected = np.array([0.7, -1.0]), np.array([0.2, 0.4])
    embed = lambda r: np.stack([r, np.ones_like(r)], -1)  # noqa: E731
    score = rl.preference_score(embed(chosen), embed(rejected))
    np.testing.assert_allclose(score, chosen - rejected, rtol=1e-6)
    np.testing.assert_allclose(
        rl.pairwise_loss(score, np.zeros(2)).total, rl.pairwise_loss(chosen, rejected).total, rtol=1e-6
    )


def test_a_cycle_is_learnt_by_gpm_and_not_by_bradley_terry():
    """A beats b, b beats c, c beats a: scalar rewards stay at log 2, embeddings get all three right."""
    winner, loser = np.array([0, 1, 2]), np.array([1, 2, 0])

    def fit(loss, params):
        optimiser = optax.adam(0.05)

        def step(carry, _):
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), length=500)[0][0]

    def bradley_terry(rewards):
        return rl.pairwise_loss(rewards[winner], rewards[loser]).mean()

    def general(embeddings):
        score = rl.preference_score(embeddings[winner], embeddings[loser])
        return rl.pairwise_loss(score, np.zeros(3)).mean()

    rewards = jax.jit(lambda p: fit(bradley_terry, p))(jax.random.normal(jax.random.key(0), (3,)))
    embeddings = jax.jit(lambda p: fit(general, p))(jax.random.normal(jax.random.key(1), (3, 2)))
    np.testing.assert_allclose(bradley_terry(rewards), np.log(2), atol=1e-4)
    assert float(general(embeddings)) < 0.05
    assert bool((rl.preference_score(embeddings[winner], embeddings[loser]) > 0).all())


def test_gates():
    logits = np.array([0.3, -1.0, 2.0])
    np.testing.assert_allclose(rl.preference_gates(logits).sum(), 3.0, rtol=1e-6)
    np.testing.assert_allclose(rl.preference_gates(np.zeros(4)), np.ones(4), rtol=1e-6)


def test_group_preferences_match_a_loop():
    rng = np.random.default_rng(1)
    embeddings, ids = rng.normal(size=(7, 4)), np.array([1, 0, 1, 2, 0, 1, 0])
    mask = np.array([1, 1, 1, 1, 1, 1, 0], bool)
    embeddings[6] = np.nan
    score = lambda a, b: sum(a[2 * k] * b[2 * k + 1] - a[2 * k + 1] * b[2 * k] for k in range(2)) / 0.5  # noqa: E731
    for output in ("score", "win"):
        expected = np.zeros(7)
        for i in range(6):
            others = [j for j in range(6) if j != i and ids[j] == ids[i]]
            values = [score(embeddings[i], embeddings[j]) for j in others]
            values = [1 / (1 + np.exp(-v)) for v in values] if output == "win" else values
            expected[i] = np.mean(values) if values else (0.5 if output == "win" else 0.0)
        out = rl.group_preferences(
            np.array(embeddings), np.array(ids), num_groups=3, mask=np.array(mask), temperature=0.5, output=output
        )
        np.testing.assert_allclose(out, expected, atol=1e-5)
    # Skew-symmetry: equal group sizes make scores sum to zero within a group.
    out = rl.group_preferences(np.array(embeddings[:6]), np.array(ids[:6]), num_groups=3)
    np.testing.assert_allclose([out[ids[:6] == g].sum() for g in range(3)], np.zeros(3), atol=1e-5)


def test_gpo_optimum_is_the_tilted_policy_only_with_the_true_normaliser():
    old = jax.nn.log_softmax(np.array([0.1, -0.4, 0.9, 0.0]))
    reward, beta = np.array([1.0, 0.0, -0.5, 2.0]), 0.7
    # Scores of a Bradley-Terry model: mean reward difference to the old policy, a constant off the reward.
    score = reward - (np.exp(old) * reward).sum()
    log_z = jax.nn.logsumexp(old + score / beta)
    tilted = jax.nn.log_softmax(old + reward / beta)  # the solution of RL with a KL penalty
    exact = rl.gpo_loss(tilted, old, score, beta=beta, log_z=log_z)
    np.testing.assert_allclose(exact.total, 0.0, atol=1e-9)
    published = rl.gpo_loss(tilted, old, score, beta=beta)
    np.testing.assert_allclose(published.mean(), float(log_z) ** 2, rtol=1e-4)
    assert float(log_z) > 0.1


def test_gpo_by_hand_masks_and_gradients():
    logp, old, score = np.array([-1.0, -2.0, np.nan]), np.array([-1.5, -1.0, 0.0]), np.array([0.2, -0.1, np.nan])
    mask = np.array([True, True, False])
    loss = rl.gpo_loss(logp, old, score, mask, beta=0.5)
    np.testing.assert_allclose(loss.total, (0.5 - 0.4) ** 2 + (-1 + 0.2) ** 2, rtol=1e-5)
    assert loss.weight == 2
    np.testing.assert_allclose(loss.metrics["residual"].mean(), (0.1 + 0.8) / 2, rtol=1e-5)
    grads = jax.grad(lambda a, b, c: rl.gpo_loss(a, b, c, mask, beta=0.5).total, (0, 1, 2))(logp, old, score)
    np.testing.assert_allclose(grads[0], [0.2, -1.6, 0], atol=1e-5)
    assert float(np.abs(grads[1]).max()) == float(np.abs(grads[2]).max()) == 0
    assert rl.gpo_loss(logp, old, score, np.zeros(3, bool), beta=0.5).mean() == 0


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="even"):
        rl.preference_score(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="output"):
        rl.group_preferences(np.zeros((2, 2)), np.zeros(2, int), num_groups=1, output="loss")
