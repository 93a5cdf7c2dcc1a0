"""Whole runs: every source resumes to the same bits; best policies, early ends, and PRMs with tokens of their own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import prime, prm, rl
from prm_jax.models import CharTokenizer, init_params, load_weights
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.sources import ImplicitPRM, SavedPRM
from prm_jax.prime.start import load_start
from prm_jax.prime.step import init_state, make_step
from tests.compiled import token_logprobs
from tests.prime.conftest import make_batch, replaced, setup_of
from tests.prime.parts_test import written

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def short(run_options) -> prime.Options:
    """Two steps of an untrained policy, whose outcomes differ by noise."""
    options = replaced(
        run_options, sft={"steps": 0}, prm={"pretrain_rollouts": 0}, eval={"problems": 4, "prm_problems": 0},
        rollout={"outcome_noise": 0.4},
    )  # fmt: skip
    return dataclasses.replace(options, steps=2)


@pytest.fixture(scope="module")
def saved(short, tmp_path_factory) -> str:
    """An implicit PRM that differs from its reference."""
    start, path = load_start(short), tmp_path_factory.mktemp("prm") / "prm"
    one, other = (jax.jit(init_params, static_argnums=0)(start.config, jax.random.key(seed)) for seed in (5, 6))
    prm.save_implicit(path, start.config, one, start.config, other, start.tokenizer, beta=0.3)
    return str(path)


def weights(path) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(load_weights(path)[1])]


def records(path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"reward": {"source": "values", "rollouts": 2}, "advantage": {"credit": "value"},
         "rollout": {"weights": "best_worst"}, "policy": {"epochs": 2}},
        {"reward": {"source": "checker", "flip": 0.2}, "advantage": {"normalizer": "deviation", "credit": "step"}},
        {"reward": {"source": "critic", "shaping": ("progress",)}, "critic": {"schedule": "cosine"},
         "prm": {"pretrain_rollouts": 16}},
        {"reward": {"source": "model", "shaping": ("clip", "delta")}, "advantage": {"estimator": "ppo"}},
        {"prm": {"reference": "policy", "rows": "judged"}, "rollout": {"filter": "mask", "solve_rate_low": 0.3},
         "policy": {"schedule": "linear", "warmup_steps": 1}, "model": {"lora_rank": 2}},
    ],
    ids=["values", "checker", "critic", "model", "implicit"],
)  # fmt: skip
def test_every_source_resumes_to_the_same_bits(short, saved, tmp_path, changes):
    options = replaced(short, **changes)
    if options.reward.source == "model":
        options = replaced(options, reward={"path": (saved,)})
    whole = prime.train(options, tmp_path / "whole")

    def die(event):
        if event.kind == "step" and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prime.train(options, tmp_path / "run", callbacks=[die])
    run = prime.train(options, tmp_path / "run", resume=True)
    for a, b in zip(weights(whole.policy), weights(run.policy), strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.summary["arms"]["prime"]["rollouts"] == run.summary["arms"]["prime"]["rollouts"]
    first = weights(tmp_path / "run" / "start")
    assert any(not np.array_equal(a, b) for a, b in zip(first, weights(run.policy), strict=True))
    if options.prm.reference == "policy":
        reference = weights(whole.prm / "reference")
        for a, b in zip(reference, weights(whole.policy), strict=True):
            np.testing.assert_array_equal(a, b, "the reference of the saved PRM is the trained policy")


def test_the_policy_of_the_best_evaluation_is_kept_and_the_report_says_which(short, tmp_path):
    options = replaced(
        short, sft={"steps": 60}, policy={"learning_rate": 0.5},
        eval={"every": 1, "keep_best": "eval/greedy_step_accuracy", "problems": 8},
    )  # fmt: skip
    result = prime.train(options, tmp_path / "run")
    found = [r["eval/greedy_step_accuracy"] for r in records(tmp_path / "run") if "eval/greedy_step_accuracy" in r]
    assert len(found) == 3 and found[0] > max(found[1:]), "a learning rate that ruins the policy"
    assert result.summary["arms"]["prime"]["best_step"] == 0
    for a, b in zip(weights(result.policy), weights(tmp_path / "run" / "start"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "that is kept is that of step 0" in (tmp_path / "run" / "report.md").read_text()


def test_a_callback_ends_a_run_which_is_evaluated_and_reported(short, tmp_path):
    def enough(event):
        if event.kind == "step":
            event.stop("enough")

    options = dataclasses.replace(short, steps=50, save_every=50)
    result = prime.train(options, tmp_path / "run", callbacks=[enough])
    last = records(tmp_path / "run")[-1]
    assert last["step"] == 2 and result.after["eval/greedy_accuracy"] == last["eval/greedy_accuracy"]
    assert (tmp_path / "run" / "report.md").is_file() and result.policy.is_dir()
    assert prime.train(options, tmp_path / "run", resume=True).after == result.after


def test_the_prm_learns_from_judged_rows_that_the_filter_dropped(options, tiny_config, tiny_frozen):
    """Only the PRM: the policy's update is the one without these rows."""
    batch, keep, judged = make_batch(seed=5), np.ones(16, bool), np.ones(16, bool)
    keep[4:8], judged[5] = False, False
    batch = dataclasses.replace(batch, keep=keep, judged=judged)
    found = {}
    for rows in ("kept", "judged"):
        changed = replaced(options, prm={"rows": rows})
        setup = setup_of(changed, tiny_config, tiny_frozen.constants)
        state = init_state(setup, tiny_frozen, jax.random.key(0))
        found[rows] = make_step(setup)(state, tiny_frozen, batch)[0]
    for a, b in zip(jax.tree.leaves(found["kept"].policy), jax.tree.leaves(found["judged"].policy), strict=True):
        np.testing.assert_array_equal(a, b)
    head = [np.asarray(found[rows].source.trainable["head"]["kernel"]) for rows in ("kept", "judged")]
    assert not np.array_equal(*head)
    source = setup.source
    assert isinstance(source, ImplicitPRM)
    logp = jnp.asarray(np.random.default_rng(0).normal(size=batch.mask.shape), jnp.float32)
    loss = source.loss(logp, jnp.zeros_like(logp), batch, None, 16)
    total = np.where(batch.mask, logp, 0.0).sum(1) * changed.prm.beta
    by_hand = np.logaddexp(0, total) - batch.outcome * total
    np.testing.assert_allclose(loss.mean(), by_hand[judged].mean(), rtol=1e-5)


def test_weights_scale_the_advantages_of_their_responses(options, tiny_config, tiny_frozen, batch):
    changed = replaced(options, advantage={"process_coef": 0.0, "estimator": "reinforce"})
    setup = setup_of(changed, tiny_config, tiny_frozen.reference)
    shares = np.tile(np.array([0.0, 4.0, 0.0, 0.0], np.float32), 4)  # of each group, the second response alone
    alone = dataclasses.replace(batch, weights=shares)
    step, found = make_step(setup), []
    for one in (alone, dataclasses.replace(batch, weights=np.ones(16, np.float32))):
        found.append(step(init_state(setup, tiny_frozen, jax.random.key(0)), tiny_frozen, one)[1])
    advantages = np.where(batch.mask, batch.outcome[:, None], 0.0)
    expected = [np.abs(advantages * w[:, None])[batch.mask].mean() for w in (shares, np.ones(16))]
    np.testing.assert_allclose([m["advantage/abs"] for m in found], expected, rtol=1e-5)


def test_a_saved_prm_reads_the_text_with_its_own_tokenizer(short, tmp_path):
    """Its vocabulary has the same letters in another order, and more of them."""
    start = load_start(short)
    sampler = Sampler(start.task, start.tokenizer, start.config, 5, 12)
    own = CharTokenizer("xyz;#=+9876543210")
    config = dataclasses.replace(start.config, vocab_size=own.vocab_size)
    model, reference = (jax.jit(init_params, static_argnums=0)(config, jax.random.key(seed)) for seed in (1, 2))
    prm.save_implicit(tmp_path / "prm", config, model, config, reference, own, beta=0.3)
    responses = written(sampler, 4)
    found = SavedPRM([tmp_path / "prm"]).observe(responses, sampler, None, jax.random.key(0)).process
    special = {start.tokenizer.bos_id: own.bos_id, start.tokenizer.eos_id: own.eos_id, 0: own.pad_id}
    tokens = np.vectorize(lambda t: special[t] if t in special else own.encode(start.tokenizer.decode([t]))[0])(
        responses.tokens
    ).astype(np.int32)
    logp, ref = (token_logprobs(config, params, tokens, responses.mask) for params in (model, reference))
    per_token = rl.implicit_token_rewards(logp, ref, responses.mask, beta=0.3)
    steps, _ = rl.step_rewards(per_token, responses.step_ids, num_steps=responses.mask.shape[1], how="sum")
    np.testing.assert_allclose(found, rl.token_rewards_from_steps(steps, responses.step_ids), atol=2e-4)
    assert np.abs(found).max() > 0.1
