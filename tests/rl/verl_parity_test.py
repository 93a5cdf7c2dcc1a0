"""The same numbers and gradients as verl and its PRIME recipe; where they differ on purpose, the exact difference.

    pip install torch verl      # and a clone of verl-project/verl-recipe named `recipe`, its parent on PYTHONPATH
    pytest tests/rl/verl_parity_test.py tests/verifiers/verl_parity_test.py

Intended differences, each asserted below: verl keeps the reward of a lone rollout as its GRPO advantage (ours is 0: a
group of one carries no signal) and divides rounding noise by the epsilon when all rewards are equal (ours is 0); its
value loss has a factor 1/2; "seq-mean-token-sum-norm" also divides by the number of responses; its recipe's
cross-entropy saturates at 100 per response, where its gradient vanishes, and its pair accuracy depends on the order of
tied scores.
"""

import types

import jax
import numpy as np
import pytest

from tests.rl import compiled as rl

pytestmark = [pytest.mark.optional, pytest.mark.filterwarnings("ignore:.*compute_policy_loss.*:FutureWarning")]

torch = pytest.importorskip("torch", reason="pip install torch verl")
verl = pytest.importorskip("verl.trainer.ppo.core_algos", reason="pip install torch verl")
functional = pytest.importorskip("verl.utils.torch_functional", reason="pip install torch verl")

CLOSE = {"rtol": 5e-5, "atol": 2e-5}
AGGREGATIONS = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


@pytest.fixture(name="recipe")
def fixture_recipe():
    return pytest.importorskip(
        "recipe.prime.prime_core_algos", reason="clone verl-project/verl-recipe as `recipe`, its parent on PYTHONPATH"
    )


@pytest.fixture(name="batch", params=range(4))
def fixture_batch(request):
    """Twelve rows with fractional outcomes: right-padded in even seeds, with holes in odd ones."""
    rng = np.random.default_rng(request.param)
    rows, width = 12, 9
    lengths = rng.integers(1, width + 1, rows)
    mask = np.arange(width) < lengths[:, None]
    if request.param % 2:
        mask &= rng.uniform(size=mask.shape) < 0.7
        mask[:, 0] = True
    normal = (rng.normal(size=mask.shape).astype(np.float32) for _ in range(4))
    return types.SimpleNamespace(
        mask=mask,
        first=next(normal),
        second=next(normal),
        third=next(normal),
        old=next(normal) * 0.1,
        outcome=rng.choice(np.array([0, 0.25, 0.5, 2 / 3, 1], np.float32), rows),
        even=np.repeat(np.arange(3), 4),
        uneven=rng.permutation(np.repeat(np.arange(4), [2, 3, 5, 2])),
    )


def tensor(x):
    return torch.tensor(np.array(x, np.float32))


def at_the_end(values, mask):
    """Values [B] on the last valid token of each row."""
    out = np.zeros(mask.shape, np.float32)
    out[np.arange(len(mask)), mask.shape[1] - 1 - mask[:, ::-1].argmax(1)] = values
    return out


def check_gradients(ours, theirs, x, mask=None):
    """The values of two functions of one array, and their gradients."""
    leaf = tensor(x).requires_grad_()
    value = theirs(leaf)
    value.backward()
    np.testing.assert_allclose(ours(x), value.detach(), **CLOSE)
    gradient = leaf.grad.numpy() if mask is None else np.where(mask, leaf.grad, 0)
    np.testing.assert_allclose(jax.grad(ours)(x), gradient, **CLOSE)


# ------------------------------------------------------------------------------------------- advantages


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("groups", ["even", "uneven"])
def test_grpo(batch, groups, scaled):
    ids = getattr(batch, groups)
    theirs, _ = verl.compute_grpo_outcome_advantage(
        tensor(at_the_end(batch.outcome, batch.mask)), tensor(batch.mask), ids, norm_adv_by_std_in_grpo=scaled
    )
    ours = rl.grpo_advantages(
        np.zeros(batch.mask.shape), batch.outcome, batch.mask, ids, num_groups=4, eps=1e-6 if scaled else None
    )
    different = np.array([np.ptp(batch.outcome[ids == i]) > 0 for i in ids])  # the others: see the next test
    assert different.any()
    np.testing.assert_allclose(ours[different], theirs[different], rtol=1e-4, atol=2e-5)
    assert not ours[~different].any()


def test_groups_without_a_signal_have_no_grpo_advantage_here():
    outcome, ids, one = np.array([0.5, 0.1, 0.1, 0.1], np.float32), np.array([0, 1, 1, 1]), np.ones((4, 1), bool)
    theirs = verl.compute_grpo_outcome_advantage(tensor(outcome[:, None]), tensor(one), ids)[0].numpy()
    ours = rl.grpo_advantages(np.zeros((4, 1)), outcome, one, ids, num_groups=2)
    assert not ours.any()
    np.testing.assert_allclose(theirs[0], outcome[:1] / (1 + 1e-6), rtol=1e-6)  # mean 0 and deviation 1 there
    assert np.abs(theirs[1:]).max() < 0.02  # rounding over 1e-6


@pytest.mark.parametrize("groups", ["even", "uneven"])
@pytest.mark.parametrize("name", ["compute_rloo_outcome_advantage", "compute_rloo_vectorized_outcome_advantage"])
def test_rloo(batch, groups, name):
    ids = getattr(batch, groups)
    theirs, _ = getattr(verl, name)(tensor(at_the_end(batch.outcome, batch.mask)), tensor(batch.mask), ids)
    alone = rl.leave_one_out(batch.outcome, ids, num_groups=4)
    np.testing.assert_allclose(alone[:, None] * batch.mask, theirs, **CLOSE)
    for variant in ("paper", "released"):
        ours = rl.rloo_advantages(
            np.zeros(batch.mask.shape), batch.outcome, batch.mask, ids, num_groups=4, variant=variant, whiten=False
        )
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_a_lone_rollout_keeps_its_reward_in_rloo():
    theirs, _ = verl.compute_rloo_outcome_advantage(torch.tensor([[0.75]]), torch.ones(1, 1), np.zeros(1, int))
    assert float(theirs[0, 0]) == float(rl.leave_one_out(np.array([0.75]), np.zeros(1, int), num_groups=1)[0]) == 0.75


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_reinforce_plus_plus(batch, discount):
    rewards = at_the_end(batch.outcome, batch.mask) + 0.1 * batch.first * batch.mask
    advantages, returns = verl.compute_reinforce_plus_plus_outcome_advantage(
        tensor(rewards), tensor(batch.mask), config=types.SimpleNamespace(gamma=discount)
    )
    ours = rl.discounted_returns(rewards, batch.mask, discount=discount)
    np.testing.assert_allclose(ours, returns, **CLOSE)
    np.testing.assert_allclose(rl.whiten(ours, batch.mask), advantages, rtol=1e-4, atol=1e-4)
    if discount == 1:  # the outcome enters the return of every token, as in equation 8
        plain = rl.reinforce_advantages(0.1 * batch.first, batch.outcome, batch.mask)
        np.testing.assert_allclose(plain, returns, **CLOSE)


def test_reinforce_plus_plus_with_a_baseline(batch):
    theirs, _ = verl.compute_reinforce_plus_plus_baseline_outcome_advantage(
        tensor(at_the_end(batch.outcome, batch.mask)), tensor(batch.mask), batch.uneven
    )
    ours = rl.grpo_advantages(
        np.zeros(batch.mask.shape), batch.outcome, batch.mask, batch.uneven, num_groups=4, eps=None
    )
    np.testing.assert_allclose(rl.whiten(ours, batch.mask), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("discount", "lambda_"), [(1.0, 1.0), (0.9, 0.7), (1.0, 0.0)])
def test_generalized_advantages(batch, discount, lambda_):
    rewards, values, mask = batch.first * batch.mask, batch.second, batch.mask
    advantages, returns = verl.compute_gae_advantage_return(
        tensor(rewards), tensor(values), tensor(mask), discount, lambda_
    )
    ours = rl.generalized_advantages(rewards, values, mask, discount=discount, lambda_=lambda_)
    np.testing.assert_allclose((ours + values)[mask], returns[mask], **CLOSE)
    targets = rl.lambda_returns(rewards, values, mask, discount=discount, lambda_=lambda_)
    np.testing.assert_allclose(targets[mask], returns[mask], **CLOSE)
    np.testing.assert_allclose(rl.whiten(ours, mask)[mask], advantages[mask], rtol=1e-4, atol=1e-4)


def test_whiten(batch):
    theirs = functional.masked_whiten(tensor(batch.first), tensor(batch.mask))
    np.testing.assert_allclose(rl.whiten(batch.first, batch.mask)[batch.mask], theirs[batch.mask], **CLOSE)


# ----------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregation(batch, aggregation):
    mask = batch.mask.copy()
    mask[3] = False  # a row without tokens counts in neither
    theirs = verl.agg_loss(tensor(batch.first), tensor(mask), aggregation)
    ours = rl.aggregate_tokens(batch.first, mask, aggregation=aggregation).mean()
    rows = 11 if aggregation == "seq-mean-token-sum-norm" else 1  # verl divides this one by the responses as well
    np.testing.assert_allclose(ours / rows, theirs, **CLOSE)


@pytest.mark.parametrize("aggregation", AGGREGATIONS[:3])
@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, 0.2, 3.0), (0.1, 0.3, 1.5)])
def test_clipped_surrogate_with_dual_clip(batch, aggregation, low, high, dual):
    old, logp, mask = batch.first, batch.first + 2 * batch.second, batch.mask

    def theirs(x):
        return verl.compute_policy_loss(
            tensor(old), x, tensor(batch.third), tensor(mask), cliprange=0.2, cliprange_low=low, cliprange_high=high,
            clip_ratio_c=dual, loss_agg_mode=aggregation,
        )  # fmt: skip

    def ours(x):
        return rl.clipped_surrogate(
            x, old, batch.third, mask, clip_low=low, clip_high=high, dual_clip=dual, aggregation=aggregation
        )

    check_gradients(lambda x: ours(x).mean(), lambda x: theirs(x)[0], logp)
    _, clipped, kl, lower = theirs(tensor(logp))
    summary = ours(logp).summary()
    assert float(clipped) > 0 and float(lower) > 0
    np.testing.assert_allclose(summary["clip_fraction"], clipped, **CLOSE)
    np.testing.assert_allclose(summary["dual_clip_fraction"], lower, **CLOSE)
    np.testing.assert_allclose(summary["approx_kl"], kl, **CLOSE)


def actor_config(**options):
    config = pytest.importorskip("verl.workers.config", reason="pip install torch verl").ActorConfig
    return config(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **options)


def test_registered_policy_loss_with_importance_weights(batch):
    old, logp, weights = batch.first, batch.first + batch.second, np.exp(batch.old)
    config = actor_config(clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=2.0)

    def theirs(x):
        return verl.compute_policy_loss_vanilla(
            tensor(old), x, tensor(batch.third), tensor(batch.mask), config=config, rollout_is_weights=tensor(weights)
        )[0]

    def ours(x):
        return rl.clipped_surrogate(
            x, old, batch.third, batch.mask, clip_high=0.28, dual_clip=2.0, token_weights=weights
        ).mean()

    check_gradients(ours, theirs, logp)


def test_sequence_ratio(batch):
    """The gradients agree when a response's tokens have one advantage: verl passes them per token, we per response."""
    old, logp, mask = batch.first, batch.first + 0.3 * batch.second, batch.mask
    advantages = np.broadcast_to(batch.third[:, :1], mask.shape)
    config = actor_config(clip_ratio_low=0.05, clip_ratio_high=0.1)

    def theirs(x):
        return verl.compute_policy_loss_gspo(
            tensor(old), x, tensor(advantages), tensor(mask), "seq-mean-token-mean", config
        )[0]

    def ours(x):
        return rl.clipped_surrogate(
            x, old, advantages, mask, clip_low=0.05, clip_high=0.1, ratio="sequence", aggregation="seq-mean-token-mean"
        ).mean()

    check_gradients(ours, theirs, logp)


def test_value_loss(batch):
    old, values = batch.first, batch.first + batch.second
    theirs, fraction = verl.compute_value_loss(
        tensor(values), tensor(batch.third), tensor(old), tensor(batch.mask), cliprange_value=0.5
    )

    def ours(x):
        return rl.value_loss(x, batch.third, batch.mask, old_values=old, clip=0.5)

    np.testing.assert_allclose(0.5 * ours(values).mean(), theirs, **CLOSE)
    np.testing.assert_allclose(ours(values).summary()["clip_fraction"], fraction, **CLOSE)
    check_gradients(
        lambda x: 0.5 * ours(x).mean(),
        lambda x: verl.compute_value_loss(x, tensor(batch.third), tensor(old), tensor(batch.mask), 0.5)[0],
        values,
    )


@pytest.mark.parametrize(("ours", "theirs"), [("k1", "kl"), ("k2", "mse"), ("k3", "low_var_kl")])
def test_kl_estimators(batch, ours, theirs):
    logp, ref_logp, mask = 4 * batch.first, batch.second, batch.mask  # far enough for the bound of k3
    expected = verl.kl_penalty(tensor(logp), tensor(ref_logp), theirs)
    found = rl.token_kl(logp, ref_logp, mask, estimator=ours)
    np.testing.assert_allclose(found, np.where(mask, expected, 0), **CLOSE)
    check_gradients(
        lambda x: rl.kl_penalty(x, ref_logp, mask, estimator=ours).mean(),
        lambda x: verl.agg_loss(verl.kl_penalty(x, tensor(ref_logp), theirs), tensor(mask), "token-mean"),
        logp,
    )


def test_entropy(batch):
    logits = np.random.default_rng(0).normal(size=(*batch.mask.shape, 5)).astype(np.float32)
    log_probs = jax.nn.log_softmax(logits)
    entropy = -(np.exp(log_probs) * log_probs).sum(-1)
    theirs = verl.compute_entropy_loss(tensor(logits), tensor(batch.mask))
    np.testing.assert_allclose(-rl.entropy_bonus(entropy, batch.mask).mean(), theirs, **CLOSE)


# --------------------------------------------------------------------------------------- PRIME's recipe


@pytest.mark.parametrize(("dense", "sparse"), [(5.0, 5.0), (1.0, 0.0), (0.0, 1.0)])
def test_recipe_advantages(recipe, batch, dense, sparse):
    """The released form, with the outcome on the last token, for groups of one size."""
    lengths = np.maximum(batch.mask.sum(1), 1)
    mask = np.arange(batch.mask.shape[1]) < lengths[:, None]
    data = types.SimpleNamespace(batch={
        "rm_scores": tensor(batch.first), "acc": tensor(batch.outcome), "prompts": torch.zeros(12, 2),
        "attention_mask": torch.cat([torch.ones(12, 2), tensor(mask)], 1).long(),
    })  # fmt: skip
    options = types.SimpleNamespace(reward_dpo_coef=dense, reward_gt_coef=sparse)
    whitened, returns = recipe.compute_rloo_advantage_return(
        data, tensor(mask).long(), 4, types.SimpleNamespace(algorithm=options)
    )
    for expected, whiten in ((returns, False), (whitened, True)):
        ours = rl.rloo_advantages(
            batch.first, batch.outcome, mask, batch.even, num_groups=3, variant="released", dense_coef=dense,
            outcome_coef=sparse, whiten=whiten,
        )  # fmt: skip
        np.testing.assert_allclose(ours[mask], expected[mask], rtol=1e-4, atol=1e-4)


def test_the_paper_differs_from_the_recipe_by_the_deviation_within_the_response(batch):
    """(r_t - mean r) / (K - 1) per token, accumulated: what the recipe adds to equation 5."""
    found = {
        variant: rl.rloo_advantages(
            batch.first, batch.outcome, batch.mask, batch.even, num_groups=3, variant=variant, whiten=False
        )
        for variant in ("paper", "released")
    }
    mean = np.where(batch.mask, batch.first, 0).sum(1, keepdims=True) / batch.mask.sum(1, keepdims=True)
    extra = np.where(batch.mask, batch.first - mean, 0) / 3
    extra = np.where(batch.mask, extra[:, ::-1].cumsum(1)[:, ::-1], 0)
    np.testing.assert_allclose(found["released"] - found["paper"], extra, **CLOSE)


def test_recipe_cross_entropy(recipe, batch):
    beta, mask = 0.05, batch.mask

    def ours(logp):
        return rl.outcome_ce_loss(rl.implicit_token_rewards(logp, batch.old, mask, beta=beta), batch.outcome, mask)

    check_gradients(
        lambda x: ours(x).mean(),
        lambda x: recipe.compute_ce_dpo_loss_rm(x - tensor(batch.old), tensor(batch.outcome), tensor(mask), beta),
        batch.first,
    )
    theirs = recipe.compute_dpo_abs_accuracy(
        tensor(batch.first - batch.old), tensor(batch.outcome), tensor(mask), n_samples=4
    )
    np.testing.assert_allclose(ours(batch.first).summary()["accuracy"], theirs, **CLOSE)


def test_recipe_cross_entropy_saturates(recipe):
    """A confident wrong score: -log(1 - sigmoid(200)) is 200, and there log(0) bounded at -100."""
    scores = tensor([[200.0]]).requires_grad_()
    theirs = recipe.compute_ce_dpo_loss_rm(scores, torch.zeros(1), torch.ones(1, 1), 1.0)
    theirs.backward()
    assert float(theirs.detach()) == 100.0 and float(scores.grad[0, 0]) == 0.0

    def ours(x):
        return rl.outcome_ce_loss(x, np.zeros(1), np.ones((1, 1), bool)).mean()

    assert float(ours(np.array([[200.0]]))) == 200.0
    assert float(jax.grad(ours)(np.array([[200.0]]))[0, 0]) == 1.0


@pytest.mark.parametrize("weighting", ["none", "bon_rm", "bon_acc"])
def test_recipe_detached_pairs(recipe, batch, weighting):
    beta, mask = 0.05, batch.mask
    sums = np.where(mask, batch.first, 0).sum(1).astype(np.float32)
    opponents, outcomes = (tensor(x)[batch.even[:, None] * 4 + np.arange(4)] for x in (sums, batch.outcome))

    def theirs(x):
        return recipe.compute_detach_dpo_loss_rm(
            x, tensor(batch.outcome), opponents, outcomes, tensor(mask), beta, bon_mode=weighting
        )

    def ours(x):
        scores = rl.implicit_token_rewards(x, np.zeros(mask.shape), mask, beta=beta).sum(1)
        return rl.detached_pairwise_loss(
            scores, batch.outcome, batch.even, num_groups=3, weighting=weighting, opponent_scores=beta * sums
        ).mean()

    if weighting == "bon_rm":  # whether a score equals itself after rounding decides its rank: compare away from ties
        moved = batch.first + 0.01 * mask
        check_gradients(ours, theirs, moved.astype(np.float32))
    else:
        check_gradients(ours, theirs, batch.first)


def test_recipe_pair_accuracy(recipe, batch):
    sums = np.where(batch.mask, batch.first, 0).sum(1)
    theirs = recipe.compute_dpo_accuracy(tensor(batch.first), tensor(batch.outcome), tensor(batch.mask), n_samples=4)
    ours = rl.pairwise_accuracy(sums, batch.outcome, batch.even, num_groups=3, average="released")
    np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_tied_scores_are_half_right_here(recipe):
    ties, one = torch.zeros(2, 1), torch.ones(2, 1)
    for outcome, theirs in ((np.array([1.0, 0.0]), 0.0), (np.array([0.0, 1.0]), 1.0)):
        assert float(recipe.compute_dpo_accuracy(ties, tensor(outcome), one, n_samples=2)) == theirs
        ours = rl.pairwise_accuracy(np.zeros(2), outcome, np.zeros(2, int), num_groups=1, average="released")
        assert float(ours) == 0.5
