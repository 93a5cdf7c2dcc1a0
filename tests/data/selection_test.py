"""Prompt filters against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prm_jax.data import select_by_solve_rate, solve_rate_passes
from prm_jax.errors import UserError

# Six prompts of four samples: solve rates 1, 0, 1/4, 3/4, 1/2, 1/8 (fractional outcomes).  The expected choices of
# the released PRIME filter and of verl's port of it, on these numbers.
OUTCOME = np.array(
    [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0.1, 0.2, 0.1, 0.1]], np.float32
)
LENGTHS = np.array([[9, 8, 7, 6], [5, 5, 5, 5], [12, 3, 4, 5], [11, 4, 5, 6], [10, 9, 2, 3], [4, 4, 4, 4]])


def test_bounds_are_inclusive():
    np.testing.assert_array_equal(solve_rate_passes(OUTCOME), [0, 0, 1, 1, 1, 0])
    fifth = np.zeros((2, 5), np.float32)
    fifth[0, :4] = 1  # 4/5: not 0.8 in float32 if only one side is rounded
    fifth[1, :1] = 1
    np.testing.assert_array_equal(solve_rate_passes(fifth, low=0.2, high=0.8), [1, 1])
    np.testing.assert_array_equal(solve_rate_passes(OUTCOME, low=0.0, high=1.0), [1] * 6)


def test_truncated_prompts_fail():
    np.testing.assert_array_equal(solve_rate_passes(OUTCOME, truncated=LENGTHS >= 12), [0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(solve_rate_passes(OUTCOME, truncated=LENGTHS >= 11), [0, 0, 0, 0, 1, 0])


def test_unusable_verdicts_count_in_neither_mean_nor_denominator():
    outcome = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]], np.float32)
    usable = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
    # One usable response; 2 of 2; 2 of 3.
    np.testing.assert_array_equal(solve_rate_passes(outcome, usable=usable), [0, 0, 1])


def test_resample_keeps_order_and_returns_the_surplus():
    chosen = select_by_solve_rate(OUTCOME, wanted=2)
    np.testing.assert_array_equal(chosen.index, [2, 3])
    np.testing.assert_array_equal(chosen.surplus, [4])
    assert chosen.missing == 0 and chosen.passing.all()
    short = select_by_solve_rate(OUTCOME, wanted=6)
    assert short.missing == 3 and len(short.index) == 3 and len(short.surplus) == 0


def test_oversample_fills_with_failing_prompts_in_a_stable_order():
    chosen = select_by_solve_rate(OUTCOME, wanted=3, mode="oversample", truncated=LENGTHS >= 11)
    np.testing.assert_array_equal(chosen.index, [4, 0, 1])
    np.testing.assert_array_equal(chosen.passing, [1, 0, 0])
    assert chosen.missing == 0 and len(chosen.surplus) == 0
    np.testing.assert_array_equal(select_by_solve_rate(OUTCOME, wanted=2, mode="oversample").surplus, [4])


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 9), st.integers(0, 5)), elements=st.sampled_from([0, 0.5, 1])),
    st.integers(0, 9),
)
def test_every_prompt_is_chosen_surplus_or_failing(outcome, wanted):
    passes = solve_rate_passes(outcome)
    resampled = select_by_solve_rate(outcome, wanted=wanted)
    both = np.concatenate([resampled.index, resampled.surplus])
    np.testing.assert_array_equal(both, np.nonzero(passes)[0])
    assert len(resampled.index) + resampled.missing == wanted
    if wanted <= len(outcome):
        static = select_by_solve_rate(outcome, wanted=wanted, mode="oversample")
        assert len(static.index) == wanted == len(set(static.index.tolist()))
        assert static.passing.sum() == min(wanted, passes.sum())
        assert (np.diff(static.passing.astype(int)) <= 0).all()


def test_bad_input():
    with pytest.raises(UserError, match="low=0.9 and high=0.1"):
        solve_rate_passes(OUTCOME, low=0.9, high=0.1)
    with pytest.raises(UserError, match="at least 9 prompts"):
        select_by_solve_rate(OUTCOME, wanted=9, mode="oversample")
    with pytest.raises(UserError, match="unknown mode"):
        select_by_solve_rate(OUTCOME, wanted=1, mode="other")
    with pytest.raises(ValueError, match=r"\[P, G\]"):
        solve_rate_passes(OUTCOME[0])
