"""Reward models on rows of tokens: the same scores as on text, where rewards are placed, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import prm as prms
from prm_jax import rl
from prm_jax.data import load_task
from prm_jax.data.step_data import StepRecord
from prm_jax.data.steps import step_ids_from_text
from prm_jax.errors import UserError
from prm_jax.models import ModelConfig, init_params
from prm_jax.prm.forward import init_head
from prm_jax.prm.rewards import ensemble_token_rewards, rows_batch, step_scores, token_rewards
from prm_jax.prm.rows import build_rows
from prm_jax.prm.spec import Spec, Weights
from tests.compiled import token_logprobs

LAYOUT = prms.POLICY_LAYOUT
STEP_KINDS = ["implicit", "step_q", "token", "value", "digi_q", "b_coder", "imitation"]


def model(kind, config, params, tokenizer, seed=1):
    """A reward model with random arrays, so that no two scores are alike."""
    spec = Spec(kind, config, objectives=("right",) if kind.needs == "objectives" else ())
    head, fixed = kind.init(spec, jax.random.key(seed))
    noise = iter(jax.random.split(jax.random.key(seed + 1), 64))
    head = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(noise), x.shape), head)
    reference = jax.tree.map(lambda x: 1.05 * x, params) if kind.compares else None
    return prms.PRM(spec, Weights(params, head, kind.saved(fixed), reference), tokenizer, LAYOUT)


def rows_of(prm, records, width=48, garbage=7):
    """Rows ``[prompt][response][padding]`` of solutions, as a policy leaves them; padding holds garbage."""
    rows, _ = build_rows(records, prm.tokenizer, LAYOUT, max_length=width)
    tokens = np.full((len(rows), width), garbage, np.int32)
    step_ids = np.full((len(rows), width), -1, np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row.tokens)], step_ids[place, : len(row.tokens)] = row.tokens, row.step_ids
    return tokens, step_ids >= 0, step_ids


@pytest.mark.parametrize("name", STEP_KINDS)
def test_rewards_of_tokens_add_up_to_the_step_scores(name, config, params, tokenizer, records):
    prm = model(prms.KINDS[name](), config, params, tokenizer)
    tokens, mask, step_ids = rows_of(prm, records[:4])
    run = jax.jit(functools.partial(token_rewards, prm.spec, num_steps=4))
    rewards = np.asarray(run(prm.weights, tokens, mask, step_ids))
    assert rewards.dtype == np.float32 and not rewards[~mask].any()
    for place, one in enumerate(prm.score(records[:4])):
        sums = [rewards[place][step_ids[place] == step].sum() for step in range(len(one.steps))]
        np.testing.assert_allclose(sums, one.steps, rtol=2e-4, atol=2e-6)
    if prm.output != "log_ratio":
        last = np.asarray(rl.token_rewards_from_steps(jnp.ones((4, 4)), step_ids)) > 0
        assert not rewards[~last].any()
    again = run(prm.weights, np.where(mask.cumsum(1) > 0, np.where(mask, tokens, 3), tokens), mask, step_ids)
    np.testing.assert_array_equal(rewards, again)
    assert run._cache_size() == 1
    scores = prm.score_tokens(tokens, mask, step_ids)
    np.testing.assert_allclose(scores[3, : len(one.steps)], one.steps, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", sorted(name for name, kind in prms.KINDS.items() if not kind.step_scores))
def test_models_of_whole_responses_are_refused(name, config, params, tokenizer, records):
    prm = model(prms.KINDS[name](), config, params, tokenizer)
    with pytest.raises(UserError, match=f"kind {name} is trained to score whole responses.*implicit, step_q, token"):
        token_rewards(prm.spec, prm.weights, *rows_of(prm, records[:2]), num_steps=4)


def test_an_empty_response_has_no_rewards(config, params, tokenizer):
    prm = model(prms.Token(), config, params, tokenizer)
    tokens = jnp.full((2, 8), 4)
    nothing = jnp.zeros((2, 8), bool)
    steps = jnp.zeros((2, 8), int)
    assert not np.asarray(token_rewards(prm.spec, prm.weights, tokens, nothing, steps, num_steps=2)).any()
    one = jnp.asarray([[True] + [False] * 7] * 2)  # a response without a prompt, of one token
    batch = rows_batch(tokens, one, steps, num_steps=3)
    assert batch.starts.tolist() == [-1, -1] and batch.step_mask.tolist() == [[True, False, False]] * 2
    assert batch.reads[:, 0].tolist() == [0, 8]


def test_several_models_give_their_lower_confidence_bound(config, params, tokenizer, records):
    ensemble = [model(prms.Value(head_layers=2), config, params, tokenizer, seed) for seed in (1, 5, 9)]
    rows = rows_of(ensemble[0], records[:3])
    found = ensemble_token_rewards(
        [one.spec for one in ensemble], [one.weights for one in ensemble], *rows, num_steps=3, coefficient=2.0
    )
    scores = np.stack([step_scores(one.spec, one.weights, *rows, num_steps=3)[0] for one in ensemble])
    bound = scores.mean(0) - 2.0 * scores.std(0)
    for place in range(3):
        for step in set(rows[2][place]) - {-1}:
            own = found[place][rows[2][place] == step]
            np.testing.assert_allclose(own[-1], bound[place, step], rtol=1e-4)
            assert not np.asarray(own[:-1]).any()
    mixed = [ensemble[0], model(prms.Implicit(), config, params, tokenizer)]
    with pytest.raises(UserError, match="comparable scores, found log_ratio, value"):
        ensemble_token_rewards([x.spec for x in mixed], [x.weights for x in mixed], *rows, num_steps=3)


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
@pytest.mark.parametrize("name", ["token", "implicit"])
def test_rows_stay_on_their_devices(name, config, params, tokenizer, records):
    """Sharded over 8 devices the rewards equal those of one, and no hidden states are gathered."""
    prm = model(prms.KINDS[name](), config, params, tokenizer)
    rows = rows_of(prm, records[:8])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = [jax.device_put(jnp.asarray(x), split) for x in rows]
    weights = jax.device_put(prm.weights, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    run = jax.jit(functools.partial(token_rewards, prm.spec, num_steps=3), out_shardings=split)
    compiled = run.lower(weights, *placed).compile()
    assert "all-gather" not in compiled.as_text()
    expected = token_rewards(prm.spec, prm.weights, *rows, num_steps=3)
    np.testing.assert_allclose(compiled(weights, *placed), expected, rtol=2e-4, atol=2e-6)


@pytest.fixture(scope="module")
def carry():
    """A task, a small policy, a reference, and rows of solutions as PRIME lays them out."""
    task = load_task("carry", min_operands=2, max_operands=3, num_eval=8)
    tokenizer = task.tokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2,
        num_kv_heads=2, head_dim=8,
    )  # fmt: skip
    policy, reference = (init_params(config, jax.random.key(seed)) for seed in (0, 1))
    rng = np.random.default_rng(0)
    texts = [(problem, task.demonstration(problem, rng)) for problem in task.eval]
    width = 64
    tokens, mask = np.zeros((len(texts), width), np.int32), np.zeros((len(texts), width), bool)
    for row, (problem, text) in enumerate(texts):
        before = tokenizer.encode(problem.prompt, add_special=True)
        after = [*tokenizer.encode(text), tokenizer.eos_id]
        tokens[row, : len(before) + len(after)] = [*before, *after]
        mask[row, len(before) : len(before) + len(after)] = True
    step_ids, _, _ = step_ids_from_text(
        tokens, mask, tokenizer.token_bytes, task.splitter, special_ids=tuple(tokenizer.special_ids)
    )
    records = [
        StepRecord(p.prompt, tuple(text[a:b] for a, b in task.splitter(text)), None, None, p.id, p.id)
        for p, text in texts
    ]
    return tokenizer, config, policy, reference, (tokens, mask, step_ids), records


def test_a_saved_implicit_model_scores_as_the_training_step_rewards(carry, tmp_path):
    tokenizer, config, policy, reference, (tokens, mask, step_ids), records = carry
    logp, ref_logp = (token_logprobs(config, params, tokens, mask) for params in (policy, reference))
    rewards = rl.implicit_token_rewards(logp, ref_logp, mask, beta=0.05)
    steps, _ = rl.step_rewards(rewards, step_ids, num_steps=int(step_ids.max()) + 1)
    prms.save_implicit(tmp_path / "prm", config, policy, config, reference, tokenizer, beta=0.05)
    prm = prms.load(tmp_path / "prm")
    assert prm.spec.kind == prms.Implicit(beta=0.05, aggregate="sum") and prm.layout == prms.POLICY_LAYOUT
    for row, one in enumerate(prm.score(records)):
        np.testing.assert_allclose(one.steps, steps[row, : len(one.steps)], rtol=1e-4, atol=1e-6)
        assert one.response == pytest.approx(float(rewards[row].sum()), rel=1e-4, abs=1e-6)
        prm.check_rows(one.record, tokens[row, : mask[row].nonzero()[0][-1] + 1])
    given = token_rewards(prm.spec, prm.weights, tokens, mask, step_ids, num_steps=step_ids.max() + 1)
    np.testing.assert_allclose(given, rewards, rtol=1e-5, atol=1e-7)


def test_an_unfinished_solution_has_no_end_token(carry, tmp_path):
    tokenizer, config, policy, reference, (tokens, mask, _), records = carry
    prms.save_implicit(tmp_path / "prm", config, policy, config, reference, tokenizer, beta=0.05)
    prm = prms.load(tmp_path / "prm")
    cut = dataclasses.replace(records[0], provenance={"finished": False})
    whole, part = (build_rows([one], tokenizer, prm.layout, max_length=64)[0][0] for one in (records[0], cut))
    assert whole.tokens[-1] == tokenizer.eos_id and whole.tokens[:-1].tolist() == part.tokens.tolist()


def test_rows_in_another_layout_are_refused(carry):
    tokenizer, config, policy, reference, (tokens, mask, _), records = carry
    spec = Spec(prms.Token(), config)
    head = init_head(spec, jax.random.key(0), num_outputs=2)
    prm = prms.PRM(spec, Weights(policy, head, {}), tokenizer, prms.TextLayout(separator="="))
    with pytest.raises(UserError, match="reads prompts and steps in another layout: at token .* it expects"):
        prm.check_rows(records[0], tokens[0])
