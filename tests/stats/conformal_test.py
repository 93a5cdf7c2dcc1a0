"""Conformal selection and intervals: slow loops, textbook cases, and the guarantees on simulated data."""

import jax
import numpy as np
import pytest

from tests.stats import compiled as stats


def slow_bh(p, level):
    order, m = np.argsort(p), len(p)
    k = max((i + 1 for i in range(m) if p[order[i]] <= level * (i + 1) / m), default=0)
    selected = np.zeros(m, bool)
    selected[order[:k]] = True
    return selected


def slow_optcs(cal, good, test, level, uniforms):
    """The published procedure, loop by loop, with scores V = 1000 * good - score."""
    n, m = len(good), len(test)
    v, v_test = 1000.0 * good[:, None] - cal, -test
    p, size, choice = np.zeros(m), np.zeros(m, int), np.zeros(m, int)
    for j in range(m):
        sizes = []
        for k in range(cal.shape[1]):
            aux = np.zeros(m)
            for l in range(m):
                if l != j:
                    aux[l] = ((v[:, k] <= v_test[l, k]).sum() + (v_test[j, k] <= v_test[l, k])) / (n + 1)
            sizes.append(slow_bh(aux, level).sum())
        choice[j], size[j] = int(np.argmax(sizes)), max(sizes)
        p[j] = (1 + (v[:, choice[j]] < v_test[j, choice[j]]).sum()) / (n + 1)
    e = (p <= level * size / m) / (level * size / m)
    return slow_bh(np.where(e > 0, uniforms / np.where(e > 0, e, 1), np.inf), level), choice, p, e


def toy(seed, n=30, m=12, k=3, digits=1):
    rng = np.random.default_rng(seed)
    y_cal, y_test = rng.normal(size=n), rng.normal(size=m)
    noise = np.linspace(0.3, 1.5, k)
    cal = y_cal[:, None] + noise * rng.normal(size=(n, k))
    test = y_test[:, None] + noise * rng.normal(size=(m, k))
    return np.round(cal, digits), y_cal > 0, np.round(test, digits), y_test > 0  # rounding makes ties


def test_pvalues_by_hand_and_loop():
    scores, good = np.array([0.9, 0.8, 0.5, 0.2]), np.array([True, False, False, True])
    p = stats.conformal_pvalues(scores, good, np.array([0.95, 0.8, 0.6, 0.1]))
    np.testing.assert_allclose(p, [1 / 5, 2 / 5, 2 / 5, 3 / 5], rtol=1e-6)
    for seed in range(3):
        cal, good, test, _ = toy(seed)
        u = np.random.default_rng(seed).uniform(size=12)
        v, w = 1000 * good - cal[:, 0], -test[:, 0]
        expected = [((v < w[j]).sum() + u[j] * ((v == w[j]).sum() + 1)) / 31 for j in range(12)]
        padded = np.append(np.array(cal[:, 0]), np.nan)
        out = stats.conformal_pvalues(
            padded,
            np.append(np.array(good), False),
            np.array(test[:, 0]),
            np.arange(31) < 30,
            uniforms=np.array(u),
        )
        np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_pvalues_are_uniform_under_the_null():
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(2000, 21))
    uniforms = np.array(rng.uniform(size=(2000, 1)))
    p = jax.vmap(lambda s, u: stats.conformal_pvalues(s[:20], np.zeros(20, bool), s[20:], uniforms=u))(
        np.array(keys), uniforms
    )
    for t in (0.1, 0.5, 0.9):
        assert abs(float((p <= t).mean()) - t) < 0.035  # three standard errors


@pytest.mark.parametrize("seed", range(3))
def test_benjamini_hochberg_matches_a_loop(seed):
    p = np.random.default_rng(seed).uniform(size=(4, 9)) ** 3
    p[1] = 1.0
    out = stats.benjamini_hochberg(np.array(p, np.float32), level=0.2)
    np.testing.assert_array_equal(out, [slow_bh(row, 0.2) for row in p])
    padded = np.concatenate([np.array(p, np.float32), np.full((4, 2), np.nan)], -1)
    masked = stats.benjamini_hochberg(padded, np.isfinite(padded), level=0.2)
    np.testing.assert_array_equal(masked[:, :9], out)
    assert not masked[:, 9:].any()


def test_benjamini_hochberg_steps_up():
    # 0.04 > 0.2 / 4 * ... alone would fail at rank 1, but rank 2 and 3 carry it.
    p = np.array([0.06, 0.09, 0.14, 0.9])
    np.testing.assert_array_equal(stats.benjamini_hochberg(p, level=0.2), [1, 1, 1, 0])
    np.testing.assert_array_equal(stats.e_benjamini_hochberg(1 / p, level=0.2), [1, 1, 1, 0])
    assert not stats.e_benjamini_hochberg(np.zeros(4), level=0.2).any()


@pytest.mark.parametrize("pruning", ["deterministic", "homogeneous", "heterogeneous"])
def test_optimized_selection_matches_the_published_loop(pruning):
    run = jax.jit(stats.optimized_selection, static_argnames=("level", "pruning"))
    for seed in range(4):
        cal, good, test, _ = toy(seed)
        key = jax.random.key(seed)
        shape = {"heterogeneous": (12,), "homogeneous": ()}.get(pruning)
        uniforms = np.ones(12) if shape is None else np.array(1 - jax.random.uniform(key, shape)) * np.ones(12)
        selected, choice, p, e = slow_optcs(cal, good, test, 0.3, uniforms)
        out = run(np.array(cal), np.array(good), np.array(test), key, level=0.3, pruning=pruning)
        np.testing.assert_array_equal(out.scorer, choice)
        np.testing.assert_allclose(out.pvalues, p, rtol=1e-5)
        np.testing.assert_allclose(out.evalues, e, rtol=1e-5)
        np.testing.assert_array_equal(out.selected, selected)


def test_one_scorer_selects_within_plain_conformal_selection():
    for seed in range(5):
        cal, good, test, _ = toy(seed, k=1, digits=9)
        out = stats.optimized_selection(
            np.array(cal), np.array(good), np.array(test), jax.random.key(0), level=0.3, pruning="deterministic"
        )
        p = stats.conformal_pvalues(np.array(cal[:, 0]), np.array(good), np.array(test[:, 0]))
        plain = stats.benjamini_hochberg(p, level=0.3)
        assert not (out.selected & ~plain).any()


def test_interval_by_hand_and_coverage():
    lower, upper = stats.conformal_interval(
        np.array([0.0]), np.array([1.0]), np.zeros(4), np.ones(4), np.array([0.5, 1.2, -0.3, 1.9]), level=0.6
    )
    # Misses -0.5, 0.2, 0.3, 0.9; the ceil(5 * 0.6) = 3rd smallest is 0.3.
    np.testing.assert_allclose([lower[0], upper[0]], [-0.3, 1.3], rtol=1e-6)
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        y = rng.normal(size=60)
        lo, hi = stats.conformal_interval(
            np.full(10, -0.5), np.full(10, 0.4), np.full(50, -0.5), np.full(50, 0.4), np.array(y[:50]), level=0.8
        )
        covered.append(((np.array(lo) <= y[50:]) & (y[50:] <= np.array(hi))).mean())
    assert 0.78 < np.mean(covered) < 0.84


def test_interval_without_enough_data_is_infinite():
    for mask in (np.zeros(3, bool), np.array([True, True, False])):
        lower, upper = stats.conformal_interval(
            np.zeros(1), np.ones(1), np.zeros(3), np.ones(3), np.array([0.5, 2.0, np.nan]), mask, level=0.9
        )
        assert lower[0] == -np.inf and upper[0] == np.inf
