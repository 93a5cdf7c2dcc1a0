"""Losses over the samples of a prompt, the consistency filter, the verifier's shaping: against written-out numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import rl
from prm_jax.errors import UserError
from prm_jax.prime.checks import check_options
from prm_jax.prime.consistency import consistent_rows, filtered
from prm_jax.prime.options import PolicyOptions
from prm_jax.prime.policy import make_policy_loss
from prm_jax.prime.shaping import make_reward
from prm_jax.prime.step import init_state, make_step
from tests.prime.conftest import inputs_of, replaced, setup_of


@pytest.fixture
def numbers(batch):
    """(log-probs, old and reference log-probs, advantages [B, T]) at random."""
    rng = np.random.default_rng(3)
    return [jnp.asarray(rng.normal(-1.0, 0.3, size=batch.mask.shape), jnp.float32) for _ in range(4)]


def per_response(batch, x):
    return np.where(batch.mask, np.asarray(x), 0.0).sum(-1)


def test_brain_is_the_loss_of_the_library(batch, numbers):
    logp, old, ref, advantages = numbers
    inputs = inputs_of(batch, np.zeros(batch.mask.shape, np.float32), ref_logp=ref)
    loss = make_policy_loss(PolicyOptions(loss="brain", sample_temperature=0.5))(logp, old, advantages, inputs)
    rewards = per_response(batch, advantages) / batch.mask.sum(-1)
    expected = rl.brain_loss(
        *(per_response(batch, x) for x in (logp, ref, old)), rewards, batch.group_ids, num_groups=4, temperature=0.5
    )
    np.testing.assert_allclose(loss.mean(), expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("name", ["gpo", "sppo"])
def test_preferences_over_the_policy_that_sampled(name, batch, numbers):
    logp, old, _, advantages = numbers
    inputs = inputs_of(batch, np.zeros(batch.mask.shape, np.float32))
    loss = make_policy_loss(PolicyOptions(loss=name, sample_temperature=0.5))(logp, old, advantages, inputs)
    rewards = per_response(batch, advantages) / batch.mask.sum(-1)
    total = 0.0
    for group in range(4):
        rows = np.flatnonzero(batch.group_ids == group)
        gaps = rewards[rows][:, None] - rewards[rows][None]
        gaps = 0.5 * np.sign(gaps) if name == "sppo" else gaps
        scores = gaps.sum(1) / (len(rows) - 1)
        log_z = np.log(np.mean(np.exp(scores / 0.5))) if name == "gpo" else 0.0
        ratio = per_response(batch, logp)[rows] - per_response(batch, old)[rows]
        total += ((ratio - scores / 0.5 + log_z) ** 2).sum()
    np.testing.assert_allclose(loss.total, total, rtol=1e-4)
    shifted = make_policy_loss(PolicyOptions(loss=name, sample_temperature=0.5))(logp, old, advantages + 3.0, inputs)
    np.testing.assert_allclose(shifted.total, loss.total, rtol=1e-3)  # a constant changes nothing


@pytest.mark.parametrize("loss", ["brain", "gpo", "sppo"])
def test_a_step_raises_the_likelihood_of_what_is_better(loss, options, tiny_config, tiny_params, tiny_frozen, batch):
    chosen = replaced(options, policy={"loss": loss}, advantage={"process_coef": 0.0})
    setup = setup_of(chosen, tiny_config, tiny_params, source=None)
    if loss == "brain":
        setup = dataclasses.replace(setup, reads_logp=True)
    state, step = init_state(setup, tiny_frozen, jax.random.key(0)), make_step(setup)
    before = setup.policy.logp(state.policy, tiny_frozen, batch)
    for _ in range(3):
        state, metrics, _ = step(state, tiny_frozen, batch)
    change = per_response(batch, setup.policy.logp(state.policy, tiny_frozen, batch) - before)
    assert np.isfinite(metrics["policy/loss"])
    assert change[batch.outcome > 0.5].mean() > change[batch.outcome < 0.5].mean() + 0.01


def test_consistent_rows_equal_a_loop(batch):
    rng = np.random.default_rng(1)
    process = rng.normal(size=batch.mask.shape).astype(np.float32)
    keep = batch.keep.copy()
    keep[5] = False
    inputs = inputs_of(dataclasses.replace(batch, keep=keep), process)
    mean = per_response(batch, process) / batch.mask.sum(-1)
    for share in (0.25, 0.5, 1.0):
        expected = np.zeros(len(keep), bool)
        for group in range(4):
            for side in (True, False):
                rows = np.flatnonzero((batch.group_ids == group) & ((batch.outcome > 0.5) == side) & keep)
                order = rows[np.argsort(-mean[rows] if side else mean[rows], kind="stable")]
                expected[order[: int(np.ceil(share * len(rows)))]] = True
        np.testing.assert_array_equal(consistent_rows(inputs, share), expected)
    assert filtered(inputs, 1.0) is inputs


def test_the_verifier_outranks_process_rewards(options, batch):
    rng = np.random.default_rng(2)
    process = 5 * rng.normal(size=batch.mask.shape).astype(np.float32)
    reward = make_reward(dataclasses.replace(options.reward, shaping=("verifier",), verifier_scale=0.5))
    found = np.asarray(reward(inputs_of(batch, process)))
    total = per_response(batch, found)
    assert total[batch.outcome > 0.5].min() > 0 > total[batch.outcome < 0.5].max()
    expected = 1 / (1 + np.exp(-0.5 * per_response(batch, process))) + batch.outcome - 1
    np.testing.assert_allclose(total, expected, atol=1e-5)
    assert (np.count_nonzero(found, axis=1) <= 1).all()


def test_a_step_with_the_filter_counts_fewer_rows_and_says_what_rewards_are_worth(
    options, tiny_config, tiny_params, tiny_frozen, batch
):
    found = {}
    for share in (1.0, 0.5):
        setup = setup_of(replaced(options, advantage={"consistent": share}), tiny_config, tiny_params)
        state, step = init_state(setup, tiny_frozen, jax.random.key(0)), make_step(setup)
        for _ in range(2):
            state, metrics, _ = step(state, tiny_frozen, batch)
        found[share] = {name: float(value) for name, value in metrics.items()}
    assert found[0.5]["advantage/abs"] != found[1.0]["advantage/abs"]
    for name in ("gold/spearman", "gold/r_squared", "prm/concentration"):
        assert found[0.5][name] == pytest.approx(found[1.0][name], rel=1e-4)  # of all rows
    assert 0 < found[1.0]["prm/concentration"] < 1 and -1 <= found[1.0]["gold/spearman"] <= 1


def test_a_critic_s_features_are_kept_apart(options, tiny_config, tiny_params, tiny_frozen, batch):
    """BEER: the penalty enters the loss, and is the library's on the states before consecutive tokens."""
    found = {}
    for penalty in (0.0, 10.0):
        chosen = replaced(options, advantage={"estimator": "ppo"}, critic={"rank_penalty": penalty, "clip": None})
        setup = setup_of(chosen, tiny_config, tiny_params)
        state, step = init_state(setup, tiny_frozen, jax.random.key(0)), make_step(setup)
        for _ in range(3):
            state, metrics, _ = step(state, tiny_frozen, batch)
        found[penalty] = metrics
    assert "critic/rank_active" not in found[0.0] and 0 < found[10.0]["critic/rank_active"] <= 1
    assert found[10.0]["critic/loss"] > found[0.0]["critic/loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": {"loss": "brain", "microbatches": 8}}, "would cut through groups"),
        ({"policy": {"loss": "gpo"}, "rollout": {"samples_per_prompt": 1, "filter": "none"}}, "sample at least 2"),
        ({"policy": {"loss": "brane"}}, "unknown policy loss 'brane'"),
        ({"reward": {"shaping": ("verifier",)}}, "--advantage.outcome-coef 0, or the outcome counts twice"),
        ({"reward": {"shaping": ("verifier", "clip")}, "advantage": {"outcome_coef": 0.0}}, "name it last"),
        ({"critic": {"rank_penalty": 0.1}}, "--critic.rank-penalty is for the critic of --advantage.estimator ppo"),
        ({"advantage": {"consistent": 0.0}}, "consistent"),
        ({"advantage": {"consistent": 0.5, "process_coef": 0.0}}, "--advantage.process-coef 0 has none"),
    ],
)
def test_nonsense_is_refused(options, changes, message):
    with pytest.raises(UserError, match=message):
        found = replaced(options, **changes)
        check_options(found)
        make_policy_loss(found.policy)
