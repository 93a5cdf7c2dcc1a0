"""The PRIME step: exact zeros at initialisation, update modes, estimators, exact accumulation, guards."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import rl
from prm_jax.models import (
    ModelConfig,
    compiler_options,
    init_params,
    quantize,
    value_head,
)
from prm_jax.prime.advantages import value_targets
from prm_jax.prime.batch import Frozen
from prm_jax.prime.options import Options
from prm_jax.prime.policy import clipped_loss, with_regularizers
from prm_jax.prime.shaping import make_reward
from prm_jax.prime.start import even_ways
from prm_jax.prime.step import init_state, make_source_step, make_step, process_gate
from tests.compiled import hidden_states, token_logprobs
from tests.prime.conftest import advantages_of, inputs_of, make_batch, replaced, setup_of


def state_of(setup, frozen: Frozen):
    return init_state(setup, frozen, jax.random.key(0))


_COMPILED: dict = {}


def compiled(options: Options, config, params, lora=False):
    """(setup, compiled step), shared between tests: compiling is nearly all of their time."""
    key = (repr(options), config, lora, id(params))
    if key not in _COMPILED:
        setup = setup_of(options, config, params, lora=lora)
        _COMPILED[key] = setup, make_step(setup)
    return _COMPILED[key]


def run(options, config, frozen, batch, *, lora=False, steps=1):
    setup, step = compiled(options, config, frozen.constants, lora)
    state = state_of(setup, frozen)
    for _ in range(steps):
        state, metrics, rewards = step(state, frozen, batch)
    return state, jax.device_get(metrics), np.asarray(rewards)


def assert_trees(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("update", ["none", "after"])
def test_rewards_are_exactly_zero_while_the_prm_equals_its_reference(
    options, tiny_config, tiny_frozen, batch, update, lora
):
    _, metrics, rewards = run(replaced(options, prm={"update": update}), tiny_config, tiny_frozen, batch, lora=lora)
    np.testing.assert_array_equal(rewards, 0.0)
    assert metrics["prm/pairwise_accuracy"] == 0.5
    if update == "after":
        np.testing.assert_allclose(metrics["prm/loss"], np.log(2.0), rtol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("update", ["none", "after"])
@pytest.mark.heavy
def test_rewards_are_exactly_zero_in_half_precision(options, update, lora):
    """With rematerialised layers, XLA by default rounds differently in the differentiated pass and in scoring."""
    config = ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        compute_dtype="bfloat16", remat="full",
    )  # fmt: skip
    params = init_params(config, jax.random.key(5))
    changed = replaced(options, prm={"update": update})
    setup = setup_of(changed, config, params, lora=lora)
    frozen, batch = Frozen(params, params), make_batch(width=24, vocab=64)
    _, metrics, rewards = make_step(setup)(state_of(setup, frozen), frozen, batch)
    np.testing.assert_array_equal(rewards, 0.0)
    assert metrics["prm/pairwise_accuracy"] == 0.5
    # The normaliser has nothing to amplify: the advantages are those of outcomes alone.
    outcomes = advantages_of(dataclasses.replace(changed.advantage, process_coef=0.0), batch, np.zeros_like(rewards))
    expected = np.abs(outcomes)[batch.mask].mean()
    np.testing.assert_allclose(metrics["advantage/abs"], expected, rtol=1e-5)


def test_rewards_are_exactly_zero_where_the_cpu_would_fuse_scoring_differently(options):
    """256 rows of 48 tokens, one unrolled layer: by default, XLA computes the scoring pass in one library call."""
    config = ModelConfig(
        vocab_size=18, hidden_size=64, intermediate_size=192, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=32
    )
    params = init_params(config, jax.random.key(0))
    frozen, batch = Frozen(params, params), make_batch(prompts=64, width=48)
    source = setup_of(replaced(options, prm={"lora_rank": 4}), config, params, lora=True)
    _, metrics = make_source_step(source)(state_of(source, frozen), frozen, batch)
    assert metrics["prm/reward_abs"] == 0 and metrics["prm/log_ratio"] == 0


def test_options_of_the_compiler_follow_dtype_and_platform(tiny_config):
    half = dataclasses.replace(tiny_config, compute_dtype="bfloat16")
    assert compiler_options(tiny_config, tiny_config, platform="tpu") is None
    assert compiler_options(tiny_config, half, platform="tpu") == {"xla_allow_excess_precision": False}
    assert compiler_options(half, platform="cpu").keys() == {
        "xla_allow_excess_precision", "xla_cpu_experimental_ynn_fusion_type"
    }  # fmt: skip


def test_after_harvests_the_scores_that_before_would_replace(options, tiny_config, tiny_frozen, batch):
    """`before` re-scores with the updated PRM; `after` gives the scores of the training pass itself."""
    after_state, _, after = run(options, tiny_config, tiny_frozen, batch)
    before_state, _, before = run(replaced(options, prm={"update": "before"}), tiny_config, tiny_frozen, batch)
    assert_trees(after_state.source.trainable, before_state.source.trainable, rtol=0, atol=0)
    logp = token_logprobs(tiny_config, before_state.source.trainable, batch.tokens, batch.mask)
    ref = token_logprobs(tiny_config, tiny_frozen.constants, batch.tokens, batch.mask)
    np.testing.assert_allclose(before, 0.05 * (logp - ref), atol=1e-6)
    assert np.abs(before).max() > 1e-4 and np.abs(after).max() == 0.0


def test_after_with_minibatches_scores_each_with_the_prm_that_met_the_earlier_ones(
    options, tiny_config, tiny_frozen, batch
):
    _, _, rewards = run(replaced(options, prm={"minibatches": 2}), tiny_config, tiny_frozen, batch)
    np.testing.assert_array_equal(rewards[:8], 0.0)
    assert np.abs(rewards[8:]).max() > 0


def test_none_leaves_the_prm_alone_and_reverse_compares_with_scores_from_before(
    options, tiny_config, tiny_frozen, batch
):
    state, _, _ = run(replaced(options, prm={"update": "none"}), tiny_config, tiny_frozen, batch)
    assert_trees(state.source.trainable, tiny_frozen.constants, rtol=0, atol=0)
    detached = {"update": "reverse", "loss": "detached", "minibatches": 2}
    moved, metrics, _ = run(replaced(options, prm=detached), tiny_config, tiny_frozen, batch)
    assert not np.array_equal(moved.source.trainable["embed"]["embedding"], tiny_frozen.constants["embed"]["embedding"])
    np.testing.assert_allclose(metrics["prm/loss"], np.log(2.0), rtol=0.05)


@pytest.mark.parametrize("loss", ["ce", "dpo", "detached", "detached_bon_rm", "detached_bon_acc"])
def test_every_loss_teaches_the_prm_to_order_the_batch(options, tiny_config, tiny_frozen, batch, loss):
    setup = setup_of(replaced(options, prm={"loss": loss, "beta": 0.5}), tiny_config, tiny_frozen.constants)
    step, state = make_source_step(setup), state_of(setup, tiny_frozen)
    for _ in range(25):
        state, metrics = step(state, tiny_frozen, batch)
    assert float(metrics["prm/pairwise_accuracy"]) > 0.8


def _outcome_only(estimator: str) -> dict:
    return {"estimator": estimator, "process_coef": 0.0}


@pytest.mark.parametrize("estimator", ["rloo", "rloo_released", "grpo", "reinforce"])
def test_outcome_only_keeps_no_prm_and_gives_the_plain_estimator(options, tiny_config, tiny_frozen, batch, estimator):
    changed = replaced(options, advantage=_outcome_only(estimator))
    state, metrics, rewards = run(changed, tiny_config, tiny_frozen, batch)
    assert state.source is None and not any(name.startswith("prm/") for name in metrics)
    np.testing.assert_array_equal(rewards, 0.0)
    advantages = advantages_of(changed.advantage, batch, rewards)
    outcome, size = batch.outcome.reshape(4, 4), 4
    loo = outcome - (outcome.sum(1, keepdims=True) - outcome) / (size - 1)
    plain = {
        "rloo": loo,
        "rloo_released": loo,
        "grpo": (outcome - outcome.mean(1, keepdims=True)) / (outcome.std(1, ddof=1, keepdims=True) + 1e-6),
        "reinforce": outcome,
    }[estimator].reshape(-1)
    expected = np.where(batch.mask, plain[:, None], 0.0)
    if estimator.startswith("rloo"):
        valid = expected[batch.mask]
        expected = np.where(batch.mask, (expected - valid.mean()) / np.sqrt(valid.var(ddof=1) + 1e-8), 0.0)
    np.testing.assert_allclose(advantages, expected, atol=2e-5)


@pytest.mark.parametrize("estimator", ["rloo", "rloo_released", "grpo", "reinforce"])
def test_every_estimator_learns_from_process_rewards(options, tiny_config, tiny_frozen, batch, estimator):
    """Rewards from elsewhere reach the advantages as a PRM's would, and no PRM is kept."""
    changed = replaced(options, advantage={"estimator": estimator})
    setup = setup_of(changed, tiny_config, tiny_frozen.constants, source=None)
    given = np.where(batch.mask, np.random.default_rng(1).normal(size=batch.mask.shape), 0.0).astype(np.float32)
    state, metrics, rewards = make_step(setup)(
        state_of(setup, tiny_frozen), tiny_frozen, dataclasses.replace(batch, process=given)
    )
    np.testing.assert_array_equal(rewards, given)
    assert state.source is None and not any(name.startswith("prm/") for name in metrics)
    advantages = advantages_of(changed.advantage, batch, given)
    np.testing.assert_allclose(metrics["advantage/abs"], np.abs(advantages)[batch.mask].mean(), rtol=1e-5)
    alone, _, _ = run(replaced(options, advantage=_outcome_only(estimator)), tiny_config, tiny_frozen, batch)
    assert all(np.isfinite(value) for value in metrics.values()) and metrics["policy/skipped"] == 0
    assert not np.allclose(state.policy["head"]["kernel"], alone.policy["head"]["kernel"], atol=1e-7)


@pytest.mark.heavy
def test_the_critic_of_ppo_learns_beside_the_prm(options, tiny_config, tiny_frozen, batch):
    both = replaced(options, advantage={"estimator": "ppo"}, prm={"update": "before"})
    state, metrics, _ = run(both, tiny_config, tiny_frozen, batch)
    alone, _, _ = run(replaced(options, advantage=_outcome_only("ppo")), tiny_config, tiny_frozen, batch)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["policy/skipped"] == 0 and metrics["critic/grad_norm"] > 0
    assert not np.allclose(state.policy["head"]["kernel"], alone.policy["head"]["kernel"], atol=1e-7)


def test_process_and_outcome_coefficients_scale_their_parts(options, batch):
    rng = np.random.default_rng(3)
    rewards = jnp.asarray(np.where(batch.mask, rng.normal(size=batch.mask.shape), 0.0), jnp.float32)

    def advantages(estimator, process, outcome, gate=1.0):
        changed = dataclasses.replace(
            options.advantage, estimator=estimator, process_coef=process, outcome_coef=outcome, whiten=False
        )
        return advantages_of(changed, batch, rewards, gate=jnp.asarray(gate))

    for estimator in ("rloo", "rloo_released", "grpo", "reinforce"):
        dense, sparse = advantages(estimator, 1.0, 0.0), advantages(estimator, 0.0, 1.0)
        np.testing.assert_allclose(advantages(estimator, 2.0, 3.0, gate=0.5), dense * 1.0 + sparse * 3.0, atol=1e-4)


def test_step_granularity_puts_each_steps_sum_on_its_last_token(options, batch):
    rng = np.random.default_rng(2)
    by_token = np.where(batch.mask, rng.normal(size=batch.mask.shape), 0.0).astype(np.float32)
    reward = make_reward(dataclasses.replace(options.reward, granularity="step"))
    by_step = np.asarray(reward(inputs_of(batch, by_token)))
    for row in range(batch.mask.shape[0]):
        for index in range(batch.step_ids[row].max() + 1):
            here = np.flatnonzero(batch.step_ids[row] == index)
            np.testing.assert_allclose(by_step[row, here[-1]], by_token[row, here].sum(), atol=1e-6)
            np.testing.assert_array_equal(by_step[row, here[:-1]], 0.0)


def test_rows_that_do_not_count_may_hold_anything(options, tiny_config, tiny_frozen):
    batch = make_batch(seed=5)
    keep = np.ones(16, bool)
    keep[4:8] = False  # a filtered group
    keep[13] = False  # a response whose verifier failed
    clean = dataclasses.replace(batch, keep=keep)
    rng = np.random.default_rng(1)
    tokens, outcome = batch.tokens.copy(), batch.outcome.copy()
    tokens[~keep] = rng.integers(0, 18, size=tokens[~keep].shape)
    outcome[~keep] = 0.37
    dirty = dataclasses.replace(clean, tokens=tokens, outcome=outcome)
    changed = replaced(options, advantage={"gate": True}, prm={"update": "before"})
    first, first_metrics, _ = run(changed, tiny_config, tiny_frozen, clean, steps=2)
    second, second_metrics, _ = run(changed, tiny_config, tiny_frozen, dirty, steps=2)
    assert_trees(first.policy, second.policy, atol=1e-6)
    assert_trees(first.source.trainable, second.source.trainable, atol=1e-6)
    for name, value in first_metrics.items():
        np.testing.assert_allclose(value, second_metrics[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.heavy
def test_accumulating_in_pieces_equals_the_whole_batch(options, tiny_config, tiny_frozen, batch):
    whole = replaced(options, prm={"update": "before"}, policy={"kl_coef": 0.1, "entropy_coef": 0.01})
    parts = replaced(whole, prm={"microbatches": 4}, policy={"microbatches": 4})
    one, one_metrics, _ = run(whole, tiny_config, tiny_frozen, batch)
    many, many_metrics, _ = run(parts, tiny_config, tiny_frozen, batch)
    # Adam divides by the root of the squared gradient, so compare what the moments hold: the gradients.
    for x, y in ((one.source.opt, many.source.opt), (one.policy_opt, many.policy_opt)):
        assert_trees(x, y, atol=2e-6)
    for name in ("prm/loss", "policy/loss", "policy/grad_norm", "prm/grad_norm"):
        np.testing.assert_allclose(one_metrics[name], many_metrics[name], rtol=1e-4, err_msg=name)


@pytest.mark.heavy
def test_accumulating_pairs_in_pieces_equals_the_whole_batch(options, tiny_config, tiny_frozen, batch):
    """Of the PRM alone: pairs of a group may be in different pieces."""
    found = []
    for microbatches in (1, 4):
        changed = replaced(options, prm={"loss": "dpo", "update": "before", "microbatches": microbatches})
        setup = setup_of(changed, tiny_config, tiny_frozen.constants)
        found.append(make_source_step(setup)(state_of(setup, tiny_frozen), tiny_frozen, batch))
    (one, one_metrics), (many, many_metrics) = found
    assert_trees(one.source.opt, many.source.opt, atol=2e-6)
    for name in ("prm/loss", "prm/grad_norm"):
        np.testing.assert_allclose(one_metrics[name], many_metrics[name], rtol=1e-4, err_msg=name)


def test_divergence_and_entropy_terms_act(options, tiny_config, tiny_frozen, batch):
    plain = replaced(options, advantage={"process_coef": 0.0}, policy={"learning_rate": 3e-2})
    moved = run(plain, tiny_config, tiny_frozen, batch, steps=8)[1]
    for placement in ("loss", "reward"):
        held = replaced(plain, policy={"kl_coef": 3.0, "kl_placement": placement, "kl_estimator": "k2"})
        state, metrics, _ = run(held, tiny_config, tiny_frozen, batch, steps=8)
        free = run(plain, tiny_config, tiny_frozen, batch, steps=8)[0]

        def distance(policy):
            logp = token_logprobs(tiny_config, policy, batch.tokens, batch.mask)
            ref = token_logprobs(tiny_config, tiny_frozen.reference, batch.tokens, batch.mask)
            return float(jnp.square(logp - ref).sum())

        assert distance(state.policy) < 0.7 * distance(free.policy), placement
    wide = run(replaced(plain, policy={"entropy_coef": 1.0}), tiny_config, tiny_frozen, batch, steps=8)[1]
    assert wide["policy/entropy"] > moved["policy/entropy"] + 0.05


def test_policy_loss_on_policy_is_minus_the_mean_advantage(options, batch):
    rng = np.random.default_rng(0)
    logp = jnp.asarray(rng.normal(size=batch.mask.shape), jnp.float32)
    advantages = jnp.asarray(rng.normal(size=batch.mask.shape), jnp.float32)
    inputs = inputs_of(batch, jnp.zeros_like(logp), entropy=jnp.zeros_like(logp))
    loss = with_regularizers(
        options.policy, clipped_loss(options.policy)(logp, logp, advantages, inputs), logp, None, inputs
    )
    np.testing.assert_allclose(loss.mean(), -np.asarray(advantages)[batch.mask].mean(), rtol=1e-5)


def test_epochs_and_minibatches_use_the_sampling_policys_log_probs(options, tiny_config, tiny_frozen, batch):
    several = replaced(options, policy={"epochs": 3, "minibatches": 2, "learning_rate": 3e-2})
    _, metrics, _ = run(several, tiny_config, tiny_frozen, batch)
    assert metrics["policy/clip_fraction"] > 0
    single = run(options, tiny_config, tiny_frozen, batch)[1]
    assert single["policy/clip_fraction"] == 0


def test_a_non_finite_gradient_is_skipped_and_counted(options, tiny_config, tiny_params, batch):
    poisoned = jax.tree.map(lambda x: x, tiny_params)
    poisoned["embed"] = {"embedding": tiny_params["embed"]["embedding"].at[5].set(jnp.inf)}
    frozen = Frozen(poisoned, tiny_params)
    state, metrics, _ = run(options, tiny_config, frozen, batch)
    assert metrics["policy/skipped"] == 1 and metrics["prm/skipped"] == 0
    assert_trees(state.policy, poisoned, rtol=0, atol=0)
    assert int(state.step) == 1


def test_state_is_donated_and_the_step_traced_once(options, tiny_config, tiny_frozen, batch):
    setup = setup_of(options, tiny_config, tiny_frozen.constants)
    step, state = make_step(setup), state_of(setup, tiny_frozen)
    old = jax.tree.leaves(state.policy)
    for seed in range(3):
        state, _, _ = step(state, tiny_frozen, make_batch(seed))
    assert all(x.is_deleted() for x in old)
    assert not any(x.is_deleted() for x in jax.tree.leaves(tiny_frozen))
    assert step._cache_size() == 1


def test_a_step_may_be_called_inside_another_compiled_function(options, tiny_config, tiny_frozen):
    """The compiler's options belong to the outermost program; a scan over two steps equals two steps."""
    setup, step = compiled(options, tiny_config, tiny_frozen.constants)
    batches = [make_batch(seed) for seed in range(2)]
    together = jax.jit(
        lambda state, frozen, stacked: jax.lax.scan(
            lambda state, one: (step(state, frozen, one)[0], ()), state, stacked
        )[0]
    )
    found = together(state_of(setup, tiny_frozen), tiny_frozen, jax.tree.map(lambda *x: jnp.stack(x), *batches))
    state = state_of(setup, tiny_frozen)
    for batch in batches:
        state, _, _ = step(state, tiny_frozen, batch)
    assert int(found.step) == 2
    assert_trees(found.policy, state.policy, rtol=1e-4, atol=1e-5)


def test_adapters_on_a_quantised_base_start_with_rewards_of_exactly_zero(options, tiny_config, tiny_params, batch):
    quantised = quantize(tiny_config, tiny_params, bits=4, group=8)
    frozen = Frozen(quantised, quantised)
    state, metrics, rewards = run(options, tiny_config, frozen, batch, lora=True)
    np.testing.assert_array_equal(rewards, 0.0)
    assert metrics["prm/grad_norm"] > 0 and metrics["policy/grad_norm"] > 0
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path((state.policy, state.source.trainable))}
    assert names == {"lora_a", "lora_b"}


def test_lora_trains_adapters_only(options, tiny_config, tiny_frozen, batch):
    state, _, rewards = run(options, tiny_config, tiny_frozen, batch, lora=True, steps=2)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(state.policy)}
    assert names == {"lora_a", "lora_b"}
    assert np.abs(rewards).max() > 0


def test_gate_follows_the_accuracy_before_the_update(options, tiny_config, tiny_frozen, batch):
    gated = replaced(options, advantage={"gate": True}, prm={"update": "before"})
    setup, step = compiled(gated, tiny_config, tiny_frozen.constants)
    state = state_of(setup, tiny_frozen)
    state, first, _ = step(state, tiny_frozen, batch)
    assert float(first["prm/gate"]) == 0.0  # nothing learned yet: accuracy one half
    for _ in range(20):
        state, metrics, _ = step(state, tiny_frozen, batch)
    accuracy = float(metrics["prm/pairwise_accuracy"])
    np.testing.assert_allclose(metrics["prm/gate"], rl.trust_gate(accuracy), rtol=1e-6)
    assert accuracy > 0.7
    # With an interval: three of the four groups are mixed, the fourth is all wrong.
    outcome = np.where(np.arange(16) < 12, batch.outcome, 0.0).astype(np.float32)
    careful = replaced(options, advantage={"gate": True, "gate_z": 0.5}, prm={"learning_rate": 3e-2})
    _, metrics, _ = run(careful, tiny_config, tiny_frozen, dataclasses.replace(batch, outcome=outcome), steps=8)
    expected = rl.trust_gate(metrics["prm/pairwise_accuracy"], count=3, z=0.5)
    np.testing.assert_allclose(metrics["prm/gate"], expected, rtol=1e-5)
    assert 0 < expected < rl.trust_gate(metrics["prm/pairwise_accuracy"])


def test_a_gate_per_group_is_measured_on_its_own_pairs(options, batch):
    """Against a loop; the last group is all wrong and takes the batch's gate; a row that is left out is not read."""
    rng, keep = np.random.default_rng(3), np.arange(16) != 5
    outcome = np.where(np.arange(16) < 12, rng.integers(0, 2, 16), 0).astype(np.float32)
    outcome[:12:4], outcome[3:12:4] = 1.0, 0.0
    scores = rng.normal(size=16) + outcome * np.repeat([3.0, 1.0, 1.0, 0.0], 4)
    given = dataclasses.replace(batch, outcome=outcome, keep=keep)
    choice = dataclasses.replace(options.advantage, gate=True, gate_per="group")
    gate, accuracy = process_gate(choice, jnp.asarray(scores, jnp.float32), given)
    own = []
    for first in range(0, 12, 4):
        rows = [row for row in range(first, first + 4) if keep[row]]
        pairs = [(a, b) for a in rows for b in rows if outcome[a] > outcome[b]]
        own.append(np.mean([scores[a] > scores[b] for a, b in pairs]))
    np.testing.assert_allclose(accuracy, np.mean(own), rtol=1e-6)
    expected = np.maximum(0, 2 * np.array([*own, np.mean(own)]) - 1)
    np.testing.assert_allclose(gate, np.repeat(expected, 4)[:, None], rtol=1e-5)
    assert len(set(np.round(expected, 3))) == 3


def test_a_gate_per_group_goes_with_its_rows_into_minibatches(options, tiny_config, tiny_frozen, batch):
    grouped = replaced(
        options, advantage={"gate": True, "gate_per": "group"}, policy={"minibatches": 2, "learning_rate": 0.0}
    )
    _, metrics, _ = run(grouped, tiny_config, tiny_frozen, batch)
    assert metrics["policy/skipped"] == 0 and 0 <= metrics["prm/gate"] < 1


def test_a_batch_over_eight_devices_gives_the_same_step(options, tiny_config, tiny_frozen, batch):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    changed = replaced(options, prm={"update": "before"})
    alone, alone_metrics, alone_rewards = run(changed, tiny_config, tiny_frozen, batch)
    spread = jax.device_put(batch, rows)
    frozen = jax.device_put(tiny_frozen, everywhere)
    setup = setup_of(changed, tiny_config, tiny_frozen.constants)
    state = jax.device_put(state_of(setup, tiny_frozen), everywhere)
    state, metrics, rewards = make_step(setup)(state, frozen, spread)
    jax.block_until_ready(state)
    np.testing.assert_allclose(rewards, alone_rewards, atol=1e-6)
    assert_trees(state.policy_opt, alone.policy_opt, atol=2e-6)
    for name in ("policy/loss", "prm/loss", "policy/grad_norm"):
        np.testing.assert_allclose(metrics[name], alone_metrics[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_pieces_of_a_batch_over_devices_stay_where_they_are_and_give_the_same_step(options, tiny_config, tiny_frozen):
    """Minibatches and microbatches of every block of rows: the arrays of the loops are split over all devices."""
    pieces = {"minibatches": 2, "microbatches": 2}
    changed = replaced(options, prm=pieces, policy=pieces, rollout={"prompts_per_step": 8})
    batch = make_batch(prompts=8)
    assert even_ways(changed, 2) == 2 and even_ways(changed, 4) == 1
    setup = setup_of(changed, tiny_config, tiny_frozen.constants, ways=2)
    alone, alone_metrics, alone_rewards = make_step(setup)(state_of(setup, tiny_frozen), tiny_frozen, batch)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    spread = jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    frozen = jax.device_put(tiny_frozen, everywhere)
    state = jax.device_put(state_of(setup, tiny_frozen), everywhere)
    compiled_step = make_step(setup).lower(state, frozen, spread).compile()
    collectives = r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)\("
    moved = re.findall(collectives, compiled_step.as_text())
    assert all("," not in shape for shape in moved), moved  # a number a row at most: pairs of a group are compared
    state, metrics, rewards = compiled_step(state, frozen, spread)
    np.testing.assert_allclose(rewards, alone_rewards, atol=1e-6)
    assert_trees(state.policy_opt, alone.policy_opt, atol=2e-6)
    np.testing.assert_allclose(metrics["policy/loss"], alone_metrics["policy/loss"], rtol=1e-4, atol=1e-6)
    in_order = setup_of(changed, tiny_config, tiny_frozen.constants)
    consecutive = make_step(in_order)(state_of(in_order, tiny_frozen), tiny_frozen, batch)
    assert not np.array_equal(consecutive[2], alone_rewards)  # other rows meet the PRM first


def test_ppo_values_stand_before_their_tokens_and_targets_are_lambda_returns(options, tiny_config, tiny_frozen, batch):
    changed = replaced(options, advantage={"estimator": "ppo", "whiten": False, "gae_lambda": 0.9})
    setup = setup_of(changed, tiny_config, tiny_frozen.constants)
    state = state_of(setup, tiny_frozen)
    head = jax.tree.map(jnp.ones_like, state.critic["head"])
    critic = {"trunk": state.critic["trunk"], "head": head}
    values = np.asarray(setup.critic.before(critic, tiny_frozen.reference, batch))
    hidden = hidden_states(tiny_config, critic["trunk"], batch.tokens)
    after = np.asarray(value_head(head, hidden)[..., 0])
    for row in range(batch.mask.shape[0]):
        for t in np.flatnonzero(batch.mask[row]):
            np.testing.assert_allclose(values[row, t], after[row, t - 1], rtol=1e-5)
    assert (values[~batch.mask] == 0).all()

    rng = np.random.default_rng(0)
    process = jnp.asarray(np.where(batch.mask, rng.normal(size=batch.mask.shape), 0.0), jnp.float32)
    plain = dataclasses.replace(setup.options, normalizer="none", discount=0.95)
    inputs = inputs_of(batch, process, values=jnp.asarray(values))
    advantages = advantages_of(plain, batch, process, values=jnp.asarray(values))
    targets = value_targets(plain, process, inputs)
    for row in range(batch.mask.shape[0]):
        columns = np.flatnonzero(batch.mask[row])
        running, following = 0.0, 0.0
        for t in columns[::-1]:
            reward = float(process[row, t]) + (batch.outcome[row] if t == columns[-1] else 0.0)
            running = reward + 0.95 * following - values[row, t] + 0.95 * 0.9 * running
            following = values[row, t]
            np.testing.assert_allclose(advantages[row, t], running, rtol=2e-4, atol=2e-5)
            np.testing.assert_allclose(targets[row, t], running + values[row, t], rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_a_reference_that_prm_and_divergence_share_scores_once(options, tiny_config, tiny_frozen, batch):
    twice = setup_of(replaced(options, policy={"kl_coef": 0.1}), tiny_config, tiny_frozen.constants)
    found, flops = [], []
    for setup in (twice, dataclasses.replace(twice, one_reference=True)):
        state = state_of(setup, tiny_frozen)
        step = make_step(setup).lower(state, tiny_frozen, batch).compile()
        flops.append(step.cost_analysis()["flops"])
        found.append(step(state, tiny_frozen, batch))
    score = jax.jit(lambda params: token_logprobs(tiny_config, params, batch.tokens, batch.mask))
    once = score.lower(tiny_frozen.reference).compile()
    assert flops[1] < flops[0] - 0.8 * once.cost_analysis()["flops"]
    assert_trees(found[0], found[1], rtol=1e-6, atol=1e-7)


def test_divergence_as_a_reward_is_the_log_ratio_of_the_sampled_tokens(options, tiny_config, tiny_frozen, batch):
    changed = replaced(options, policy={"kl_coef": 0.3, "kl_placement": "reward"})
    rng = np.random.default_rng(0)
    old = jnp.asarray(rng.normal(size=batch.mask.shape), jnp.float32)
    setup = setup_of(changed, tiny_config, tiny_frozen.constants)
    found = setup.policy.kl_rewards(tiny_frozen, batch, old)
    ref = token_logprobs(tiny_config, tiny_frozen.reference, batch.tokens, batch.mask)
    np.testing.assert_allclose(found, np.where(batch.mask, -0.3 * (np.asarray(old) - np.asarray(ref)), 0.0), atol=1e-6)


@pytest.mark.parametrize("estimator", ["rloo", "rloo_released", "grpo", "reinforce"])
def test_the_discount_acts_under_every_estimator(options, batch, estimator):
    rng = np.random.default_rng(3)
    rewards = jnp.asarray(np.where(batch.mask, rng.normal(size=batch.mask.shape), 0.0), jnp.float32)
    results = [
        advantages_of(dataclasses.replace(options.advantage, estimator=estimator, discount=discount), batch, rewards)
        for discount in (1.0, 0.5)
    ]  # fmt: skip
    assert not np.allclose(*results, atol=1e-3)


def test_the_policy_as_reference_is_scored_without_the_sampling_temperature(options, tiny_config, tiny_frozen, batch):
    changed = replaced(options, prm={"reference": "policy"}, rollout={"temperature": 0.7})
    _, _, rewards = run(changed, tiny_config, tiny_frozen, batch)
    np.testing.assert_array_equal(rewards, 0.0)  # policy and PRM still are the same model


def test_a_minibatch_in_which_nothing_counts_moves_nothing(options, tiny_config, tiny_frozen, batch):
    keep = np.ones(16, bool)
    keep[8:] = False
    halved = replaced(options, policy={"minibatches": 2, "weight_decay": 0.1}, prm={"minibatches": 2})
    state, metrics, _ = run(halved, tiny_config, tiny_frozen, dataclasses.replace(batch, keep=keep))
    counts = [x for x in jax.tree.leaves(state.policy_opt) if x.dtype == jnp.int32]
    assert counts and all(int(x) == 1 for x in counts), "one optimiser step, not two"
    assert metrics["policy/skipped"] == 0


def test_no_array_of_rows_tokens_and_vocabulary_in_the_compiled_step(options, tiny_config, batch):
    config = dataclasses.replace(tiny_config, vocab_size=50_021)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    setup = setup_of(options, config, params)
    state = jax.eval_shape(lambda p: state_of(setup_of(options, config, p), Frozen(p, p)), params)
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct((512, *x.shape[1:]), x.dtype), batch)
    text = make_step(setup).lower(state, Frozen(params, params), wide).as_text()
    tokens = 512 * batch.tokens.shape[1]
    largest = max(
        math.prod(int(d) for d in shape.split("x") if d) for shape in re.findall(r"tensor<((?:\d+x)+)[a-z]", text)
    )
    assert largest < tokens * config.vocab_size / 2
