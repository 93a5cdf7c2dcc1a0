"""Best-of-N policy extraction: Digi-Q's golden numbers and its limits."""

import json
import pathlib

import jax
import numpy as np

from tests.rl import compiled as rl

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "values.json").read_text())


def test_digi_q_golden():
    g = GOLDEN["digi_q"]
    q = rl.twin(np.array(g["q1"]), np.array(g["q2"]), how="max")
    v = rl.twin(*np.array(g["v"]), how="max")
    valid = np.array(g["valid"], bool)
    advantage = rl.candidate_advantages(q, v, valid)
    np.testing.assert_allclose(advantage, g["advantage"], atol=1e-6)
    index, weight = rl.best_of_n_targets(advantage, valid, threshold=g["threshold"])
    assert int(index) == g["pick"] and float(weight) == g["weight"]
    td = g["td"]
    target = rl.bellman_targets(
        np.array([td["r"]]), np.array([td["gamma"] * (1 - td["done"])]), np.array([[td["vbar_next"]]]), kind="greedy"
    )
    np.testing.assert_allclose(target, [td["target"]], rtol=1e-6)


def test_reading_twins_by_the_minimum_is_another_policy():
    g = GOLDEN["digi_q"]
    q = rl.twin(np.array(g["q1"]), np.array(g["q2"]), how="min")
    v = rl.twin(*np.array(g["v"]), how="min")
    advantage = rl.candidate_advantages(q, v, np.array(g["valid"], bool))
    np.testing.assert_allclose(advantage, [0.0, 0.3, 0.0, 0.0], atol=1e-6)  # max: .05, .35


def test_loss_matches_a_loop_and_ignores_invalid_candidates():
    rng = np.random.default_rng(0)
    logp, advantage = -rng.uniform(size=(6, 4)), rng.uniform(size=(6, 4))
    valid = rng.uniform(size=(6, 4)) < 0.6
    valid[0] = False
    advantage[~valid], logp[~valid] = np.nan, np.nan
    total = 0.0
    for b in range(6):
        options = [k for k in range(4) if valid[b, k]]
        if options:
            best = max(options, key=lambda k, b=b: advantage[b, k])
            total -= logp[b, best] * (advantage[b, best] > 0.4)
    loss = jax.jit(rl.best_of_n_policy_loss, static_argnames="threshold")(
        np.array(logp), np.array(advantage), np.array(valid), threshold=0.4
    )
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    assert loss.weight == valid.any(-1).sum()
    gradient = jax.grad(
        lambda x: rl.best_of_n_policy_loss(x, np.array(advantage), np.array(valid), threshold=0.4).total
    )(np.array(logp))
    assert bool(np.isfinite(gradient).all()) and float(np.abs(gradient[0]).max()) == 0


def test_limits():
    logp, advantage = np.array([[-1.0, -2.0], [-3.0, -0.5]]), np.array([[0.3, 0.1], [0.0, 0.2]])
    valid = np.ones((2, 2), bool)
    assert rl.best_of_n_policy_loss(logp, advantage, valid, threshold=np.inf).total == 0
    one = rl.best_of_n_policy_loss(logp[:, :1], advantage[:, :1], valid[:, :1], threshold=0.1)
    np.testing.assert_allclose(one.total, 1.0)  # filtered behaviour cloning: only the first action is good
    nothing = rl.best_of_n_policy_loss(logp, advantage, np.zeros((2, 2), bool), threshold=0.0)
    assert nothing.mean() == 0 and nothing.weight == 0


def test_one_step_with_exact_values_is_greedy_improvement():
    """On a tabular problem, imitating the best candidate under Q^pi gives the greedy policy of Q^pi."""
    rng = np.random.default_rng(1)
    rewards, gamma = rng.normal(size=(5, 3)), 0.8
    nxt = rng.integers(0, 5, size=(5, 3))
    policy = np.full((5, 3), 1 / 3)
    v = np.zeros(5)
    for _ in range(300):
        q = rewards + gamma * v[nxt]
        v = (policy * q).sum(-1)
    logits = np.zeros((5, 3))
    advantage = rl.candidate_advantages(
        np.array(q), np.array(v), np.ones((5, 3), bool), low=-np.inf, high=np.inf
    )

    def loss(x):
        logp = jax.nn.log_softmax(x)
        return rl.best_of_n_policy_loss(logp, advantage, np.ones((5, 3), bool), threshold=0.0).mean()

    step = jax.jit(lambda x: x - 5.0 * jax.grad(loss)(x))
    for _ in range(50):
        logits = step(logits)
    np.testing.assert_array_equal(logits.argmax(-1), q.argmax(-1))
    assert float(jax.nn.softmax(logits).max(-1).min()) > 0.9
