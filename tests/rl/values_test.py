"""Bellman targets, duelling heads and twins: golden numbers, and the exact identities of tabular problems."""

import json
import pathlib

import chex
import jax
import numpy as np
import pytest

from tests.rl import compiled as rl

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "values.json").read_text())


def test_b_coder_golden():
    g = GOLDEN["b_coder"]
    logits, value = np.array(g["logits"]), np.array(g["V"])
    q = rl.dueling_q(logits, value, alpha=g["alpha"])
    np.testing.assert_allclose(q, g["Q"], atol=1e-6)
    np.testing.assert_allclose(q - value[:, None], g["A"], atol=1e-6)
    mask = np.ones(2, bool)
    discounts = rl.continuation_discounts(mask, discount=g["gamma"])
    # The next state of position t is position t + 1; there is none after the last one (NaN here).
    shift = lambda x: np.concatenate([x[1:], np.full_like(x[:1], np.nan)])  # noqa: E731
    frozen = np.array(g["q_frozen"])
    targets = rl.bellman_targets(np.array(g["reward"]), discounts, shift(q), shift(frozen))
    np.testing.assert_allclose(targets, g["target"], atol=1e-6)
    actions = np.array(g["action"])
    loss = rl.dueling_loss(logits, value, actions, targets, mask, alpha=g["alpha"])
    np.testing.assert_allclose(loss.mean(), g["L_Q"], rtol=1e-6)
    np.testing.assert_allclose(loss.metrics["advantage"].total, g["L_adv"], rtol=1e-6)
    taken = np.take_along_axis(q, actions[:, None], -1)[:, 0]
    # The golden score discounts V of the following state, also after the last action, where V is 0.
    score = rl.recovered_rewards(taken, discounts, shift(value)).sum()
    np.testing.assert_allclose(score, g["rank_score"], rtol=1e-6)


def test_policy_of_the_head_is_the_language_model_for_any_value():
    logits = jax.random.normal(jax.random.key(0), (5, 7))
    for value in (0.0, -3.0, 40.0):
        q = rl.dueling_q(logits, np.full(5, value), alpha=0.3)
        np.testing.assert_allclose(jax.nn.softmax(q / 0.3), jax.nn.softmax(logits), atol=1e-5)
        np.testing.assert_allclose(q.max(-1), value, atol=1e-6)


@pytest.fixture(name="chain")
def fixture_chain():
    """A tabular problem with known dynamics: rewards [S, A] and deterministic next states [S, A]."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(6, 3)).astype(np.float32)
    return np.array(rewards), np.array(rng.integers(0, 6, size=(6, 3))), 0.9


def operator(chain, q, kind, policy):
    rewards, nxt, gamma = chain
    return rl.bellman_targets(rewards, np.full(rewards.shape, gamma), q[nxt], policy[nxt], kind=kind)


@pytest.mark.parametrize("kind", ["expected", "greedy", "conservative"])
def test_operators_contract_and_match_loops(chain, kind):
    rewards, nxt, gamma = chain
    rng = np.random.default_rng(1)
    policy = np.array(rng.normal(size=(6, 3)))
    a, b = (np.array(rng.normal(size=(6, 3)) * 5, np.float32) for _ in range(2))
    ta, tb = (operator(chain, q, kind, policy) for q in (a, b))
    assert np.abs(ta - tb).max() <= gamma * np.abs(a - b).max() + 1e-5
    for s in range(6):
        for x in range(3):
            nq, npi = np.array(a[nxt[s, x]]), np.array(policy[nxt[s, x]])
            backup = {
                "expected": (np.exp(npi) / np.exp(npi).sum() * nq).sum(),
                "greedy": nq.max(),
                "conservative": nq[npi.argmax()],
            }[kind]
            np.testing.assert_allclose(ta[s, x], rewards[s, x] + gamma * backup, rtol=1e-5)


def test_conservative_of_the_own_values_is_greedy(chain):
    q = jax.random.normal(jax.random.key(3), (6, 3))
    chex.assert_trees_all_close(operator(chain, q, "conservative", q), operator(chain, q, "greedy", q))


def test_recovered_rewards_invert_the_operator(chain):
    rewards, nxt, gamma = chain
    policy = jax.random.normal(jax.random.key(4), (6, 3))
    q = np.zeros((6, 3))
    for _ in range(400):
        q = operator(chain, q, "conservative", policy)
    backup = np.take_along_axis(q, policy.argmax(-1)[:, None], -1)[:, 0]
    recovered = rl.recovered_rewards(q, np.full((6, 3), gamma), backup[nxt])
    np.testing.assert_allclose(recovered, rewards, atol=1e-4)


def test_discounts_and_masks():
    mask = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    out = rl.continuation_discounts(mask, discount=0.9)
    np.testing.assert_allclose(out, [[0.9, 0.9, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    garbage = np.full((3, 4, 2), np.nan)
    target = rl.bellman_targets(np.ones((3, 4)), np.zeros((3, 4)), garbage, kind="greedy")
    np.testing.assert_array_equal(target, np.ones((3, 4)))
    chosen = rl.q_target(np.ones(2), np.array([0.5, 0.0]), np.array([[2.0, 4.0], [9, 9]]), np.array([1, 0]))
    np.testing.assert_allclose(chosen, [3.0, 1.0])


def test_dueling_loss_terms_masks_and_gradients():
    key = jax.random.key(5)
    logits = jax.random.normal(key, (2, 3, 4))
    value, targets = np.array([[0.1, 0.2, np.nan], [0.3, 0.0, 1.0]]), np.ones((2, 3))
    actions = np.array([[0, 1, -7], [3, 2, 1]])
    mask = np.array([[1, 1, 0], [1, 1, 1]], bool)
    logits = logits.at[0, 2].set(np.nan)
    total = 0.0
    for b, t in np.argwhere(np.array(mask)):
        l, a = np.array(logits[b, t]), int(actions[b, t])
        adv = 0.5 * (l[a] - l.max())
        nll = np.log(np.exp(l).sum()) - l[a]
        total += (adv + float(value[b, t]) - 1) ** 2 + 0.2 * abs(adv) + 0.7 * nll

    def fn(l, v, y):
        kw = dict(alpha=0.5, advantage_coef=0.2, ce_coef=0.7)
        return rl.dueling_loss(l, v, actions, y, mask, **kw).total

    np.testing.assert_allclose(fn(logits, value, targets), total, rtol=1e-5)
    grads = jax.jit(jax.grad(fn, (0, 1, 2)))(logits, value, targets)
    assert all(bool(np.isfinite(g).all()) for g in grads)
    assert float(np.abs(grads[2]).max()) == 0 and float(np.abs(grads[1][0, 2])) == 0
    empty = rl.dueling_loss(logits, value, actions, targets, np.zeros_like(mask), alpha=0.5)
    assert empty.mean() == 0 and empty.weight == 0


def test_twin():
    a, b = np.array([1.0, 5.0]), np.array([3.0, 2.0])
    np.testing.assert_array_equal(rl.twin(a, b, how="min"), [1, 2])
    np.testing.assert_array_equal(rl.twin(a, b, how="max"), [3, 5])
    np.testing.assert_array_equal(rl.twin(a, b, how="mean"), [2, 3.5])
    with pytest.raises(ValueError, match="expected one of"):
        rl.twin(a, b, how="median")


def test_double_q_golden_and_the_released_form_differs():
    g = GOLDEN["double_q"]
    one = np.array([g["reward"]]), np.array([g["gamma"]]), np.array([g["nextQa"]]), np.array([g["nextQb"]])
    old = g["Qa"][g["action"]]
    for form in ("standard", "rsrm"):
        target = rl.double_q_target(*one, form=form)[0]
        np.testing.assert_allclose(old + g["lr"] * (target - old), g[form], atol=1e-7)
    assert g["standard"] != g["rsrm"]


def test_double_q_removes_the_bias_of_a_maximum_over_noise():
    # All actions are worth 0; tables hold independent unit noise.
    a, b = jax.random.normal(jax.random.key(6), (2, 4000, 10))
    zero, one = np.zeros(4000), np.ones(4000)
    single = rl.bellman_targets(zero, one, a, kind="greedy").mean()
    double = rl.double_q_target(zero, one, a, b).mean()
    released = rl.double_q_target(zero, one, a, b, form="rsrm").mean()
    np.testing.assert_allclose(single, 1.5388, atol=0.05)  # E max of ten unit normals
    np.testing.assert_allclose(released, 1.5388, atol=0.05)
    assert abs(float(double)) < 0.06


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="policy_logits"):
        rl.bellman_targets(np.zeros(2), np.zeros(2), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="kind"):
        rl.bellman_targets(np.zeros(2), np.zeros(2), np.zeros((2, 3)), kind="soft")
