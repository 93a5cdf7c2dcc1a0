"""Confidence intervals over independent repeats, such as the seeds of an experiment; on the host, in float64."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Method = Literal["student", "bca"]


class Interval(NamedTuple):
    """An estimate and its confidence interval.

    Attributes:
      value: the statistic of all repeats.
      low: lower confidence bound.
      high: upper confidence bound.
    """

    value: float
    low: float
    high: float


def interval(
    values: ArrayLike | Sequence[float],
    *,
    method: Method = "student",
    level: float = 0.95,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Confidence interval of a statistic of independent repeats.

    "student" is exact for the mean of normal repeats, and the one to use for a handful of seeds. "bca" is the
    bias-corrected and accelerated bootstrap (Efron, 1987), for other statistics and skewed repeats; it needs some
    twenty repeats, and covers too little with five. For a paired comparison pass the differences.

    Args:
      values: [R] finite numbers, one per repeat, R >= 2.
      method: "student" or "bca".
      level: nominal coverage, between 0 and 1.
      statistic: for "bca", a function that reduces the last axis; the mean if None.
      resamples: bootstrap samples of "bca", at least 100.
      seed: of the bootstrap samples.

    Returns:
      `Interval`: the statistic and its bounds, Python floats; equal numbers where all repeats are equal. No gradient.

    Raises:
      ValueError: fewer than two repeats, numbers that are not finite, or an argument outside its range.

    Source: Student 1908 (Biometrika 6); Efron 1987, "Better bootstrap confidence intervals", equation 2.3.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or x.size < 2:
        raise ValueError(f"expected at least two repeats, found an array of shape {x.shape}: run more seeds")
    if not np.isfinite(x).all():
        raise ValueError(f"expected finite numbers, found {x[~np.isfinite(x)][0]}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a number between 0 and 1, found {level}")
    if method == "student":
        if statistic is not None:
            raise ValueError("a Student interval is for the mean; pass method='bca' for another statistic")
        return _student(x, level)
    if method != "bca":
        raise ValueError(f"method: expected 'student' or 'bca', found {method!r}")
    if resamples < 100:
        raise ValueError(f"resamples: expected at least 100, found {resamples}")
    return _bca(x, level, _mean if statistic is None else statistic, resamples, seed)


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean(-1)


def _student(x: np.ndarray, level: float) -> Interval:
    from scipy.special import stdtrit  # scipy comes with jax

    half = float(stdtrit(x.size - 1, (1 + level) / 2) * x.std(ddof=1) / np.sqrt(x.size))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def _bca(
    x: np.ndarray, level: float, statistic: Callable[[np.ndarray], np.ndarray], resamples: int, seed: int
) -> Interval:
    from scipy.special import ndtr, ndtri

    value = float(statistic(x))
    drawn = np.asarray(statistic(x[np.random.default_rng(seed).integers(x.size, size=(resamples, x.size))]))
    if np.ptp(drawn) == 0.0:
        return Interval(value, value, value)
    # Half of the ties count as below; the share stays away from 0 and 1, where the correction would be infinite.
    below = np.mean(drawn < value) + np.mean(drawn == value) / 2
    bias = ndtri(np.clip(below, 1 / (resamples + 1), resamples / (resamples + 1)))
    left_out = np.array([float(statistic(np.delete(x, i))) for i in range(x.size)])
    influence = left_out.mean() - left_out
    spread = np.sum(influence**2)
    acceleration = 0.0 if spread == 0.0 else np.sum(influence**3) / (6 * spread**1.5)
    shifted = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(drawn, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return Interval(value, float(low), float(high))
