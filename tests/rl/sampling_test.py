"""Filters by reward rank, importance weights, control variates, budgets: loops, enumeration, exact identities."""

import jax
import numpy as np
import pytest

from tests.rl import compiled as rl

FILTER = jax.jit(rl.filter_weights, static_argnames=("num_groups", "kind", "power"))


def slow_filter(rewards, kind, power=2.0):
    """One prompt; ties for an end share its weight."""
    n = len(rewards)
    if n == 1 or kind == "none":
        return np.full(n, 1 / n)
    if kind == "power":
        raw = np.abs(rewards) ** power
        return raw / raw.sum() if raw.sum() else np.full(n, 1 / n)
    best = (rewards == rewards.max()) / (rewards == rewards.max()).sum()
    worst = (rewards == rewards.min()) / (rewards == rewards.min()).sum()
    return {
        "best_of_n": best,
        "best_worst": (best + worst) / 2,
        "best_random": best / 2 + (1 - best) / (n - 1) / 2,
    }[kind]


@pytest.mark.parametrize("kind", ["none", "best_of_n", "best_random", "best_worst", "power"])
def test_filter_matches_a_loop(kind):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        ids = rng.integers(-1, 4, size=14)
        rewards = np.round(rng.normal(size=14) * 2) / 2
        expected = np.zeros(14)
        for g in range(4):
            if (ids == g).any():
                expected[ids == g] = slow_filter(rewards[ids == g], kind)
        dirty = np.where(ids < 0, np.nan, rewards)
        out = FILTER(np.array(dirty), np.array(ids), num_groups=4, kind=kind)
        np.testing.assert_allclose(out, expected, atol=1e-6)


def test_released_weights_of_five_samples():
    # The authors' code draws the best with weight .4 and each of the others with .1.
    out = FILTER(np.array([0.1, 0.9, 0.3, 0.2, 0.5]), np.zeros(5, int), num_groups=1, kind="best_random")
    np.testing.assert_allclose(out, np.array([0.1, 0.4, 0.1, 0.1, 0.1]) / 0.8, rtol=1e-6)


def test_ranking_within_prompts_differs_from_ranking_the_batch():
    rewards, ids = np.array([5.0, 4.0, 1.0, 0.0]), np.array([0, 0, 1, 1])
    np.testing.assert_allclose(FILTER(rewards, ids, num_groups=2, kind="best_worst"), [0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(FILTER(rewards, np.zeros(4, int), num_groups=1, kind="best_worst"), [0.5, 0, 0, 0.5])


def test_reweighted_loss_is_the_expected_loss_of_resampling():
    rewards, losses = np.array([0.3, -1.0, 0.8, 0.1]), np.array([1.0, 2.0, 4.0, 8.0])
    weights = FILTER(rewards, np.zeros(4, int), num_groups=1, kind="best_random")
    drawn = jax.random.categorical(jax.random.key(0), np.log(weights), shape=(40_000,))
    np.testing.assert_allclose((weights * losses).sum(), losses[drawn].mean(), atol=0.06)


def test_importance_weights_are_unbiased_by_enumeration():
    logp, logq = np.log(np.array([0.5, 0.3, 0.2])), np.log(np.array([0.2, 0.2, 0.6]))
    weights, _ = rl.importance_weights(logp, logq)
    np.testing.assert_allclose((np.exp(logq) * weights * np.array([1.0, 10, 100])).sum(), 23.5, rtol=1e-5)
    clipped, _ = rl.importance_weights(logp, logq, kind="clip", clip=1.5)
    np.testing.assert_allclose(clipped, [1.5, 1.5, 1 / 3], rtol=1e-5)
    own, ess = rl.importance_weights(logp + 300, logq, kind="snis")  # constants do not matter
    np.testing.assert_allclose(own, np.array([2.5, 1.5, 1 / 3]) / (13 / 9), rtol=1e-4)
    np.testing.assert_allclose(ess, (2.5 + 1.5 + 1 / 3) ** 2 / (2.5**2 + 1.5**2 + 1 / 9), rtol=1e-4)


def test_importance_weights_masks_devices_and_gradients():
    rng = np.random.default_rng(0)
    logp, logq = np.array(rng.normal(size=(2, 6))), np.array(rng.normal(size=(2, 6)))
    mask = np.array(rng.uniform(size=(2, 6)) < 0.7)
    dirty = np.where(mask, logp, np.nan)
    for kind in ("plain", "snis", "clip"):
        whole = rl.importance_weights(dirty, logq, mask, kind=kind)
        split = jax.vmap(
            lambda p, q, m, kind=kind: rl.importance_weights(p, q, m, kind=kind, axis_name="d"), axis_name="d"
        )(dirty, logq, mask)
        np.testing.assert_allclose(split[0], whole[0], rtol=1e-5)
        np.testing.assert_allclose(split[1], np.full(2, whole[1]), rtol=1e-5)
        used = whole[0][mask]
        np.testing.assert_allclose(whole[1], used.sum() ** 2 / (used**2).sum(), rtol=1e-4)
        grads = jax.grad(lambda p, q, kind=kind: rl.importance_weights(p, q, mask, kind=kind)[0].sum(), (0, 1))(
            dirty, logq
        )
        assert bool(np.isfinite(grads[0]).all()) and float(np.abs(grads[1]).max()) == 0
    weights, ess = rl.importance_weights(dirty, logq, np.zeros_like(mask), kind="snis")
    assert ess == 0 and float(np.abs(weights).max()) == 0


def test_budget_is_neymans_and_sums_exactly():
    rates = np.array([0.5, 0.1, 0.0, 1.0, 0.9])
    allocate = jax.jit(rl.budget_allocation, static_argnames=("total", "minimum"))
    out = allocate(rates, total=110)
    np.testing.assert_array_equal(out, [50, 30, 0, 0, 30])  # sqrt(p(1-p)) = .5, .3, 0, 0, .3
    for total in (0, 1, 7, 64):
        out = allocate(rates, np.array([True, True, True, True, False]), total=total, minimum=2)
        assert out.sum() == total and out[4] == 0 and out.min() >= 0
        assert total < 8 or out[:4].min() >= 2
    np.testing.assert_array_equal(allocate(np.array([0.0, 1.0]), total=5), [3, 2])
    np.testing.assert_array_equal(allocate(np.full(3, np.nan), np.zeros(3, bool), total=5), [0, 0, 0])


def test_budget_lowers_the_variance_of_the_mean_solve_rate():
    rates = np.array([0.5, 0.5, 0.02, 0.98])
    spent = np.array(rl.budget_allocation(np.array(rates), total=64, minimum=1))
    variance = lambda n: (rates * (1 - rates) / n).sum()  # noqa: E731
    assert variance(spent) < variance(np.full(4, 16))


def test_answer_confidence_by_hand():
    answers = np.array([3, 3, 5, -1, 7, 7, -1, 2])
    ids = np.array([0, 0, 0, 0, 1, 1, 2, -1])
    out = rl.answer_confidence(answers, ids, num_groups=4)
    np.testing.assert_allclose(out, [0.5, 1.0, 0.0, 0.0])


def test_answer_confidence_tracks_the_solve_rate():
    """Wrong answers scatter, right ones agree: confidence ranks prompts by how often they are solved."""
    rng = np.random.default_rng(0)
    solve = rng.uniform(size=200)
    ids = np.repeat(np.arange(200), 16)
    answers = np.where(rng.uniform(size=3200) < solve[ids], 0, rng.integers(1, 40, size=3200))
    confidence = np.array(rl.answer_confidence(np.array(answers), np.array(ids), num_groups=200))
    hard = solve < 0.3
    wins = (confidence[~hard][:, None] > confidence[hard][None]).mean()
    assert wins > 0.95
