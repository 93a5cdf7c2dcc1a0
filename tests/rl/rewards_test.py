"""Rewards: the papers' numbers, the proposition they rest on, and the ways between tokens, steps and responses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import compiled as rl
from tests.rl import golden

CLOSE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(scope="module")
def vectors():
    case = golden.load("prime")["implicit_rewards"]
    given = {k: np.array(v) for k, v in case["in"].items()}
    return given, {k: np.array(v) for k, v in case["out"].items()}


def test_one_response_by_hand():
    logp, ref = np.array([[-1.0, -2.0, 9.0]]), np.array([[-1.5, -1.0, 7.0]])
    mask = np.array([[True, True, False]])
    np.testing.assert_allclose(rl.implicit_token_rewards(logp, ref, mask, beta=0.1), [[0.05, -0.1, 0.0]], rtol=1e-6)
    released = rl.implicit_token_rewards(logp, ref, mask, beta=0.1, include_last=False)
    np.testing.assert_allclose(released, [[0.05, 0.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(rl.outcome_token_rewards([3], mask), [[0.0, 3.0, 0.0]])


def test_published_vectors(vectors):
    given, out = vectors
    logp, ref, mask = given["logp"], given["ref_logp"], given["mask"] == 1
    q = rl.implicit_token_rewards(logp, ref, mask, beta=1.0)
    r = rl.implicit_token_rewards(logp, ref, mask, beta=0.05)
    np.testing.assert_allclose(q, np.where(mask, out["q"], 0), **CLOSE)
    np.testing.assert_allclose(np.cumsum(r, 1) * mask, out["q_prefix_sum_beta"], **CLOSE)
    np.testing.assert_allclose(r.sum(1), out["seq_reward_beta"], **CLOSE)
    whole = rl.whole_token_rewards(q, mask)
    np.testing.assert_allclose(whole, out["prime_whole_raw"], **CLOSE)
    np.testing.assert_allclose(rl.normalize_by_return(q, mask), out["prime_token_batchnorm"], **CLOSE)
    np.testing.assert_allclose(rl.normalize_by_return(whole, mask), out["prime_whole_batchnorm"], **CLOSE)
    # The other released code keeps beta and drops the last token.
    recipe = rl.implicit_token_rewards(logp, ref, mask, beta=0.05, include_last=False)
    np.testing.assert_allclose(recipe, out["verl_token_raw"], **CLOSE)
    np.testing.assert_allclose(rl.normalize_by_return(recipe, mask), out["verl_token_batchnorm"], **CLOSE)
    decayed = rl.lambda_token_rewards(r, mask, lambda_=0.5, include_last=False)
    np.testing.assert_allclose(decayed, out["verl_token_lambda0.5_raw"], **CLOSE)
    decayed = rl.lambda_token_rewards(r, mask, lambda_=0.5, outcome=given["acc"], include_last=False)
    np.testing.assert_allclose(decayed, out["verl_token_lambda0.5_usegt_raw"], **CLOSE)


def test_released_variants_differ_where_they_should(vectors):
    given, _ = vectors
    mask = given["mask"] == 1
    paper = rl.implicit_token_rewards(given["logp"], given["ref_logp"], mask)
    recipe = rl.implicit_token_rewards(given["logp"], given["ref_logp"], mask, include_last=False)
    last = np.array(rl.outcome_token_rewards(np.ones(8), mask)) == 1
    np.testing.assert_array_equal(np.where(last, 0, paper), recipe)
    assert np.abs(np.asarray(paper)[last]).min() > 0
    # Where beta acts: not in the normalised reward, so leaving it out of the reward changes nothing there.
    without_beta = rl.implicit_token_rewards(given["logp"], given["ref_logp"], mask, beta=1.0)
    np.testing.assert_allclose(
        rl.normalize_by_return(paper, mask, eps=0.0), rl.normalize_by_return(without_beta, mask, eps=0.0), rtol=1e-5
    )


def test_partial_sums_are_soft_values_of_the_reference():
    """q_t = beta * log E_ref[exp(r(y) / beta) | y_<=t], exactly, on every prefix of a small tree."""
    vocab, length, beta = 3, 4, 0.3
    rng = np.random.default_rng(0)

    def model():
        """Log-probabilities of the next token for every prefix."""
        prefixes = [p for n in range(length) for p in itertools.product(range(vocab), repeat=n)]
        logits = {p: rng.normal(size=vocab) for p in prefixes}
        return {p: x - np.log(np.exp(x).sum()) for p, x in logits.items()}

    policy, reference = model(), model()
    paths = list(itertools.product(range(vocab), repeat=length))
    logp = np.array([[policy[y[:t]][y[t]] for t in range(length)] for y in paths])
    ref_logp = np.array([[reference[y[:t]][y[t]] for t in range(length)] for y in paths])
    rewards = rl.implicit_token_rewards(logp, ref_logp, np.ones_like(logp, bool), beta=beta)
    outcome, partial = np.asarray(rewards).sum(1), np.cumsum(rewards, 1)
    for t in range(1, length + 1):
        for prefix in itertools.product(range(vocab), repeat=t):
            below = [i for i, y in enumerate(paths) if y[:t] == prefix]
            weight = np.exp(ref_logp[below, t:].sum(1))  # p_ref(rest | prefix), sums to one
            value = beta * np.log(np.sum(weight * np.exp(outcome[below] / beta)))
            np.testing.assert_allclose(partial[below[0], t - 1], value, atol=1e-6)


def test_equal_models_give_exactly_zero():
    logp = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [3], [1], [0]])
    assert not np.any(rl.implicit_token_rewards(logp, logp, mask))
    assert not np.any(rl.normalize_by_return(jnp.zeros((4, 5)), mask))


def test_after_normalisation_the_largest_return_is_one():
    rng = np.random.default_rng(1)
    rewards, mask = rng.normal(size=(6, 7)) * 40, np.arange(7) < rng.integers(1, 8, (6, 1))
    normal = rl.normalize_by_return(rewards, mask)
    returns = rl.discounted_returns(normal, mask)
    np.testing.assert_allclose(np.abs(returns).max(), 1.0, rtol=1e-6)


def test_tokens_steps_and_responses_hold_the_same_sum():
    rng = np.random.default_rng(2)
    step_ids = np.array([[0, 0, 1, 2, 2, -1], [0, 1, 1, 1, -1, -1], [-1] * 6])
    rewards = rng.normal(size=step_ids.shape)
    steps, mask = rl.step_rewards(rewards, step_ids, num_steps=4)
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    total = np.where(step_ids >= 0, rewards, 0).sum(1)
    np.testing.assert_allclose(steps.sum(1), total, atol=1e-6)
    np.testing.assert_allclose(rl.aggregate_steps(steps, mask, how="sum"), total, atol=1e-6)
    tokens = rl.token_rewards_from_steps(steps, step_ids)
    np.testing.assert_allclose(tokens.sum(1), total, atol=1e-6)
    assert (np.asarray(tokens) != 0).tolist() == [[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 0], [0] * 6]
    again, _ = rl.step_rewards(tokens, step_ids, num_steps=4, how="last")
    np.testing.assert_allclose(again, steps, atol=1e-6)


def test_interleaved_steps_and_steps_beyond_the_slots():
    ids, rewards = np.array([[1, 0, 1, 2, 0]]), np.array([[1.0, 2.0, 4.0, 8.0, 16.0]])
    sums, mask = rl.step_rewards(rewards, ids, num_steps=2)
    np.testing.assert_array_equal(sums, [[18, 5]])
    last, _ = rl.step_rewards(rewards, ids, num_steps=2, how="last")
    np.testing.assert_array_equal(last, [[16, 4]])
    np.testing.assert_array_equal(mask, [[True, True]])
    placed = rl.token_rewards_from_steps(np.array([[7.0, 9.0]]), ids)
    np.testing.assert_array_equal(placed, [[0, 0, 9, 0, 7]])


def test_last_token_rewards_with_holes_in_the_mask():
    mask = np.array([[True, False, True, False]])
    np.testing.assert_array_equal(rl.outcome_token_rewards([0.3], mask), np.float32([[0, 0, 0.3, 0]]))


def test_published_step_scores():
    case = golden.load("prime")["step_scoring"]
    ratios, bounds = np.array(case["in"]["token_logratio_shifted"]), case["in"]["boundaries"]
    # Boundary k is the last token of step k. The first boundary ends the prompt, but its own token still counts in
    # the first step (as in the released start mask).
    ids = np.full(ratios.shape, -1)
    for row, (start, *ends) in zip(ids, bounds, strict=True):
        begin = start
        for step, end in enumerate(ends):
            row[begin : end + 1] = step
            begin = end + 1
    rewards = rl.implicit_token_rewards(ratios, np.zeros_like(ratios), ids >= 0, beta=case["in"]["coef"])
    steps, mask = rl.step_rewards(rewards, ids, num_steps=2)
    out = case["out"]
    np.testing.assert_allclose(steps, out["single"], **CLOSE)
    values = np.cumsum(steps, 1)
    np.testing.assert_allclose(values, out["accumulative"], **CLOSE)
    np.testing.assert_allclose(rl.aggregate_steps(steps, mask, how="min"), out["min_single"], **CLOSE)
    np.testing.assert_allclose(rl.aggregate_steps(steps, mask, how="sum"), out["sum_single"], **CLOSE)
    np.testing.assert_allclose(rl.aggregate_steps(values, mask, how="min"), out["min_accumulative"], **CLOSE)
    scores = rl.aggregate_steps(steps, mask, how="min")
    assert int(jnp.argmax(scores)) == out["bon_pick_min_single"]


def test_published_aggregates():
    case = golden.load("search")["aggregate"]
    scores, mask = np.full((4, 4), np.nan), np.zeros((4, 4), bool)
    for i, row in enumerate(case["scores"]):
        scores[i, : len(row)], mask[i, : len(row)] = row, True
    for how, expected in case["agg"].items():
        np.testing.assert_allclose(rl.aggregate_steps(scores, mask, how=how), expected, **CLOSE)


def test_softmin_is_between_minimum_and_mean():
    rng = np.random.default_rng(3)
    scores, mask = rng.uniform(size=(20, 6)), np.arange(6) < rng.integers(1, 7, (20, 1))
    low, mean = (np.asarray(rl.aggregate_steps(scores, mask, how=how)) for how in ("min", "mean"))
    soft = np.asarray(rl.aggregate_steps(scores, mask, how="softmin", temperature=0.2))
    assert (low - 1e-6 <= soft).all() and (soft <= mean + 1e-6).all()
    cold = rl.aggregate_steps(scores, mask, how="softmin", temperature=1e-4)
    hot = rl.aggregate_steps(scores, mask, how="softmin", temperature=1e6)
    np.testing.assert_allclose(cold, low, atol=1e-5)
    np.testing.assert_allclose(hot, mean, atol=1e-5)


@pytest.mark.parametrize("how", ["gmean", "mean_logit", "mean_odds"])
def test_certain_scores_stay_finite(how):
    x = jnp.array([[0.0, 1.0, 1.0]])
    value, gradient = jax.value_and_grad(lambda s: rl.aggregate_steps(s, jnp.ones((1, 3), bool), how=how)[0])(x)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_beta_may_be_traced():
    mask = np.ones((1, 2), bool)
    rewards = jax.jit(lambda beta: rl.implicit_token_rewards(np.ones((1, 2)), np.zeros((1, 2)), mask, beta=beta))
    np.testing.assert_allclose(rewards(0.5), [[0.5, 0.5]])


def test_bad_input():
    mask = np.ones((2, 3), bool)
    with pytest.raises(AssertionError):
        rl.implicit_token_rewards(np.ones((2, 3)), np.ones((2, 4)), mask)
    with pytest.raises(AssertionError):
        rl.outcome_token_rewards(np.ones(3), mask)
    with pytest.raises(ValueError, match=r"how='first'; expected one of 'sum', 'last', 'mean'"):
        rl.step_rewards(np.ones((2, 3)), np.zeros((2, 3), int), num_steps=1, how="first")
    with pytest.raises(ValueError, match="expected one of 'last', 'min'"):
        rl.aggregate_steps(np.ones((2, 3)), mask, how="median")
    with pytest.raises(AssertionError):
        rl.step_rewards(np.ones((2, 3)), np.zeros((2, 3)), num_steps=1)
