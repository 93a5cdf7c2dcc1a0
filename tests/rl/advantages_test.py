"""Returns and advantages: published numbers, the gap between paper and released code, and what goes wrong elsewhere."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import compiled as rl
from tests.rl import golden

CLOSE = {"rtol": 2e-5, "atol": 2e-6}
GROUPS = np.repeat([0, 1], 4)


def arrays(case):
    return {k: np.array(v) for k, v in case.items() if isinstance(v, list)}


@pytest.fixture(scope="module")
def rloo():
    case = golden.load("prime")["rloo"]
    given = arrays(case["in"])
    return given, given["mask"] == 1, case["out"]


@pytest.mark.parametrize(
    ("name", "scores", "outcome", "options"),
    [
        ("prime_repo_g1_g1", "rm_scores_prime", "acc", {"variant": "released"}),
        ("prime_repo_g0.9_g1", "rm_scores_prime", "acc", {"variant": "released", "discount": 0.9}),
        ("prime_repo_frac_g1_g1", "rm_scores_prime", "acc_frac", {"variant": "released"}),
        ("prime_repo_whole_g1_g1", "rm_scores_whole", "acc", {"variant": "released"}),
        ("verl_5_5", "rm_scores_verl", "acc", {"variant": "released", "dense_coef": 5.0, "outcome_coef": 5.0}),
        ("verl_5_0", "rm_scores_verl", "acc", {"variant": "released", "dense_coef": 5.0, "outcome_coef": 0.0}),
        (
            "verl_0_5_outcome_only",
            "rm_scores_verl",
            "acc",
            {"variant": "released", "dense_coef": 0.0, "outcome_coef": 5.0},
        ),
        ("paper_eq5_g1", "rm_scores_prime", "acc", {}),
        ("paper_eq5_g0.9", "rm_scores_prime", "acc", {"discount": 0.9}),
    ],
)
def test_published_rloo(rloo, name, scores, outcome, options):
    given, mask, out = rloo
    args = given[scores], given[outcome], mask, GROUPS
    returns = rl.rloo_advantages(*args, num_groups=2, whiten=False, **options)
    np.testing.assert_allclose(returns, np.where(mask, out[name]["returns"], 0), **CLOSE)
    advantages = rl.rloo_advantages(*args, num_groups=2, **options)
    expected = out[name]["advantages" if "advantages" in out[name] else "advantages_whitened"]
    np.testing.assert_allclose(advantages, np.where(mask, expected, 0), **CLOSE)
    np.testing.assert_allclose(advantages, rl.whiten(returns, mask), **CLOSE)


def test_the_released_form_differs_by_each_tokens_own_share(rloo):
    """r_t * K/(K-1) - sum_j rbar_j/(K-1) exceeds the exact leave-one-out by (r_t - rbar_i)/(K-1)."""
    given, mask, out = rloo
    r = given["rm_scores_prime"]
    no_future = {"num_groups": 2, "whiten": False, "outcome_coef": 0.0, "discount": 0.0}
    paper, released = (
        rl.rloo_advantages(r, given["acc"], mask, GROUPS, variant=variant, **no_future)
        for variant in ("paper", "released")
    )
    np.testing.assert_allclose(paper, np.where(mask, out["loo_dense_paper"], 0), **CLOSE)
    np.testing.assert_allclose(released, np.where(mask, out["loo_dense_code"], 0), **CLOSE)
    means = np.where(mask, r, 0).sum(1) / mask.sum(1)
    np.testing.assert_allclose(released - paper, np.where(mask, (r - means[:, None]) / 3, 0), **CLOSE)
    # Summed over a response the gap is zero, so the return from the first token is the same in both.
    both = [
        rl.rloo_advantages(r, given["acc"], mask, GROUPS, num_groups=2, whiten=False, variant=variant)[:, 0]
        for variant in ("paper", "released")
    ]
    np.testing.assert_allclose(*both, **CLOSE)
    outcome = rl.leave_one_out(given["acc"], GROUPS, num_groups=2)
    np.testing.assert_allclose(outcome, out["loo_outcome"], **CLOSE)


def test_published_estimators():
    case = golden.load("prime")["estimators"]
    given, out = arrays(case["in"]), case["out"]
    r, a, mask, values = given["rm_scores"], given["acc"], given["mask"] == 1, given["values"]
    grpo = rl.grpo_advantages(r, a, mask, GROUPS, num_groups=2)
    np.testing.assert_allclose(grpo, np.where(mask, out["grpo_prime_eq7_g1"], 0), **CLOSE)
    np.testing.assert_allclose(rl.reinforce_advantages(r, a, mask), out["reinforce_prime_eq8_g1"], **CLOSE)
    zero = np.zeros_like(r)
    first = {name: rl.grpo_advantages(zero, a, mask, GROUPS, num_groups=2, eps=eps)[:, 0]
             for name, eps in (("grpo_outcome", 1e-6), ("dr_grpo_outcome", None))}
    for name, advantages in first.items():
        np.testing.assert_allclose(advantages, out[name], **CLOSE)
    np.testing.assert_allclose(rl.leave_one_out(a, GROUPS, num_groups=2), out["rloo_outcome"], **CLOSE)
    rewards = r + np.asarray(rl.outcome_token_rewards(a, mask))
    for name, g, lam in (("gae_verl_g1_l1", 1.0, 1.0), ("gae_verl_g.99_l.95", 0.99, 0.95)):
        advantages = rl.generalized_advantages(rewards, values, mask, discount=g, lambda_=lam)
        returns = np.where(mask, advantages + values, 0)
        np.testing.assert_allclose(returns, np.where(mask, out[name]["returns"], 0), **CLOSE)
        whitened = rl.whiten(advantages, mask)
        np.testing.assert_allclose(whitened, np.where(mask, out[name]["advantages"], 0), **CLOSE)


def test_primes_code_reads_masked_values():
    """Its generalised advantages are ours with the padding taken for states; the last tokens differ."""
    case = golden.load("prime")["estimators"]
    given, mask = arrays(case["in"]), np.array(case["in"]["mask"]) == 1
    rewards = given["rm_scores"] + np.asarray(rl.outcome_token_rewards(given["acc"], mask))
    options = {"discount": 0.99, "lambda_": 0.95}
    leaky = rl.generalized_advantages(rewards, given["values"], np.ones_like(mask), **options) + given["values"]
    released = np.array(case["out"]["gae_prime_repo_g.99_l.95"]["returns"])
    np.testing.assert_allclose(np.where(mask, leaky, 0), np.where(mask, released, 0), **CLOSE)
    ours = rl.lambda_returns(rewards, given["values"], mask, **options)
    short = ~mask[:, -1]
    assert np.abs(np.where(mask, ours - released, 0))[short].max() > 1e-2
    np.testing.assert_allclose(np.where(mask, released, 0)[~short], ours[~short], **CLOSE)


def test_published_returns():
    case = golden.load("search")["returns"]
    r, v, mask = np.array([case["reward"]]), np.array([case["v"]]), np.ones((1, 4), bool)
    for name, expected in case["targets"].items():
        kind, number = name.split("_")
        options = {"lambda_": float(number)} if kind == "lambda" else {"n": int(number)}
        targets = (rl.lambda_returns if kind == "lambda" else rl.n_step_returns)(r, v, mask, discount=0.9, **options)
        np.testing.assert_allclose(targets[0], expected, **CLOSE)


def test_published_whitening():
    case = golden.load("prime")["whiten"]
    x, mask = np.array(case["in"]["x"]), np.array(case["in"]["mask"]) == 1
    np.testing.assert_allclose(rl.whiten(x, mask), np.where(mask, case["out"]["whitened"], 0), **CLOSE)


def test_lambda_returns_have_the_right_ends():
    rng = np.random.default_rng(0)
    r, v, end = rng.normal(size=(3, 6)), rng.normal(size=(3, 6)), rng.normal(size=3)
    mask = np.arange(6) < np.array([[6], [4], [1]])
    kw = {"discount": 0.9, "bootstrap": end}
    full = rl.lambda_returns(r, v, mask, lambda_=1.0, **kw)
    np.testing.assert_allclose(full, rl.n_step_returns(r, v, mask, n=6, **kw), **CLOSE)
    one = rl.lambda_returns(r, v, mask, lambda_=0.0, **kw)
    np.testing.assert_allclose(one, rl.n_step_returns(r, v, mask, n=1, **kw), **CLOSE)
    monte_carlo = rl.lambda_returns(r, v, mask, discount=0.9, lambda_=1.0)
    np.testing.assert_allclose(monte_carlo, rl.discounted_returns(r, mask, discount=0.9), **CLOSE)
    advantages = rl.generalized_advantages(r, v, mask, lambda_=0.7, **kw)
    returns = rl.lambda_returns(r, v, mask, lambda_=0.7, **kw)
    np.testing.assert_allclose(np.where(mask, advantages + v, 0), returns, **CLOSE)


def test_a_long_row_keeps_its_precision():
    rewards = np.random.default_rng(0).normal(size=(1, 4096))
    mask = np.ones(rewards.shape, bool)
    expected = np.cumsum(rewards[:, ::-1], 1)[:, ::-1]
    np.testing.assert_allclose(rl.discounted_returns(rewards, mask), expected, atol=1e-3)
    decayed, total = np.zeros(4096), 0.0
    for t in reversed(range(4096)):
        decayed[t] = total = rewards[0, t] + 0.999 * total
    np.testing.assert_allclose(rl.discounted_returns(rewards, mask, discount=0.999)[0], decayed, atol=1e-3)


def test_a_group_of_one_has_baseline_zero():
    values = np.array([0.7, 1.0, 0.0])
    np.testing.assert_allclose(rl.leave_one_out(values, np.array([0, 1, 1]), num_groups=2), [0.7, 1.0, -1.0])
    # The same when the others of its group are masked, and in both forms of PRIME's advantage.
    masked = rl.leave_one_out(values, np.zeros(3, int), num_groups=1, mask=np.array([True, False, False]))
    np.testing.assert_allclose(masked, [0.7, 0.0, 0.0])
    mask, r = np.ones((1, 2), bool), np.array([[0.1, 0.2]])
    for variant in ("paper", "released"):
        alone = rl.rloo_advantages(r, [0.5], mask, [0], num_groups=1, variant=variant, whiten=False)
        np.testing.assert_allclose(alone, [[0.8, 0.7]], rtol=1e-6)


def test_responses_without_tokens_are_no_members():
    r, mask = np.ones((3, 2)), np.array([[1, 1], [1, 0], [0, 0]], bool)
    with_empty = rl.rloo_advantages(r, [1.0, 0.0, 1.0], mask, [0, 0, 0], num_groups=1, whiten=False)
    without = rl.rloo_advantages(r[:2], [1.0, 0.0], mask[:2], [0, 0], num_groups=1, whiten=False)
    np.testing.assert_allclose(with_empty[:2], without)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6])
def test_equal_rewards_carry_no_signal(value):
    """Elsewhere rounding noise of 1e-7, divided by a standard deviation of its own size, becomes an advantage."""
    rng = np.random.default_rng(0)
    outcome = np.full(6, value) * (1 + 1e-8 * rng.normal(size=6))
    token_rewards, mask = np.full((6, 3), value), np.ones((6, 3), bool)
    ids = np.array([0, 0, 0, 1, 1, 1])
    for fn in (rl.grpo_advantages, rl.rloo_advantages):
        result = fn(token_rewards, outcome, mask, ids, num_groups=2)
        assert np.abs(result).max() < 1e-2
    np.testing.assert_array_equal(rl.grpo_advantages(token_rewards, outcome, mask, ids, num_groups=2), 0)


def test_whitening_no_entry_and_one_entry():
    x = np.array([[5.0, 1.0]])
    np.testing.assert_array_equal(rl.whiten(x, np.zeros((1, 2), bool)), [[0, 0]])
    np.testing.assert_array_equal(rl.whiten(x, np.array([[True, False]])), [[0, 0]])


def test_fractions_survive_integer_tokens():
    """A reward array made like the (integer) token ids would cut 0.7 to 0."""
    tokens = jnp.ones((2, 3), jnp.int32)
    placed = rl.outcome_token_rewards(np.array([0.7, 1.9]), tokens > 0)
    returns = rl.discounted_returns(placed, tokens > 0)
    np.testing.assert_allclose(returns, [[0.7] * 3, [1.9] * 3], rtol=1e-6)
    mixed = rl.reinforce_advantages(jnp.ones((2, 3), jnp.int32), np.array([0.7, 0.25]), tokens > 0)
    np.testing.assert_allclose(mixed, [[3.7, 2.7, 1.7], [3.25, 2.25, 1.25]], rtol=1e-6)


def test_outcome_only_is_plain_rloo():
    rng = np.random.default_rng(0)
    mask, outcome, ids = np.ones((6, 4), bool), rng.random(6), np.array([0, 1, 0, 1, 1, 0])
    result = rl.rloo_advantages(
        rng.normal(size=(6, 4)), outcome, mask, ids, num_groups=2, dense_coef=0.0, whiten=False
    )
    expected = rl.leave_one_out(outcome, ids, num_groups=2)
    np.testing.assert_allclose(result, np.broadcast_to(expected[:, None], (6, 4)), rtol=1e-6)


def test_bad_input():
    mask = np.ones((2, 3), bool)
    with pytest.raises(ValueError, match="variant='verl'"):
        rl.rloo_advantages(np.ones((2, 3)), np.ones(2), mask, [0, 0], num_groups=1, variant="verl")
    with pytest.raises(AssertionError):
        rl.rloo_advantages(np.ones((2, 3)), np.ones(3), mask, [0, 0], num_groups=1)
    with pytest.raises(AssertionError):
        rl.leave_one_out(np.ones((2, 2)), np.zeros((2, 2), int), num_groups=1)
    with pytest.raises(AssertionError):
        rl.n_step_returns(np.ones((2, 3)), np.ones((2, 3)), mask, discount=1.0, n=0)


def test_process_rewards_as_values_by_hand():
    rewards = np.array([[0.5, -0.25, 1.0, np.nan], [1.0, np.nan, 2.0, np.nan]])
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 0]], bool)
    found = rl.implicit_value_advantages(rewards, np.array([1, 0.5]), mask)
    np.testing.assert_allclose(found, [[1, 0.5, 0.75, 0], [0.5, 0, -0.5, 0]], atol=1e-6)
