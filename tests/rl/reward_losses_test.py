"""Losses of reward models: published numbers and gradients, identities between methods, and saturation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import compiled as rl
from tests.rl import golden

CLOSE = {"rtol": 2e-5, "atol": 2e-6}
GROUPS = np.repeat([0, 1], 4)


@pytest.fixture(scope="module")
def vectors():
    case = golden.load("prime")["reward_losses"]
    return case["in"], case["out"]


def outcome_ce(scores, outcome):
    """The loss of responses of one token, whose reward is their score."""
    return rl.outcome_ce_loss(jnp.asarray(scores)[:, None], outcome, jnp.ones((len(scores), 1), bool))


def test_published_outcome_ce(vectors):
    given, out = vectors
    beta, q = given["beta"], np.array(given["q_sum"])
    np.testing.assert_allclose(outcome_ce(beta * q, given["acc"]).mean(), out["ce_mean"], **CLOSE)
    np.testing.assert_allclose(outcome_ce(beta * q, np.array(given["acc_frac"])).mean(), out["ce_mean_frac"], **CLOSE)
    gradient = jax.grad(lambda x: outcome_ce(beta * x, np.array(given["acc"])).mean())(jnp.asarray(q, jnp.float32))
    np.testing.assert_allclose(gradient, out["ce_grad_wrt_q_sum"], rtol=2e-5)
    summary = outcome_ce(beta * q, np.array(given["acc"])).summary()
    np.testing.assert_allclose(summary["accuracy"], out["dpo_abs_accuracy"], **CLOSE)


def test_the_loss_starts_at_log_2_with_a_gradient(vectors):
    given, out = vectors
    a = np.array(given["acc"])
    value, gradient = jax.value_and_grad(lambda x: outcome_ce(x, a).mean())(jnp.zeros(8))
    np.testing.assert_allclose(value, out["ce_at_init_q0"], rtol=1e-6)
    np.testing.assert_allclose(gradient, (0.5 - a) / 8, rtol=1e-6)


def test_saturated_scores_keep_their_gradient(vectors):
    """Cross-entropy of a sigmoid clamps at 100 in the released code and loses the gradient with it."""
    given, out = vectors
    s, a = jnp.asarray(given["saturation"]["beta_q_sum"]), np.array(given["saturation"]["acc"])
    value, gradient = jax.value_and_grad(lambda x: outcome_ce(x, a).mean())(s)
    np.testing.assert_allclose(value, out["saturated_stable_mean"])
    assert out["saturated_torch_bce_clamped_mean"] == 100
    np.testing.assert_allclose(gradient, [0.5, -0.5])


def test_the_score_is_a_sum_over_tokens():
    rewards, mask = np.array([[0.5, 0.25, 7.0], [-1.0, 9.0, 9.0]]), np.array([[1, 1, 0], [1, 0, 0]], bool)
    np.testing.assert_allclose(
        rl.outcome_ce_loss(rewards, [1, 0], mask).total, outcome_ce([0.75, -1.0], [1, 0]).total, rtol=1e-6
    )


@pytest.mark.parametrize("weighting", ["none", "bon_rm", "bon_acc"])
def test_published_detached_loss(vectors, weighting):
    given, out = vectors
    scores, acc = given["beta"] * np.array(given["q_sum"]), np.array(given["acc"])
    loss = rl.detached_pairwise_loss(scores, acc, GROUPS, num_groups=2, weighting=weighting)
    np.testing.assert_allclose(loss.mean(), out[f"detach_dpo_{weighting}"], **CLOSE)
    each = [
        rl.detached_pairwise_loss(
            scores, acc, GROUPS, num_groups=2, weighting=weighting, opponent_scores=scores, mask=GROUPS >= 0
        ).total
    ]
    np.testing.assert_allclose(each[0], loss.total)


def test_opponents_are_constants():
    scores, outcome = jnp.array([0.3, -0.2]), np.array([1.0, 0.0])
    gradient = jax.grad(lambda s: rl.detached_pairwise_loss(s, outcome, [0, 0], num_groups=1).total)(scores)
    both = jax.grad(lambda s: rl.all_pairs_loss(s, outcome, [0, 0], num_groups=1).total)(scores)
    # Each of the two sees the other's score as a constant: two losses, each with half the gradient of the pair.
    np.testing.assert_allclose(gradient, both, rtol=1e-6)
    alone = rl.detached_pairwise_loss(jnp.array([0.4]), [1.0], [0], num_groups=1)
    np.testing.assert_allclose(alone.mean(), np.log1p(np.exp(-0.4)), rtol=1e-6)  # no opponent: against 0


def test_published_pairs(vectors):
    given, out = vectors
    pair = {k: np.array(v) for k, v in given["pair"].items()}
    beta = given["pair"]["beta"]
    win, lose = pair["pi_w"] - pair["ref_w"], pair["pi_l"] - pair["ref_l"]
    np.testing.assert_allclose(rl.pairwise_loss(beta * win, beta * lose).mean(), out["pair_dpo"], **CLOSE)
    dpo = rl.step_preference_loss(pair["pi_w"], pair["pi_l"], pair["ref_w"], pair["ref_l"], beta=beta)
    np.testing.assert_allclose(dpo.mean(), out["pair_dpo"], **CLOSE)
    np.testing.assert_allclose(rl.nca_loss(beta * win, beta * lose).mean(), out["pair_nca"], **CLOSE)
    ratios, good = np.concatenate([win, lose]), np.arange(8) < 4
    vanilla = rl.kto_loss(ratios, good, beta=beta, variant="vanilla")
    np.testing.assert_allclose(vanilla.mean(), out["kto_vanilla"], **CLOSE)
    z = rl.kto_reference_point(np.array(given["kto_kl"]["pi"]) - np.array(given["kto_kl"]["ref"]))
    np.testing.assert_allclose(z, out["kto_uneven_KL"], **CLOSE)
    np.testing.assert_allclose(rl.kto_loss(ratios, good, z, beta=beta).mean(), out["kto_uneven_wd1_wu1"], **CLOSE)
    np.testing.assert_allclose(rl.kto_reference_point(win), out["kto_kl_w"], **CLOSE)


def test_vanilla_kto_lets_gradients_through_its_reference():
    ratios, good = jnp.array([1.0, 2.0, 0.5]), np.array([True, True, False])
    paper = jax.grad(lambda x: rl.kto_loss(x, good, 0.5, beta=1.0).total)(ratios)
    vanilla = jax.grad(lambda x: rl.kto_loss(x, good, beta=1.0, variant="vanilla").total)(ratios)
    assert np.abs(paper - vanilla).max() > 1e-3
    # A constant added to all log-ratios moves every reference with it (while the means are positive).
    np.testing.assert_allclose(vanilla.sum(), 0, atol=1e-6)


def test_all_pairs_is_the_full_product():
    rng = np.random.default_rng(0)
    scores, outcome = rng.normal(size=8), np.array([1, 0, 0, 1, 1, 1, 1, 1.0])
    loss = rl.all_pairs_loss(scores, outcome, GROUPS, num_groups=2)
    pairs = [(scores[i], scores[j]) for i, j in itertools.product(range(4), range(4)) if outcome[i] > outcome[j]]
    product = rl.pairwise_loss(*np.array(pairs).T)
    np.testing.assert_allclose(loss.total, product.total, rtol=1e-6)
    assert float(loss.weight) == 4  # the second prompt has no wrong response and drops out
    np.testing.assert_allclose(loss.summary()["accuracy"], product.summary()["accuracy"])


def test_published_step_preferences():
    case = golden.load("search")["losses"]
    for given in case["step_dpo"]:
        names = ("logp_win", "logp_lose", "ref_win", "ref_lose")
        loss = rl.step_preference_loss(*(np.array([given[n]]) for n in names), beta=given["beta"])
        np.testing.assert_allclose(loss.mean(), given["loss"], **CLOSE)
        np.testing.assert_allclose(loss.summary()["margin"], given["margin"], **CLOSE)
    pos, neg = np.array(case["pairwise"]["pos"]), np.array(case["pairwise"]["neg"])
    every = np.array(list(itertools.product(pos, neg))).T
    np.testing.assert_allclose(rl.pairwise_loss(*every).mean(), case["pairwise"]["loss"], **CLOSE)
    bradley_terry = rl.step_preference_loss(*every, beta=1.0)
    np.testing.assert_allclose(bradley_terry.mean(), case["pairwise"]["loss"], **CLOSE)
    given = case["kto"]
    for i, expected in enumerate(given["loss"]):
        one = rl.kto_loss(
            np.array(given["logratio"][i : i + 1]),
            np.array(given["desirable"][i : i + 1]),
            given["z0"],
            beta=given["beta"],
            desirable_weight=given["lambda_d"],
            undesirable_weight=given["lambda_u"],
        )
        np.testing.assert_allclose(one.mean(), expected, **CLOSE)


def test_a_step_shared_by_both_gets_no_gradient():
    """Step-DPO scores the step's tokens only: the prefix's log-probabilities are outside the sums."""
    prefix, step = jnp.array([0.1, 0.2]), jnp.array([0.3, 0.4])
    mask = np.array([[False, False, True, True]])

    def loss(prefix):
        win = jnp.where(mask, jnp.concatenate([prefix, step])[None], 0).sum(1)
        return rl.step_preference_loss(win, jnp.zeros(1), beta=0.5).total

    np.testing.assert_array_equal(jax.grad(loss)(prefix), [0, 0])


def test_published_supervised_losses():
    case = golden.load("prime")["supervised"]
    given, out = case["in"], case["out"]
    logits, labels = np.array([given["token_cls_logits"]]), np.array([out["trl_full"]["labels"]])
    loss = rl.step_ce_loss(logits, labels, labels != -100)
    np.testing.assert_allclose(loss.mean(), out["trl_ce_mean"], **CLOSE)
    np.testing.assert_allclose(loss.summary()["accuracy"], out["trl_acc"], **CLOSE)
    vocabulary = np.array([given["openrlhf"]["placeholder_logits"]])
    positive, negative = given["openrlhf"]["reward_token_ids_pos_neg"]
    two = vocabulary[..., [positive, negative]]
    ids = np.array([given["openrlhf"]["hard_labels_token_ids"]])
    everywhere = np.ones(ids.shape, bool)
    hard = rl.step_ce_loss(two, ids == positive, everywhere, positive_class=0)
    np.testing.assert_allclose(hard.mean(), out["openrlhf_hard_ce"], **CLOSE)
    soft = rl.step_ce_loss(two, np.array([given["openrlhf"]["soft_labels"]]), everywhere, positive_class=0)
    np.testing.assert_allclose(soft.mean(), out["openrlhf_soft_ce"], **CLOSE)
    full = rl.value_loss(vocabulary, ids, everywhere, kind="ce")
    np.testing.assert_allclose(full.mean(), out["openrlhf_hard_ce_full_vocab"], **CLOSE)


def test_two_logits_are_one():
    rng = np.random.default_rng(0)
    two, labels, mask = rng.normal(size=(3, 4, 2)), rng.random((3, 4)), rng.random((3, 4)) < 0.7
    one = two[..., 1] - two[..., 0]
    np.testing.assert_allclose(
        rl.step_ce_loss(two, labels, mask).total, rl.step_ce_loss(one, labels, mask).total, rtol=1e-6
    )


def test_no_label_at_all_is_no_loss_and_no_nan():
    labels = np.full((2, 3), -100)
    value, gradient = jax.value_and_grad(lambda x: rl.step_ce_loss(x, labels, labels != -100).mean())(jnp.ones((2, 3)))
    assert value == 0 and not np.any(gradient)


def test_soft_labels_are_fitted_exactly_and_hard_ones_by_threshold():
    labels, mask = np.array([[0.25, 0.75]]), np.ones((1, 2), bool)
    at_label = np.log(labels / (1 - labels))
    gradient = jax.grad(lambda x: rl.step_ce_loss(x, labels, mask).total)(jnp.asarray(at_label, jnp.float32))
    np.testing.assert_allclose(gradient, 0, atol=1e-7)
    hard = rl.step_ce_loss(at_label, labels, mask, threshold=0.0)  # 1[MC > 0]
    np.testing.assert_allclose(hard.total, rl.step_ce_loss(at_label, np.ones((1, 2)), mask).total)


def test_label_smoothing_and_margin():
    c, r = np.array([1.0]), np.array([0.25])
    d = 0.75 - 0.5
    expected = 0.9 * np.log1p(np.exp(-d)) + 0.1 * np.log1p(np.exp(d))
    np.testing.assert_allclose(rl.pairwise_loss(c, r, margin=0.5, label_smoothing=0.1).total, expected, rtol=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match="weighting='best'"):
        rl.detached_pairwise_loss(np.ones(2), np.ones(2), [0, 0], num_groups=1, weighting="best")
    with pytest.raises(ValueError, match="variant='ipo'"):
        rl.kto_loss(np.ones(2), np.ones(2, bool), variant="ipo")
    with pytest.raises(AssertionError):
        rl.step_ce_loss(np.ones((2, 3, 4)), np.ones((2, 3)), np.ones((2, 3), bool))
    with pytest.raises(AssertionError):
        rl.pairwise_loss(np.ones(2), np.ones(3))


def test_kto_with_a_weight_for_each_response():
    """ReARTeR: an explanation that raises the score is desirable, and weighs exp(old score - new score)."""
    ratios, old, new = np.array([0.4, -0.2, 1.0]), np.array([0.2, 0.6, 0.5]), np.array([0.7, 0.1, 0.9])
    weights, good = np.exp(old - new), new > old
    loss = rl.kto_loss(ratios, good, beta=0.5, desirable_weight=weights, undesirable_weight=weights)
    each = [rl.kto_loss(ratios[i : i + 1], good[i : i + 1], beta=0.5).total * weights[i] for i in range(3)]
    np.testing.assert_allclose(loss.total, sum(each), rtol=1e-5)


def test_calibrated_dpo_is_dpo_and_two_terms_on_confidence():
    """CDPO's extra terms are DPO on (chosen, sure | chosen, unsure) and (rejected, unsure | rejected, sure)."""
    rng = np.random.default_rng(0)
    sure, unsure = rng.normal(size=(2, 2, 4))  # chosen and rejected, each with either confidence
    terms = [(sure[0], sure[1]), (sure[0], unsure[0]), (unsure[1], sure[1])]
    total = sum(rl.step_preference_loss(w, l, beta=0.01).mean() for w, l in terms)
    expected = sum(np.log1p(np.exp(-0.01 * (w - l))).mean() for w, l in terms)
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_weighted_and_smoothed_outcome_ce_is_that_of_a_loop():
    rng = np.random.default_rng(4)
    scores, outcome, weights = rng.normal(size=6), np.array([1, 0, 0.25, 1, 0, 1]), rng.uniform(0, 3, size=6)
    mask = np.ones((6, 1), bool)
    mask[5] = False
    loss = rl.outcome_ce_loss(scores[:, None], outcome, mask, weights=weights, label_smoothing=0.1)
    expected = 0.0
    for score, a, weight in list(zip(scores, outcome, weights, strict=True))[:5]:
        believed, p = 0.9 * a + 0.1 * (1 - a), 1 / (1 + np.exp(-score))
        expected -= weight * (believed * np.log(p) + (1 - believed) * np.log(1 - p))
    np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
    assert loss.weight == 5


def test_class_weights_make_both_classes_count_equally():
    outcome, mask = np.array([1, 0, 0, 0.5, 0, 1.0]), np.array([1, 1, 1, 1, 1, 0], bool)
    weights = rl.class_weights(outcome, mask)
    right, wrong = 1.5, 3.5
    for i in range(5):
        expected = outcome[i] * 5 / (2 * right) + (1 - outcome[i]) * 5 / (2 * wrong)
        np.testing.assert_allclose(weights[i], expected, rtol=1e-6)
    assert weights[5] == 0
    np.testing.assert_allclose((weights * mask).sum(), 5, rtol=1e-6)
    np.testing.assert_allclose(rl.class_weights(np.zeros(4)), 0.5)  # one class alone keeps its half
    np.testing.assert_array_equal(rl.class_weights(np.zeros(4), np.zeros(4, bool)), 0)
