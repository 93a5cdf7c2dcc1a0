"""BRAIn: DPO at two samples, stationary at the posterior, invariances, and a slow loop."""

import jax
import numpy as np

from tests.rl import compiled as rl


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def data(seed=0, size=9, groups=3):
    rng = np.random.default_rng(seed)
    logp, prior, proposal, rewards = rng.normal(size=(4, size)) * 2
    return logp, prior, proposal, rewards, rng.integers(0, groups, size)


def test_matches_a_loop_for_any_grouping():
    for seed in range(4):
        logp, prior, proposal, rewards, ids = data(seed)
        total, kl = 0.0, 0.0
        for g in set(ids):
            rows = ids == g
            alpha = softmax(rewards[rows] / 0.5 + prior[rows] - proposal[rows])
            beta = softmax(logp[rows] - proposal[rows])
            total -= (alpha * np.log(beta)).sum()
            kl += (alpha * np.log(alpha / beta)).sum()
        padded = [np.append(np.array(x), np.nan) for x in (logp, prior, proposal, rewards)]
        loss = jax.jit(rl.brain_loss, static_argnames=("num_groups", "temperature"))(
            *padded, np.append(np.array(ids), -1), num_groups=3, temperature=0.5
        )
        np.testing.assert_allclose(loss.total, total, rtol=1e-5)
        np.testing.assert_allclose(loss.metrics["kl"].total, kl, rtol=1e-4, atol=1e-5)
        assert loss.weight == len(set(ids))


def test_two_samples_and_a_hard_reward_are_dpo():
    """Proposal = prior, one answer infinitely better: DPO with beta = 1, loss and gradient."""
    logp, prior = np.array([-3.0, -2.5]), np.array([-2.2, -2.9])
    hard = np.array([1e4, 0.0])
    ids = np.zeros(2, np.int32)

    def brain(x):
        return rl.brain_loss(x, prior, prior, hard, ids, num_groups=1).mean()

    def dpo(x):
        return rl.step_preference_loss(x[:1], x[1:], prior[:1], prior[1:], beta=1.0).mean()

    np.testing.assert_allclose(brain(logp), dpo(logp), rtol=1e-6)
    # By hand: log(1 + exp(-((-3 + 2.2) - (-2.5 + 2.9)))) = log(1 + exp(1.2)).
    np.testing.assert_allclose(brain(logp), np.log1p(np.exp(1.2)), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(brain)(logp), jax.grad(dpo)(logp), rtol=1e-5)


def test_gradient_vanishes_at_the_posterior_and_is_the_released_estimator():
    logp, prior, proposal, rewards, ids = map(np.array, data(1))
    loss = lambda x: rl.brain_loss(x, prior, proposal, rewards, ids, num_groups=3).total  # noqa: E731
    at_posterior = jax.grad(loss)(prior + rewards + 3.0)  # any constant within a group is immaterial
    np.testing.assert_allclose(at_posterior, np.zeros(9), atol=1e-6)
    expected = np.zeros(9)
    for g in range(3):
        rows = np.array(ids) == g
        alpha = softmax(np.array(rewards + prior - proposal)[rows])
        expected[rows] = softmax(np.array(logp - proposal)[rows]) - alpha
    np.testing.assert_allclose(jax.grad(loss)(logp), expected, atol=1e-5)


def test_constants_within_a_group_cancel():
    logp, prior, proposal, rewards, ids = map(np.array, data(2))
    shift = np.array([5.0, -3.0, 100.0])[ids]
    base = rl.brain_loss(logp, prior, proposal, rewards, ids, num_groups=3).total
    for arguments in (
        (logp + shift, prior, proposal, rewards),
        (logp, prior + shift, proposal, rewards),
        (logp, prior, proposal + shift, rewards),
        (logp, prior, proposal, rewards - shift),
    ):
        np.testing.assert_allclose(rl.brain_loss(*arguments, ids, num_groups=3).total, base, rtol=1e-4)


def test_lone_and_absent_samples():
    one = rl.brain_loss(np.zeros(1), np.zeros(1), np.zeros(1), np.ones(1), np.zeros(1, int), num_groups=4)
    assert one.total == 0 and one.weight == 1
    nan = np.full(2, np.nan)
    none = rl.brain_loss(nan, nan, nan, nan, np.zeros(2, int), num_groups=1, mask=np.zeros(2, bool))
    assert none.mean() == 0 and none.weight == 0
    gradient = jax.grad(
        lambda x: rl.brain_loss(x, nan, nan, nan, np.zeros(2, int), num_groups=1, mask=np.zeros(2, bool)).total
    )(nan)
    np.testing.assert_array_equal(gradient, np.zeros(2))
