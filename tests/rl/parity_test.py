"""The same numbers as rlax, optax and Tunix where they have the same function; where they differ, by how much and why.

    pip install rlax optax google-tunix && pytest tests/rl/parity_test.py

Differences that are meant, each shown below: rlax's Huber quantile loss is `huber` times ours and sums over levels
(ours keeps the pinball slope outside the zone, as arXiv 2103.00083 has it); Tunix gives a lone rollout the RLOO
advantage 0 (ours keeps the reward), divides rewards that are all equal to rounding by 1e-6 (ours gives 0), clamps no
log-ratio, and divides "sequence-mean-token-scale" by rows as well.
"""

import jax
import numpy as np
import pytest

from tests.rl import compiled as rl
from tests.stats import compiled as stats

pytestmark = pytest.mark.optional

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
DISCOUNT, LAMBDA = 0.9, 0.7


@pytest.fixture(name="rlax")
def fixture_rlax():
    return pytest.importorskip("rlax", reason="pip install rlax")


@pytest.fixture(name="optax")
def fixture_optax():
    return pytest.importorskip("optax", reason="pip install optax")


@pytest.fixture(name="tunix")
def fixture_tunix():
    return pytest.importorskip("tunix.rl.algo_core", reason="pip install google-tunix")


@pytest.fixture(name="tunix_common")
def fixture_tunix_common():
    return pytest.importorskip("tunix.rl.common", reason="pip install google-tunix")


@pytest.fixture(name="rows")
def fixture_rows():
    """(rewards, values, mask, bootstrap) of four right-padded rows."""
    rng = np.random.default_rng(0)
    mask = np.arange(7) < np.array([[7], [4], [1], [6]])
    draws = (np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32) for _ in range(2))
    return *draws, mask, rng.normal(size=4).astype(np.float32)


def each_row(function, rewards, values, mask, bootstrap):
    """A function of (r_t, discount_t, v_t) at times 1..T on the valid part of each row."""
    out = np.zeros(mask.shape)
    for i, row in enumerate(mask):
        n = row.sum()
        after = np.append(values[i, 1:n], bootstrap[i])  # rlax's v_t is the value reached
        out[i, :n] = function(np.array(rewards[i, :n]), np.full(n, DISCOUNT), after)
    return out


def test_returns(rlax, rows):
    rewards, values, mask, bootstrap = rows
    ours = rl.lambda_returns(rewards, values, mask, discount=DISCOUNT, lambda_=LAMBDA, bootstrap=bootstrap)
    np.testing.assert_allclose(ours, each_row(lambda *x: rlax.lambda_returns(*x, LAMBDA), *rows), **CLOSE)
    for n in (1, 3):
        ours = rl.n_step_returns(rewards, values, mask, discount=DISCOUNT, n=n, bootstrap=bootstrap)
        np.testing.assert_allclose(
            ours, each_row(lambda *x, n=n: rlax.n_step_bootstrapped_returns(*x, n), *rows), **CLOSE
        )
    plain = each_row(lambda r, d, v: rlax.discounted_returns(r, d, np.zeros_like(v)), *rows)
    np.testing.assert_allclose(rl.discounted_returns(rewards, mask, discount=DISCOUNT), plain, **CLOSE)


def test_generalized_advantages(rlax, rows):
    rewards, values, mask, bootstrap = rows
    ours = rl.generalized_advantages(rewards, values, mask, discount=DISCOUNT, lambda_=LAMBDA, bootstrap=bootstrap)
    theirs = np.zeros(mask.shape)
    for i, row in enumerate(mask):
        n = row.sum()
        theirs[i, :n] = rlax.truncated_generalized_advantage_estimation(
            np.array(rewards[i, :n]), np.full(n, DISCOUNT), LAMBDA, np.append(values[i, :n], bootstrap[i])
        )
    np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_clipped_surrogate_and_its_gradient(rlax):
    rng = np.random.default_rng(1)
    logp, old, advantages = (np.array(x, np.float32) for x in 0.5 * rng.normal(size=(3, 1, 9)))
    mask = np.ones((1, 9), bool)

    def theirs(x):
        return rlax.clipped_surrogate_pg_loss(np.exp(x - old)[0], advantages[0], 0.2)

    def ours(x):
        return rl.clipped_surrogate(x, old, advantages, mask).mean()

    np.testing.assert_allclose(ours(logp), theirs(logp), **CLOSE)
    np.testing.assert_allclose(jax.grad(ours)(logp), jax.grad(theirs)(logp), **CLOSE)


def test_entropy(rlax):
    logits = np.array(np.random.default_rng(2).normal(size=(6, 5)), np.float32)
    entropy = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1)
    ours = rl.entropy_bonus(entropy[None], np.ones((1, 6), bool)).mean()
    np.testing.assert_allclose(ours, rlax.entropy_loss(logits, np.ones(6)), **CLOSE)


def test_bellman_targets(rlax):
    """What rlax returns are temporal differences: target minus the value of the action taken."""
    rng = np.random.default_rng(3)
    q, next_q, other, logits = (np.array(x, np.float32) for x in rng.normal(size=(4, 6, 5)))
    actions, r = np.array(rng.integers(0, 5, 6)), np.array(rng.normal(size=6), np.float32)
    d = np.array([0.9, 0.9, 0.0, 0.9, 0.9, 0.0])
    taken = q[np.arange(6), actions]
    greedy = jax.vmap(rlax.q_learning)(q, actions, r, d, next_q)
    np.testing.assert_allclose(rl.bellman_targets(r, d, next_q, kind="greedy") - taken, greedy, **CLOSE)
    expected = jax.vmap(rlax.expected_sarsa)(q, actions, r, d, next_q, jax.nn.softmax(logits))
    np.testing.assert_allclose(rl.bellman_targets(r, d, next_q, logits, kind="expected") - taken, expected, **CLOSE)
    sarsa = jax.vmap(rlax.sarsa)(q, actions, r, d, next_q, logits.argmax(-1))
    np.testing.assert_allclose(rl.bellman_targets(r, d, next_q, logits) - taken, sarsa, **CLOSE)
    double = jax.vmap(rlax.double_q_learning)(q, actions, r, d, other, next_q)
    np.testing.assert_allclose(rl.double_q_target(r, d, next_q, other) - taken, double, **CLOSE)


@pytest.mark.parametrize("huber", [0.0, 0.5])
def test_quantile_regression(rlax, huber):
    rng = np.random.default_rng(4)
    quantiles, target, levels = rng.normal(size=5), rng.normal(), np.linspace(0.1, 0.9, 5)
    theirs = rlax.quantile_regression_loss(
        np.array(quantiles, np.float32), np.array(levels, np.float32), np.array([target], np.float32), huber
    )
    ours = stats.pinball_loss(quantiles[None], np.array([target]), np.ones(1, bool), levels=levels, huber=huber)
    np.testing.assert_allclose(5 * ours.total * (huber or 1.0), theirs, **CLOSE)


def test_cross_entropies(optax):
    rng = np.random.default_rng(5)
    logits, labels = np.array(rng.normal(size=(3, 4)) * 5), np.array(rng.uniform(size=(3, 4)))
    mask = np.array(rng.uniform(size=(3, 4)) < 0.7)
    theirs = optax.sigmoid_binary_cross_entropy(logits, labels).mean(where=mask)
    np.testing.assert_allclose(rl.step_ce_loss(logits, labels, mask).mean(), theirs, **CLOSE)
    np.testing.assert_allclose(rl.value_loss(logits, labels, mask, kind="bce").mean(), theirs, **CLOSE)
    sums = np.where(mask, logits, 0).sum(-1)
    outcome = np.array([1.0, 0.3, 0.0])
    np.testing.assert_allclose(
        rl.outcome_ce_loss(logits, outcome, mask).mean(),
        optax.sigmoid_binary_cross_entropy(sums, outcome).mean(where=mask.any(-1)),
        **CLOSE,
    )
    classes, ids = np.array(rng.normal(size=(3, 4, 5))), np.array(rng.integers(0, 5, (3, 4)))
    np.testing.assert_allclose(
        rl.value_loss(classes, ids, mask, kind="ce").mean(),
        optax.softmax_cross_entropy_with_integer_labels(classes, ids).mean(where=mask),
        **CLOSE,
    )


def test_pairs_and_samples(optax):
    rng = np.random.default_rng(6)
    chosen, rejected = np.array(rng.normal(size=(2, 6)))
    np.testing.assert_allclose(
        rl.pairwise_loss(chosen, rejected).mean(),
        optax.sigmoid_binary_cross_entropy(chosen - rejected, np.ones(6)).mean(),
        **CLOSE,
    )
    np.testing.assert_allclose(
        rl.step_preference_loss(chosen, rejected, beta=1.0, kind="hinge").mean(),
        optax.hinge_loss(chosen - rejected, np.ones(6)).mean(),
        **CLOSE,
    )
    # BRAIn is a ranking softmax with the posterior as labels.
    prior, rewards = np.array(rng.normal(size=(2, 6)))
    loss = rl.brain_loss(chosen, prior, rejected, rewards, np.zeros(6, int), num_groups=1)
    labels = jax.nn.softmax(rewards + prior - rejected)
    np.testing.assert_allclose(loss.mean(), optax.losses.ranking_softmax_loss(chosen - rejected, labels), **CLOSE)


def test_group_advantages(tunix):
    rng = np.random.default_rng(7)
    outcome, ids = rng.choice([0.0, 0.25, 1.0], 12).astype(np.float32), np.repeat(np.arange(3), 4)
    outcome[:4] = [1, 0, 0, 1]
    one = np.ones((12, 1), bool)

    def ours(**options):
        return rl.grpo_advantages(np.zeros((12, 1)), outcome, one, ids, num_groups=3, **options)[:, 0]

    np.testing.assert_allclose(ours(), tunix.compute_advantages(outcome, 4), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        ours(eps=None), tunix.compute_drgrpo_advantages(np.array(outcome), 4), **CLOSE
    )
    np.testing.assert_allclose(
        rl.leave_one_out(outcome, ids, num_groups=3), tunix.compute_rloo_advantages(np.array(outcome), 4), **CLOSE
    )
    # A lone rollout: no baseline here, no advantage there.
    lone = rl.leave_one_out(outcome[:1], ids[:1], num_groups=1)
    assert float(lone[0]) == 1.0 and float(tunix.compute_rloo_advantages(np.array(outcome[:1]), 1)[0]) == 0.0


def test_equal_rewards_give_zero_and_noise_in_the_peer(tunix):
    same = np.full(3, 0.1, np.float32)
    theirs = tunix.compute_advantages(same, 3)
    ours = rl.grpo_advantages(np.zeros((3, 1)), same, np.ones((3, 1), bool), np.zeros(3, int), num_groups=1)
    np.testing.assert_array_equal(ours, np.zeros((3, 1)))
    assert np.abs(theirs).max() < 0.02  # rounding over 1e-6


def test_advantages_with_a_critic_and_whitening(tunix, rows):
    rewards, values, mask, _ = rows
    theirs, returns = tunix.compute_gae_advantages(rewards, values, mask, DISCOUNT, LAMBDA)
    ours = rl.generalized_advantages(rewards, values, mask, discount=DISCOUNT, lambda_=LAMBDA)
    np.testing.assert_allclose(np.where(mask, ours + values, 0), np.where(mask, returns, 0), **CLOSE)
    np.testing.assert_allclose(rl.whiten(ours, mask), np.where(mask, theirs, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("ours", "theirs"), [("k1", "kl"), ("k2", "mse_kl"), ("k3", "low_var_kl")])
def test_divergences(tunix_common, rows, ours, theirs):
    logp, ref_logp, mask, _ = rows
    kl = tunix_common.compute_kl_divergence(np.array(logp), np.array(ref_logp), theirs)
    found = rl.token_kl(logp, ref_logp, mask, estimator=ours)
    np.testing.assert_allclose(found, np.where(mask, kl, 0), **CLOSE)


def test_means_over_tokens(tunix_common, rows):
    values, _, mask, _ = rows
    mask = mask.copy()
    mask[2] = False  # a row without tokens counts in neither
    names = {
        "token-mean": "token-mean",
        "seq-mean-token-mean": "sequence-mean-token-mean",
        "seq-mean-token-sum": "seq-mean-token-sum",
    }
    for ours, theirs in names.items():
        expected = tunix_common.aggregate_loss(np.array(values), np.array(mask), theirs)
        np.testing.assert_allclose(rl.aggregate_tokens(values, mask, aggregation=ours).mean(), expected, **CLOSE)
    scaled = tunix_common.aggregate_loss(np.array(values), np.array(mask), "sequence-mean-token-scale")
    ours = rl.aggregate_tokens(values, mask, aggregation="seq-mean-token-sum-norm").mean()
    np.testing.assert_allclose(ours / 3, scaled, **CLOSE)  # the three rows with tokens
