"""Intervals over repeats: numbers from tables, coverage by simulation, an independent BCa, bad input."""

import numpy as np
import pytest
import scipy.stats

from prm_jax import stats


def test_student_agrees_with_the_table():
    found = stats.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * np.sqrt(2.5 / 5)  # t at 0.975 with 4 degrees of freedom
    np.testing.assert_allclose(found, (3.0, 3.0 - half, 3.0 + half), rtol=1e-6)


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_bca_agrees_with_scipy(statistic):
    x = np.random.default_rng(3).exponential(size=30)
    found = stats.interval(x, method="bca", statistic=lambda rows: statistic(rows, axis=-1), resamples=50_000)
    other = scipy.stats.bootstrap(
        (x,), statistic, axis=-1, n_resamples=50_000, method="BCa", rng=np.random.default_rng(4)
    ).confidence_interval
    np.testing.assert_allclose(found[1:], other, atol=0.02)


def _coverage(draw, truth, runs, **options):
    found = [stats.interval(draw(np.random.default_rng(run)), **options) for run in range(runs)]
    return np.mean([low <= truth <= high for _, low, high in found])


def test_student_covers_what_it_promises_with_five_seeds():
    """2,000 simulations: a standard error of 0.5 %."""
    assert _coverage(lambda rng: rng.normal(2.0, 3.0, 5), 2.0, 2000) == pytest.approx(0.95, abs=0.015)
    assert _coverage(lambda rng: rng.normal(2.0, 3.0, 5), 2.0, 2000, level=0.8) == pytest.approx(0.8, abs=0.027)


def test_bca_covers_skewed_repeats_better_than_percentiles():
    def percentiles(x):
        drawn = x[np.random.default_rng(0).integers(x.size, size=(500, x.size))].mean(-1)
        return np.quantile(drawn, [0.025, 0.975])

    samples = [np.random.default_rng(run).exponential(size=40) for run in range(400)]
    bca = [stats.interval(x, method="bca", resamples=500)[1:] for x in samples]
    plain = [percentiles(x) for x in samples]
    covered = [np.mean([low <= 1.0 <= high for low, high in found]) for found in (bca, plain)]
    assert covered[0] > 0.9 and covered[0] >= covered[1]


def test_bca_covers_too_little_with_five_seeds():
    """As the docstring says."""
    assert _coverage(lambda rng: rng.normal(size=5), 0.0, 400, method="bca", resamples=500) < 0.93


def test_equal_repeats_have_an_interval_without_width():
    for method in ("student", "bca"):
        assert stats.interval([0.3] * 6, method=method) == pytest.approx((0.3, 0.3, 0.3))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0], {}, "at least two repeats"),
        ([[1.0, 2.0]], {}, "at least two repeats"),
        ([1.0, np.nan], {}, "finite"),
        ([1.0, 2.0], {"level": 95}, "between 0 and 1"),
        ([1.0, 2.0], {"method": "normal"}, "'student' or 'bca'"),
        ([1.0, 2.0], {"method": "bca", "resamples": 10}, "at least 100"),
        ([1.0, 2.0], {"statistic": np.median}, "method='bca'"),
    ],
)
def test_nonsense_is_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        stats.interval(values, **options)
