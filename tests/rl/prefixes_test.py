"""Shared prefixes by hand, and the equality that lambda-GRPO is made for."""

import numpy as np

from tests.rl import compiled as rl

# Prompt 0: rows 0, 1, 3 start with 5; rows 0 and 1 also share the second token. Row 2 belongs to another prompt.
TOKENS = np.array([[5, 6, 7], [5, 6, 8], [5, 6, 7], [5, 9, 99]])
MASK = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]], bool)
GROUPS = np.array([0, 0, 1, 0])


def test_counts_by_hand():
    counts = rl.shared_prefix_counts(TOKENS, MASK, GROUPS, num_groups=2)
    np.testing.assert_array_equal(counts, [[3, 2, 1], [3, 2, 1], [1, 1, 1], [3, 1, 0]])


def test_a_response_shares_no_prefix_past_its_end():
    tokens = np.array([[5, 6], [5, 6]])
    mask = np.array([[True, True], [True, False]])
    np.testing.assert_array_equal(
        rl.shared_prefix_counts(tokens, mask, np.zeros(2, int), num_groups=1), [[2, 1], [2, 0]]
    )


def test_tokens_that_agree_again_after_a_difference_share_no_prefix():
    tokens = np.array([[1, 2, 3], [1, 9, 3]])
    counts = rl.shared_prefix_counts(tokens, np.ones((2, 3), bool), np.zeros(2, int), num_groups=1)
    np.testing.assert_array_equal(counts, [[2, 1, 1], [2, 1, 1]])


def test_summed_over_a_process_set_the_advantage_is_the_mean_of_its_responses():
    """The outcomes 1, 0, 0 of rows 0, 1, 3: their shared first token keeps the group's mean, 0."""
    outcome = np.array([1.0, 0.0, 1.0, 0.0])
    zeros = np.zeros(TOKENS.shape)
    plain = rl.grpo_advantages(zeros, outcome, MASK, GROUPS, num_groups=2)
    divided = rl.lambda_grpo_advantages(zeros, outcome, TOKENS, MASK, GROUPS, num_groups=2)
    np.testing.assert_allclose(divided[0] * [3, 2, 1], plain[0], rtol=1e-6)
    np.testing.assert_allclose(divided[[0, 1, 3], 0].sum(), 0, atol=1e-6)
    np.testing.assert_allclose(divided[[0, 1], 1].sum(), plain[[0, 1], 1].mean(), rtol=1e-6)


def test_without_shared_prefixes_it_is_grpo():
    tokens = np.arange(12).reshape(4, 3)
    outcome, rewards = np.array([1.0, 0, 1, 0]), np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_array_equal(
        rl.lambda_grpo_advantages(rewards, outcome, tokens, MASK, GROUPS, num_groups=2),
        rl.grpo_advantages(rewards, outcome, MASK, GROUPS, num_groups=2),
    )
