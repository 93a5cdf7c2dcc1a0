"""Isotonic regression against a slow textbook loop, its min-max formula, and hand-worked cases."""

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stats import compiled as stats

FIT = jax.jit(stats.isotonic_regression)


def slow_pava(values, weights):
    """Textbook pooling on Python lists; entries of weight 0 take the block on their left."""
    blocks = []  # [sum, weight, members]
    for i, (v, w) in enumerate(zip(values, weights, strict=True)):
        if w == 0:
            if blocks:
                blocks[-1][2].append(i)
            continue
        blocks.append([v * w, w, [i]])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            s, w2, members = blocks.pop()
            blocks[-1][0] += s
            blocks[-1][1] += w2
            blocks[-1][2] += members
    out = np.zeros(len(values))
    for s, w, members in blocks:
        out[members] = s / w
    leading = [i for i, w in enumerate(weights) if w == 0 and (not blocks or i < min(blocks[0][2]))]
    if blocks:
        out[leading] = blocks[0][0] / blocks[0][1]
    return out


def minmax(values):
    """max_{j<=i} min_{k>=i} mean(v_j..v_k)."""
    n = len(values)
    return np.array([max(min(np.mean(values[j : k + 1]) for k in range(i, n)) for j in range(i + 1)) for i in range(n)])


def test_by_hand():
    out = stats.isotonic_regression(np.array([1.0, 3.0, 2.0, 2.0, 5.0, 4.0]))
    np.testing.assert_allclose(out, [1, 7 / 3, 7 / 3, 7 / 3, 4.5, 4.5], rtol=1e-6)
    out = stats.isotonic_regression(np.array([3.0, 1.0]), np.array([1.0, 3.0]))
    np.testing.assert_allclose(out, [1.5, 1.5])
    out = stats.isotonic_regression(np.array([1.0, 2.0, 3.0]), increasing=False)
    np.testing.assert_allclose(out, [2, 2, 2])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_matches_loops(seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=9), rng.integers(0, 4, size=9).astype(float)
    out = FIT(np.where(weights > 0, values, np.nan), np.array(weights))
    np.testing.assert_allclose(out, slow_pava(values, weights), atol=2e-6)
    np.testing.assert_allclose(FIT(np.array(values), np.ones(9)), minmax(values), atol=2e-6)


def test_batched_equals_rows():
    values = jax.random.normal(jax.random.key(0), (3, 4, 7))
    batched = FIT(values)
    rows = np.stack([np.stack([FIT(r) for r in m]) for m in values])
    chex.assert_trees_all_close(batched, rows)
    chex.assert_trees_all_close(jax.vmap(stats.isotonic_regression)(values), batched)


def test_gradient_is_the_projection():
    values = np.array([1.0, 3.0, 2.0, 5.0])
    jacobian = jax.jacobian(stats.isotonic_regression)(values)
    expected = np.array([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(jacobian, expected, atol=1e-6)


def test_large_input_is_in_place():
    values = jax.random.normal(jax.random.key(1), (20_000,))
    out = stats.isotonic_regression(values)
    assert bool((np.diff(out) >= 0).all())
    np.testing.assert_allclose(out.mean(), values.mean(), atol=1e-4)


def test_fit_is_order_free_and_ignores_masked():
    scores = np.array([0.1, 0.4, 0.4, 0.9, np.nan])
    labels = np.array([0.0, 1.0, 0.0, 0.25, np.nan])
    mask = np.array([1, 1, 1, 1, 0], bool)
    fit = stats.fit_isotonic(scores, labels, mask)
    # 0.4 averages to 0.5, which violates 0.25 at 0.9: (1 + 0 + 0.25) / 3.
    np.testing.assert_allclose(fit.values, [0, 1.25 / 3, 1.25 / 3, 1.25 / 3, 1.25 / 3], rtol=1e-6)
    order = np.array([4, 2, 3, 0, 1])
    chex.assert_trees_all_close(stats.fit_isotonic(scores[order], labels[order], mask[order]), fit)
    read = stats.apply_isotonic(fit, np.array([-5.0, 0.1, 0.25, 0.4, 2.0]))
    np.testing.assert_allclose(read, [0, 0, 1.25 / 6, 1.25 / 3, 1.25 / 3], rtol=1e-6)


def test_fit_lowers_brier():
    rng = np.random.default_rng(3)
    scores = rng.uniform(size=400)
    labels = rng.uniform(size=400) < scores**2
    fit = stats.fit_isotonic(np.array(scores), np.array(labels))
    fitted = stats.apply_isotonic(fit, np.array(scores))
    assert ((fitted - labels) ** 2).mean() <= ((scores - labels) ** 2).mean()
    np.testing.assert_allclose(fitted.mean(), labels.mean(), atol=1e-5)


def test_empty_fit_is_zero():
    fit = stats.fit_isotonic(np.array([np.nan]), np.array([1.0]), np.array([False]))
    np.testing.assert_array_equal(stats.apply_isotonic(fit, np.array([0.3])), [0.0])


def test_venn_abers_brackets_the_plain_fit():
    rng = np.random.default_rng(4)
    scores = rng.normal(size=300)
    labels = (rng.uniform(size=300) < 1 / (1 + np.exp(-2 * scores))).astype(float)
    tests = np.array([-1.5, 0.0, 0.3, 2.0])
    lower, upper = jax.jit(stats.venn_abers)(np.array(scores), np.array(labels), tests)
    assert bool((lower <= upper).all()) and bool((lower >= 0).all()) and bool((upper <= 1).all())
    truth = 1 / (1 + np.exp(-2 * np.array(tests)))
    assert np.abs((lower + upper) / 2 - truth).max() < 0.15
    for score, low, high in zip(np.array(tests), lower, upper, strict=True):
        for label, want in ((0.0, low), (1.0, high)):
            order = np.argsort(np.append(scores, score), kind="stable")
            fit = slow_pava(np.append(labels, label)[order], np.ones(301))
            np.testing.assert_allclose(fit[np.argmax(order == 300)], want, atol=1e-5)
    nothing = stats.venn_abers(np.zeros(1), np.zeros(1), tests, np.array([False]))
    np.testing.assert_array_equal(nothing[0], np.zeros(4))
    np.testing.assert_array_equal(nothing[1], np.ones(4))


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        stats.isotonic_regression(np.zeros(3), np.zeros(4))
