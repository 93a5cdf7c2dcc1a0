"""The online PRM's replay buffer, its class weights, and step labels read from its rewards."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import prime
from prm_jax.errors import UserError
from prm_jax.models import load_weights
from prm_jax.prime.batch import Frozen
from prm_jax.prime.checks import check_options
from prm_jax.prime.sources import SourceBatch, make_source
from prm_jax.prime.sources.readings import label_trust, probability_rewards, rank_rewards, step_label_rewards
from prm_jax.prime.sources.replay import draw, empty_replay, keep, remember
from prm_jax.prime.start import load_start
from prm_jax.prime.step import init_state, make_source_step
from tests.prime.conftest import make_batch, replaced, setup_of

STORE, DRAW = jax.jit(remember), jax.jit(draw, static_argnames=("rows", "age", "share_kept"))


def fields(batch):
    """What the buffer stores of a batch of 12 columns."""
    return {name: np.asarray(getattr(batch, name)) for name in ("tokens", "mask", "step_ids", "outcome")}


def test_the_ring_holds_the_newest_rollouts_as_a_list_would():
    replay, ring = empty_replay(10, 0, 14, jax.random.key(0)), [None] * 10
    for number in range(5):
        batch = make_batch(number, prompts=2, size=2)
        logp = np.random.default_rng(number).normal(size=batch.mask.shape).astype(np.float32)
        learned = np.array([True, number != 3, True, True])
        replay = STORE(replay, batch, logp, learned)
        for row in range(4):
            one = {name: value[row] for name, value in fields(batch).items()} | {"ref_logp": logp[row]}
            ring[(4 * number + row) % 10] = (one, number if learned[row] else -1)
    for place, (one, born) in enumerate(ring):
        assert replay.born[place] == born
        assert replay.outcome[place] == one.pop("outcome")
        for name, value in one.items():
            np.testing.assert_array_equal(getattr(replay, name)[place, :12], value, err_msg=name)
            np.testing.assert_array_equal(getattr(replay, name)[place, 12:], -1 if name == "step_ids" else 0)
    assert replay.updates == 5


def test_draws_follow_age_share_and_what_may_be_learned_from():
    replay = empty_replay(8, 4, 12, jax.random.key(1))
    nothing, _ = DRAW(replay, rows=6, age=0, share_kept=0.5, number=0)
    assert not nothing.keep.any()
    replay = keep(replay, make_batch(0, 2, 2), jnp.zeros((4, 12)), jnp.array([True, True, True, False]), 0)
    warm, _ = DRAW(replay, rows=64, age=0, share_kept=0.0, number=0)
    assert warm.keep.all(), "without recent rollouts all come from the warm-up"
    for number in range(2):
        batch = dataclasses.replace(make_batch(5 + number, 2, 2), outcome=np.full(4, 0.25 + number, np.float32))
        replay = STORE(replay, batch, jnp.full((4, 12), -7.0 - number), jnp.ones(4, bool))
    drawn, ref_logp = DRAW(replay, rows=4000, age=1, share_kept=0.25, number=3)
    recent = np.asarray(ref_logp)[:, 0] < 0
    assert drawn.keep.all() and abs(recent.mean() - 0.75) < 0.03
    np.testing.assert_array_equal(np.asarray(drawn.outcome)[recent], 1.25)  # those of the last update alone
    old = np.asarray(drawn.tokens)[~recent]
    counts = [(old == row).all(-1).sum() for row in make_batch(0, 2, 2).tokens]
    assert counts[3] == 0 and min(counts[:3]) > 250 and sum(counts) == len(old)
    again, _ = DRAW(replay, rows=4000, age=1, share_kept=0.25, number=4)
    assert not np.array_equal(again.tokens, drawn.tokens)


def test_a_replayed_update_is_one_on_the_drawn_rows(options, tiny_config, tiny_params):
    """The buffer holds one batch, so that a draw of it is known; the same update without a buffer agrees."""
    batch, frozen = make_batch(), Frozen(tiny_params, tiny_params)
    with_replay = replaced(options, prm={"replay": 16, "class_weights": "balanced", "label_smoothing": 0.1})
    plain = replaced(with_replay, prm={"replay": 0})
    setup = setup_of(with_replay, tiny_config, tiny_params)
    state = init_state(setup, frozen, jax.random.key(0))
    ref = setup.source._reference_logp(SourceBatch(batch, tiny_params, tiny_params, tiny_params))
    stored = STORE(state.source.replay, batch, ref, batch.keep)
    drawn, _ = DRAW(stored, rows=16, age=0, share_kept=0.0, number=0)
    learn, twice = make_source_step(setup_of(plain, tiny_config, tiny_params)), make_source_step(setup)
    found, metrics = twice(state, frozen, batch)
    expected = init_state(setup_of(plain, tiny_config, tiny_params), frozen, jax.random.key(0))
    expected, _ = learn(expected, frozen, batch)
    expected, second = learn(expected, frozen, dataclasses.replace(drawn, group_ids=batch.group_ids))
    np.testing.assert_allclose(metrics["prm/replayed/loss"], second["prm/loss"], rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        found.source.trainable, expected.source.trainable,
    )  # fmt: skip
    # A buffer with nothing to learn from adds nothing: Adam's momentum would move the weights without a gradient.
    empty = dataclasses.replace(make_batch(1), keep=np.zeros(16, bool))
    (found, metrics), (expected, _) = twice(found, frozen, empty), learn(expected, frozen, empty)
    assert metrics["prm/replayed/loss"] == 0
    for x, y in zip(jax.tree.leaves(found.source.opt), jax.tree.leaves(expected.source.opt), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_mixed_rows_are_those_of_groups_with_different_outcomes(options, tiny_config, tiny_params):
    batch = make_batch()
    judged = np.ones(16, bool)
    judged[4] = False  # the only right one of its group
    outcome = np.array([1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0.5, 0.5, 0.25, 0.5], np.float32)
    batch = dataclasses.replace(batch, judged=judged, outcome=outcome, keep=np.zeros(16, bool))
    source = setup_of(replaced(options, prm={"rows": "mixed"}), tiny_config, tiny_params).source
    found = jax.jit(source._learned)(batch)
    expected = [
        bool(judged[i]) and len({float(outcome[j]) for j in range(16) if j // 4 == i // 4 and judged[j]}) > 1
        for i in range(16)
    ]
    assert found.tolist() == expected and 0 < sum(expected) < 16


def test_step_labels_are_those_of_a_loop():
    rng, batch = np.random.default_rng(3), make_batch(2)
    rewards = np.where(batch.mask, rng.normal(size=batch.mask.shape), 9.0).astype(np.float32)
    found, flagged = jax.jit(step_label_rewards)(rewards, batch.step_ids, batch.mask, -1.0)
    expected = np.zeros(batch.mask.shape, np.float32)
    for row in range(len(rewards)):
        for step in range(batch.step_ids[row].max() + 1):
            columns = np.flatnonzero(batch.step_ids[row] == step)
            if rewards[row, columns].sum() < -1.0:
                expected[row, columns[-1]] = -1.0
                break
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(flagged, expected.any(-1))
    assert 0 < flagged.sum() < len(flagged)


def test_probabilities_and_ranks_of_steps_are_those_of_a_loop():
    rng, batch = np.random.default_rng(3), make_batch(2)
    rewards = np.where(batch.mask, rng.integers(-2, 3, batch.mask.shape), 9.0).astype(np.float32)  # with ties
    rows = np.arange(len(rewards)) != 5
    given = rewards, batch.step_ids, batch.mask, rows
    steps = {}
    for row, column in np.argwhere(batch.mask):
        place = int(row), int(batch.step_ids[row, column])
        steps.setdefault(place, []).append((column, rewards[row, column]))
    sums = {place: sum(value for _, value in found) for place, found in steps.items()}
    changes, ranks = np.zeros((2, *rewards.shape), np.float32)
    known = [value for (row, _), value in sums.items() if rows[row]]
    for (row, step), found in steps.items():
        before = sum(sums[row, earlier] for earlier in range(step))
        sigmoid = [1 / (1 + np.exp(-x)) for x in (before, before + sums[row, step])]
        changes[row, found[-1][0]] = sigmoid[1] - sigmoid[0]
        if rows[row]:
            lower = np.mean([other < sums[row, step] for other in known])
            ranks[row, found[-1][0]] = lower + 0.5 * np.mean([other == sums[row, step] for other in known]) - 0.5
    np.testing.assert_allclose(probability_rewards(*given), changes, atol=1e-6)
    np.testing.assert_allclose(rank_rewards(*given), ranks, atol=1e-6)
    assert ranks.min() < -0.4 and ranks.max() > 0.4


@pytest.mark.parametrize(
    ("counts", "trust"),
    [
        ([[8, 1], [10, 4]], 0.8 - 0.25),  # 8 of 10 failed responses have a label, 1 of 4 others
        ([[2, 3], [10, 4]], 0.0),  # worse than chance
        ([[9, 0], [10, 0]], 0.0),  # whether right ones have labels, nobody knows
        ([[0, 0], [0, 0]], 0.0),
    ],
)
def test_labels_are_trusted_as_far_as_they_tell_failed_responses_from_others(counts, trust):
    np.testing.assert_allclose(label_trust(jnp.array(counts, jnp.float32)), trust, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prm": {"label_trust": 0.0}}, "--prm.label-trust needs --prm.reading"),
        ({"prm": {"replay": 8}}, "--prm.replay 8 is smaller than the 16 responses of a step"),
        ({"prm": {"replay": 16, "loss": "dpo"}}, "--prm.replay is for --prm.loss ce"),
        ({"prm": {"replay": 16, "update": "none"}}, "--prm.replay 16 is never learned from"),
        ({"prm": {"replay": 16, "offload": True}}, "--prm.offload would move"),
        ({"prm": {"replay_age": 3}}, "need --prm.replay"),
        ({"prm": {"replay": 16, "replay_warm_up": 0.5, "pretrain_rollouts": 0}}, "rollouts of --prm.pretrain-rollouts"),
        ({"prm": {"pretrain_task_options": {"a": "1"}, "pretrain_rollouts": 0}}, "which is 0"),
        ({"prm": {"label_threshold": -1.0}}, "--prm.label-threshold needs --prm.reading"),
        ({"prm": {"reading": "labels", "update": "none", "pretrain_rollouts": 0}}, "give --prm.label-threshold"),
        ({"prm": {"class_weights": "balanced"}, "reward": {"source": "checker"}}, "implicit PRM, but the source"),
        ({"prm": {"reading": "ranks", "label_trust": 0.0}}, "needs --prm.reading labels"),
        ({"prm": {"reading": "probabilities", "loss": "dpo"}}, "use ranks"),
        ({"prm": {"reading": "labels"}, "advantage": {"process_coef": 0.0}}, "but no PRM is kept"),
        ({"prm": {"trained": "run/prm"}, "advantage": {"process_coef": 0.0}}, "--prm.trained is of the implicit PRM"),
        ({"prm": {"trained": "run/prm", "path": "other"}}, "brings its own reference"),
        ({"prm": {"trained": "run/prm", "reference": "policy"}}, "against its own reference"),
        ({"prm": {"trained": "run/prm", "lora_rank": 2}}, "--prm.lora-rank 2 adapts a frozen start"),
    ],
)
def test_combinations_that_cannot_work_are_named(run_options, changes, message):
    with pytest.raises(UserError, match=message):
        check_options(replaced(run_options, **changes))


def test_options_of_easier_problems_are_checked_before_anything_is_written(run_options, tmp_path):
    for easier in ({"max_operand": "2"}, {"max_operands": "1"}):
        with pytest.raises(UserError, match="operand"):
            prime.train(replaced(run_options, prm={"pretrain_task_options": easier}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_with_replay_of_easier_problems_resumes_with_the_same_bits(run_options, tmp_path):
    options = replaced(
        run_options, sft={"steps": 20},
        task={"options": {"min_operands": "3", "max_operands": "3", "num_eval": "16"}},
        rollout={"max_prompt_tokens": 7, "max_new_tokens": 20},
        prm={
            "pretrain_task_options": {"min_operands": "2", "max_operands": "2"}, "replay": 24, "replay_batches": 2,
            "replay_warm_up": 0.5, "rows": "judged", "reading": "labels", "class_weights": "balanced",
            "label_trust": 0.1, "pretrain_rollouts": 20,
        },
        advantage={"credit": "step", "normalizer": "none"},
    )  # fmt: skip
    options = dataclasses.replace(options, steps=3)
    prime.train(options, tmp_path / "whole")
    prime.train(dataclasses.replace(options, steps=1), tmp_path / "run")
    prime.train(options, tmp_path / "run", resume=True)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "run")]
    first, second = (json.loads(text[-1]) for text in lines)
    names = [name for name in first if name.startswith(("prm", "policy", "advantage"))]
    read = {"prm/label_threshold", "prm/flagged", "prm/label_trust"}
    assert read | {"prm/replayed/loss", "prm_eval/fresh_step_auc"} <= set(names)
    for name in names:
        assert first[name] == second[name], name
    assert first["rollouts"] == 20 + 3 * 16
    _check_that_its_prm_goes_on(options, tmp_path / "whole")


def _check_that_its_prm_goes_on(options, run):
    """`--prm.trained` begins at the weights that the run left, with the reference against which they have learned."""
    changes = {"model": {"path": str(run / "start")}, "sft": {"steps": 0}}
    later = replaced(options, prm={"trained": str(run / "prm"), "replay": 0}, **changes)
    start = load_start(later)
    source = make_source(later, start.placed(start.params, None, later))
    state = source.init(jax.random.key(0))
    for name, found in ((".", state.trainable), ("reference", source.constants)):
        saved = load_weights(run / "prm" / name)[1]
        assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), saved, found)), name
    assert not jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), state.trainable, source.constants))
    with pytest.raises(UserError, match="no directory 'reference'"):
        load_start(replaced(options, prm={"trained": str(run / "policy")}, **changes))
