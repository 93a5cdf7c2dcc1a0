"""Exact claims of the papers about their methods: enumerated trees, decision processes, identities.

Statistical claims are measured by the scripts under experiments/.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import compiled as rl
from tests.stats import compiled as stats


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.fixture(name="tree")
def fixture_tree():
    """Two autoregressive policies over all sequences of 4 tokens from 3: log-probs [81, 4] each."""
    rng = np.random.default_rng(0)
    leaves = list(itertools.product(range(3), repeat=4))
    tables = [[log_softmax(rng.normal(size=(3**t, 3))) for t in range(4)] for _ in range(2)]

    def logp(table):
        rows = []
        for y in leaves:
            index, row = 0, []
            for t, token in enumerate(y):
                row.append(table[t][index, token])
                index = 3 * index + token
            rows.append(row)
        return np.array(rows)

    return np.array(leaves), logp(tables[0]), logp(tables[1])


def test_implicit_reward_proposition(tree):
    """Partial sums of token rewards are beta log E_ref[exp(r(y) / beta) | prefix], prefix by prefix."""
    leaves, logp, ref_logp = tree
    beta = 0.05
    rewards = rl.implicit_token_rewards(np.array(logp), np.array(ref_logp), np.ones((81, 4), bool), beta=beta)
    q = np.cumsum(np.array(rewards, np.float64), -1)
    total = beta * (logp - ref_logp).sum(-1)
    for row in range(0, 81, 7):
        for t in range(4):
            same = (leaves[:, : t + 1] == leaves[row, : t + 1]).all(-1)
            chance = np.exp(ref_logp[same][:, t + 1 :].sum(-1))
            expected = beta * np.log((chance * np.exp(total[same] / beta)).sum())
            np.testing.assert_allclose(q[row, t], expected, atol=1e-6)


def test_tokens_steps_and_responses_conserve_the_sum(tree):
    _, logp, ref_logp = tree
    mask = np.ones((81, 4), bool)
    rewards = rl.implicit_token_rewards(np.array(logp), np.array(ref_logp), mask)
    steps, step_mask = rl.step_rewards(rewards, np.broadcast_to(np.array([0, 0, 1, 1]), (81, 4)), num_steps=2)
    np.testing.assert_allclose(rl.aggregate_steps(steps, step_mask, how="sum"), rewards.sum(-1), atol=1e-6)


def test_filler_pays_without_bound_once_or_never():
    """Raw reward grows by alpha * score with every filler step; Delta pays for the first alone; Clip for none."""
    count, place = np.arange(12)[:, None], np.arange(16)
    mask = np.array(place < count + 4)  # plan n: n filler steps of score 0.9, then four of score 0.6
    scores = np.array(np.where(place < count, 0.9, 0.6))
    alpha = 0.5

    def total(rewards):
        return alpha * np.array(np.where(mask, rewards, 0).sum(-1))

    np.testing.assert_allclose(np.diff(total(scores)), np.full(11, 0.45), rtol=1e-5)
    np.testing.assert_allclose(total(rl.delta_rewards(scores, mask)), [0.3] + [0.45] * 11, rtol=1e-5)  # alpha * p_1
    clip = total(rl.clip_rewards(scores, mask, threshold=0.7))
    np.testing.assert_allclose(clip, np.full(12, clip[0]), atol=1e-6)
    below = total(rl.clip_rewards(scores, mask, threshold=0.95))
    assert (np.diff(below) < 0).all()  # filler below the threshold costs


def test_learning_collapses_on_the_raw_reward_only():
    from experiments.reward_hacking import main

    tables = main.run(main.Config(horizon=12, updates=800))["policies"]
    assert tables["outcome only"]["learnt success"] > 0.78
    assert tables["clip"]["learnt success"] > 0.78
    assert tables["delta"]["learnt filler"] < 1.1 and tables["delta"]["learnt success"] > 0.7
    assert tables["raw"]["learnt filler"] > 7 and tables["raw"]["learnt success"] < 0.4


def test_progress_telescopes_and_both_extreme_provers_are_useless():
    values = np.array([[0.3, 0.6, 0.2, 1.0]])
    mask = np.ones((1, 4), bool)
    assert np.isclose(rl.progress_rewards(values, np.array([0.25]), mask).sum(), 0.75)
    # An optimal prover on solvable states: no signal. The policy itself: mean advantage 0 under the policy.
    assert float(np.abs(rl.progress_rewards(np.ones((1, 4)), np.ones(1), mask)).max()) == 0
    policy, action_values = np.array([0.5, 0.3, 0.2]), np.array([0.02, 0.1, 0.3])
    advantage = action_values - policy @ action_values
    assert abs(policy @ advantage) < 1e-12
    variance = [float(np.var(rl.best_of_k_value(np.array(action_values), k))) for k in (1, 4, 16, 10_000)]
    np.testing.assert_allclose(variance[:3], [0.0139, 0.0788, 0.0936], atol=1e-3)
    assert variance[3] < 1e-6


def test_step_dpo_is_dpo_on_a_step():
    """The prefix gets no gradient; a step that is the whole response gives DPO; equal policies give log 2."""
    key = jax.random.key(0)
    win, lose, ref_win, ref_lose = jax.random.normal(key, (4, 3, 5))

    def loss(w, l, mask):
        sums = [jnp.where(mask, x, 0).sum(-1) for x in (w, l, ref_win, ref_lose)]
        return rl.step_preference_loss(*sums, beta=0.4).mean()

    step = np.arange(5) >= 3
    gradients = jax.grad(loss, (0, 1))(win, lose, step)
    assert all(float(np.abs(g[:, :3]).max()) == 0 and float(np.abs(g[:, 3:]).min()) > 0 for g in gradients)
    np.testing.assert_allclose(loss(ref_win, ref_lose, step), np.log(2), rtol=1e-6)
    margin = 0.4 * ((win - ref_win).sum(-1) - (lose - ref_lose).sum(-1))
    np.testing.assert_allclose(
        loss(win, lose, np.ones(5, bool)), np.log1p(np.exp(-np.array(margin))).mean(), rtol=1e-5
    )


def test_implicit_and_explicit_rewards_agree_for_log_linear_policies():
    """With log pi = theta . phi - log Z(x): on pairs of one prompt the normaliser cancels: DPO is Bradley-Terry."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 9, 4))  # prompts, responses, features
    theta, ref_theta = rng.normal(size=(2, 4))
    logp, ref_logp = (log_softmax(features @ t) for t in (theta, ref_theta))
    implicit = logp - ref_logp
    explicit = features @ (theta - ref_theta)
    np.testing.assert_allclose(implicit[:, :1] - implicit[:, 1:], explicit[:, :1] - explicit[:, 1:], atol=1e-10)
    losses = [rl.pairwise_loss(np.array(s[:, 0]), np.array(s[:, 1])).mean() for s in (implicit, explicit)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_groups_that_agree_have_no_outcome_advantage():
    """Prompts solved always or never have outcome advantage 0; their dense advantages are another matter."""
    outcome = np.array([1.0, 1, 0, 0, 1, 0])
    ids = np.array([0, 0, 1, 1, 2, 2])
    advantages = rl.leave_one_out(outcome, ids, num_groups=3)
    np.testing.assert_array_equal(advantages[:4], np.zeros(4))
    keep = rl.solve_rate_mask(outcome, ids, num_groups=3)
    np.testing.assert_array_equal(keep, [False, False, True])
    dense = rl.rloo_advantages(
        jax.random.normal(jax.random.key(0), (6, 3)), outcome, np.ones((6, 3), bool), ids, num_groups=3, whiten=False
    )
    assert float(np.abs(dense[:4]).max()) > 0.1


def test_look_ahead_helps_a_scorer_that_is_blind_early():
    """ReARTeR: noise falls with the step; the smoothed first step ranks responses better than the raw one."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    scores = truth[:, None] + rng.normal(size=(4000, 5)) * 3 / np.arange(1, 6)
    mask = np.ones((4000, 5), bool)
    raw = rl.td_smooth(np.array(scores), mask, alpha=0.0)
    smooth = rl.td_smooth(np.array(scores), mask, alpha=0.5)
    np.testing.assert_allclose(raw, scores, rtol=1e-5)
    auc = [float(stats.roc_auc(x[:, 0], np.array(truth > 0))) for x in (raw, smooth)]
    assert auc[1] > auc[0] + 0.05


def test_the_best_of_k_label_law():
    """A label "some of K rollouts succeeds" is positive with chance 1 - (1 - v)^K."""
    counts = np.random.default_rng(0).binomial(16, 0.05, size=(20_000, 1))
    labels = rl.mc_targets(np.array(counts), 16, np.ones((20_000, 1), bool), how="hard")
    np.testing.assert_allclose(labels.mean(), 1 - 0.95**16, atol=0.012)
    np.testing.assert_allclose(rl.best_of_k_value(0.05, 16), 1 - 0.95**16, rtol=1e-5)


def test_soft_labels_are_fitted_by_their_probability():
    logits = np.linspace(-3, 3, 61)
    losses = [
        float(rl.step_ce_loss(np.array([[x]]), np.array([[0.3]]), np.ones((1, 1), bool)).total) for x in logits
    ]
    assert abs(float(jax.nn.sigmoid(logits[int(np.argmin(losses))])) - 0.3) < 0.02


def test_pessimism_beats_averaging_where_errors_are_heavy_tailed():
    """Best of 512 by five proxies with t noise: the mean is fooled, mean minus deviation and minimum are not."""
    gold_key, noise_key = jax.random.split(jax.random.key(0))
    gold = jax.random.normal(gold_key, (100, 512))
    members = gold + jax.random.t(noise_key, 2.0, (5, 100, 512))
    picked = {
        name: float(np.take_along_axis(gold, s.argmax(-1)[:, None], -1).mean())
        for name, s in {
            "one": members[0],
            "mean": members.mean(0),
            "lcb": rl.pessimistic_rewards(members, coefficient=1.0)[0],
            "min": rl.pessimistic_rewards(members, coefficient=1.0, kind="min")[0],
        }.items()
    }
    assert picked["one"] < picked["mean"] < 1.5 < picked["lcb"] and picked["min"] > 2
