"""Filters of prompts: published decisions, and bounds that hold in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import compiled as rl
from tests.rl import golden


def test_published_decisions():
    case = golden.load("prime")["filters"]
    given, out = case["in"], case["out"]
    acc, lengths = np.array(given["acc"]), np.array(given["lengths"])
    ids = np.repeat(np.arange(6), 4)
    bounds = {"low": given["lo"], "high": given["hi"]}
    solved = rl.solve_rate_mask(acc.ravel(), ids, num_groups=6, **bounds)
    np.testing.assert_array_equal(solved, out["prime_acc_mask"])
    limit = given["max_response_length"]
    whole = rl.truncation_mask(lengths.ravel(), ids, num_groups=6, max_length=limit)
    np.testing.assert_array_equal(whole, out["prime_trunc_keep"])
    np.testing.assert_array_equal(solved & whole, out["prime_keep"])
    # The recipe in verl calls a response cut one token earlier, and fills up with prompts that failed.
    passes = solved & rl.truncation_mask(lengths.ravel(), ids, num_groups=6, max_length=limit - 1)
    np.testing.assert_array_equal(passes, out["verl_pass"])
    order = rl.passing_first(passes)
    np.testing.assert_array_equal(order, out["verl_stable_order"])
    np.testing.assert_array_equal(order[: 6 // given["oversample_factor"]], out["verl_kept_prompts"])


def test_bounds_are_inclusive_despite_rounding():
    """Exactly k right out of n passes a bound of k/n, written in Python, for every k and n."""

    def passes(right, size, low, high):
        outcome, ids = jnp.arange(32) < right, jnp.where(jnp.arange(32) < size, 0, -1)
        return rl.solve_rate_mask(outcome, ids, num_groups=1, low=low, high=high)[0]

    cases = np.array([(k, n, k / n) for n in range(1, 33) for k in range(n + 1)])
    right, size, bound = cases[:, 0].astype(int), cases[:, 1].astype(int), cases[:, 2]
    every = jax.jit(jax.vmap(passes))
    assert np.all(every(right, size, bound, np.ones(len(cases))))
    assert np.all(every(right, size, np.zeros(len(cases)), bound))
    beyond = every(right, size, bound + 1e-3, np.ones(len(cases)))
    assert not np.any(beyond)


def test_groups_of_uneven_size_and_rows_that_do_not_count():
    outcome, ids = np.array([1, 0, 1, 1, np.nan, 0]), np.array([2, 2, 0, 0, 2, -1])
    mask = np.array([True, True, True, True, False, True])
    keep = jax.jit(lambda a: rl.solve_rate_mask(a, ids, num_groups=4, mask=mask))(outcome)
    np.testing.assert_array_equal(keep, [False, False, True, False])
    np.testing.assert_array_equal(rl.rows_of_groups(keep, ids), [True, True, False, False, True, False])


def test_bad_input():
    with pytest.raises(AssertionError):
        rl.solve_rate_mask(np.ones(3), np.zeros(2, int), num_groups=1)
