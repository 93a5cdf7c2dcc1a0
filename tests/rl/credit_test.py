"""Credit by hand: one response of three steps, and groups of unequal length."""

import jax
import numpy as np
import pytest

from tests.rl import compiled as rl

REWARDS = np.array([[0.5, 0.25, -1.0, 0.5, 0.25, np.nan]])
STEPS = np.array([[0, 0, 1, 1, 2, -1]])  # step rewards .75, -.5, .25
MASK = STEPS >= 0
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


def test_a_step_gets_its_own_reward():
    np.testing.assert_allclose(rl.step_credit(REWARDS, STEPS, num_steps=4)[0], [0.75, 0.75, -0.5, -0.5, 0.25, 0])


def test_cumulative_credit_ends_at_the_sum_of_all_steps():
    credit = rl.cumulative_credit(REWARDS, STEPS, num_steps=4)[0]
    np.testing.assert_allclose(credit, [0.75, 0.75, 0.25, 0.25, 0.5, 0])


def test_strict_minimum_form():
    credit = rl.min_credit(REWARDS, STEPS, MASK, num_steps=4, temperature=0.0)[0]
    np.testing.assert_allclose(credit, [-0.5, -0.5, -0.5, -0.5, 0, 0])
    tie = rl.min_credit(np.array([[-1.0, 2.0, -1.0]]), np.array([[0, 1, 2]]), np.ones((1, 3), bool), num_steps=3,
                        temperature=0.0)  # fmt: skip
    np.testing.assert_allclose(tie[0], [-1, 0, 0])


def test_soft_minimum_form_is_the_return_of_weighted_rewards():
    """Weights softmax(-r / T) over the steps, then the undiscounted return, as released."""
    r = np.array([0.75, -0.5, 0.25])
    w = np.exp(-r / 0.1) / np.exp(-r / 0.1).sum()
    togo = np.cumsum((w * r)[::-1])[::-1]
    credit = rl.min_credit(REWARDS, STEPS, MASK, num_steps=4)[0]
    np.testing.assert_allclose(credit, [*togo[[0, 0, 1, 1, 2]], 0], **CLOSE)
    cold = rl.min_credit(REWARDS, STEPS, MASK, num_steps=4, temperature=1e-3)
    np.testing.assert_allclose(cold, rl.min_credit(REWARDS, STEPS, MASK, num_steps=4, temperature=0.0), atol=1e-6)


def test_minimum_form_ignores_masked_tokens():
    mask = MASK & (STEPS != 1)  # without the worst step
    credit = rl.min_credit(REWARDS, STEPS, mask, num_steps=4, temperature=0.0)[0]
    np.testing.assert_allclose(credit, [0.25, 0.25, 0, 0, 0.25, 0])


def test_value_differences_add_up_to_the_whole_gain():
    values = np.array([[0.5, 0.25, 1.0, np.nan]])
    credit = rl.value_credit(values, np.array([0.125]), STEPS, num_steps=4)[0]
    np.testing.assert_allclose(credit, [0.375, 0.375, -0.25, -0.25, 0.75, 0])
    once = [credit[0], credit[2], credit[4]]
    np.testing.assert_allclose(sum(once), 1.0 - 0.125)


def test_value_differences_skip_a_step_without_tokens():
    steps = np.array([[0, 2, 2]])
    credit = rl.value_credit(np.array([[0.5, np.nan, 0.25]]), np.zeros(1), steps, num_steps=3)[0]
    np.testing.assert_allclose(credit, [0.5, -0.25, -0.25])


# Two prompts, interleaved; response 0 has steps 1, 3, response 2 has step 5, response 1 is alone.
CREDIT = np.array([[1.0, 1, 3], [7, 7, 7], [5, 0, 0]])
GROUP_STEPS = np.array([[0, 0, 1], [0, 0, 0], [0, -1, -1]])
GROUPS = {"group_ids": np.array([4, 1, 4]), "num_groups": 5, "num_steps": 2}


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("group", [[-2, -2, 0], [0, 0, 0], [2, 0, 0]]),  # the group's three steps have mean 3
        ("leave_one_out", [[-4, -4, -2], [7, 7, 7], [3, 0, 0]]),
        ("step", [[-2, -2, 0], [0, 0, 0], [2, 0, 0]]),  # step 0: mean of 1 and 5; step 1: alone
        ("none", CREDIT),
    ],
)
def test_baselines(baseline, expected):
    mask = GROUP_STEPS >= 0
    centred = rl.centred_credit(CREDIT, GROUP_STEPS, mask, baseline=baseline, **GROUPS)
    np.testing.assert_allclose(centred, expected, **CLOSE)


def test_a_step_counts_once_at_any_length():
    long = np.repeat(CREDIT, 4, 1)
    steps = np.repeat(GROUP_STEPS, 4, 1)
    centred = rl.centred_credit(long, steps, steps >= 0, **GROUPS)
    short = rl.centred_credit(CREDIT, GROUP_STEPS, GROUP_STEPS >= 0, **GROUPS)
    np.testing.assert_allclose(centred, np.repeat(short, 4, 1), **CLOSE)


def test_scaling_gives_unit_deviation_and_silences_groups_that_agree():
    mask = GROUP_STEPS >= 0
    scaled = rl.centred_credit(CREDIT, GROUP_STEPS, mask, scale=True, eps=0.0, **GROUPS)
    np.testing.assert_allclose(scaled, np.array([[-2, -2, 0], [0, 0, 0], [2, 0, 0]]) / 2, **CLOSE)  # deviation 2
    equal = rl.centred_credit(np.full((3, 3), 0.1), GROUP_STEPS, mask, scale=True, eps=0.0, **GROUPS)
    np.testing.assert_array_equal(equal, 0)


def test_masked_step_advantage_at_token_level():
    """SPRO's form, one step per token: cumulative reward minus the mean of the responses that reach the step."""
    rewards = np.array([[1.0, 2.0, 3.0], [3.0, 0.0, 0.0]])
    steps = np.array([[0, 1, 2], [0, 1, -1]])
    cumulative = rl.cumulative_credit(rewards, steps, num_steps=3)
    centred = rl.centred_credit(
        cumulative, steps, steps >= 0, np.zeros(2, int), num_groups=1, num_steps=3, baseline="step"
    )
    np.testing.assert_allclose(centred, [[-1, 0, 0], [1, 0, 0]], **CLOSE)


def test_rows_without_tokens_are_members_of_no_group():
    """Row 1 has garbage for a credit; it must not move the mean of row 0's group."""
    steps = np.array([[0, 1], [-1, -1]])
    centred = rl.centred_credit(
        np.array([[1.0, 2.0], [np.nan, 9.0]]), steps, steps >= 0, np.zeros(2, int), num_groups=1, num_steps=2
    )
    np.testing.assert_allclose(centred, [[-0.5, 0.5], [0, 0]])


def test_credit_reaches_no_gradient_back():
    def total(rewards):
        from prm_jax import rl as plain

        credit = plain.step_credit(rewards, STEPS, num_steps=3) + plain.min_credit(rewards, STEPS, MASK, num_steps=3)
        return credit.sum()

    np.testing.assert_array_equal(jax.grad(total)(np.nan_to_num(REWARDS)), 0)


def test_bad_input():
    with pytest.raises(ValueError, match="temperature=-1"):
        rl.min_credit(REWARDS, STEPS, MASK, num_steps=3, temperature=-1.0)
    with pytest.raises(ValueError, match="baseline='mean'"):
        rl.centred_credit(CREDIT, GROUP_STEPS, GROUP_STEPS >= 0, baseline="mean", **GROUPS)
    with pytest.raises(AssertionError):
        rl.value_credit(np.zeros((1, 3)), np.zeros(1), STEPS, num_steps=4)
