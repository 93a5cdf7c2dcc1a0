"""Shapings and local credit against NumPy loops; sources of every kind; the samples of a step."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import prime, prm, rl
from prm_jax.data.carry import CarryTask
from prm_jax.data.pipeline import PromptStream
from prm_jax.data.steps import step_ids_from_text
from prm_jax.errors import UserError
from prm_jax.models import init_params, save_weights
from prm_jax.models.loading import fresh_config
from prm_jax.prime.advantages import make_advantage
from prm_jax.prime.collect import Collector
from prm_jax.prime.critic import Critic
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.responses import Drawn, Responses
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.samples import chosen_rows
from prm_jax.prime.shaping import make_reward
from prm_jax.prime.sources import (
    CriticSource,
    PolicyAsPRM,
    PrefixValues,
    SavedPRM,
    SourceBatch,
    StepChecker,
    checker_rewards,
    saved,
)
from prm_jax.prime.start import Start
from prm_jax.prime.step import init_state, make_step
from prm_jax.runs.learner import Learner, make_optimizer
from prm_jax.runs.samples_page import samples_page
from tests.compiled import token_logprobs
from tests.prime.conftest import advantages_of, inputs_of, make_batch, replaced, setup_of

pytestmark = pytest.mark.heavy


def step_sums(rewards, step_ids):
    """Per row, the sum of each step's rewards."""
    return [
        [float(row[ids == s].sum()) for s in range(ids.max() + 1)] for row, ids in zip(rewards, step_ids, strict=True)
    ]


def on_last_tokens(steps, step_ids):
    table = np.zeros(step_ids.shape)
    for row, values in enumerate(steps):
        for s, value in enumerate(values):
            table[row, np.flatnonzero(step_ids[row] == s)[-1]] = value
    return table


def random_rewards(batch, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(batch.mask, rng.normal(size=batch.mask.shape), np.nan).astype(np.float32)


def slow_shaping(name, steps, initial):
    if name == "clip":
        return [min(r - 0.1, 0.0) for r in steps]
    if name == "delta":
        p = [*steps[:-1], 0.0]
        return [p[k] - p[k + 1] if k + 1 < len(p) else 0.0 for k in range(len(p))]
    if name == "progress":
        return [b - a for a, b in zip([initial, *steps[:-1]], steps, strict=True)]
    least = int(np.argmin(steps))
    return [r if k == least else 0.0 for k, r in enumerate(steps)]


@pytest.mark.parametrize(
    "names", [("clip",), ("delta",), ("progress",), ("min",), ("clip", "delta"), ("delta", "clip")]
)
def test_shapings_equal_a_loop_in_any_order(options, batch, names):
    rewards = random_rewards(batch)
    initial = np.linspace(0, 1, len(batch.outcome)).astype(np.float32)
    reward = make_reward(dataclasses.replace(options.reward, shaping=names, clip_threshold=0.1))
    found = jax.jit(reward)(inputs_of(batch, rewards, initial_value=jnp.asarray(initial)))
    steps = step_sums(np.nan_to_num(rewards), batch.step_ids)
    for name in names:
        steps = [slow_shaping(name, row, start) for row, start in zip(steps, initial, strict=True)]
    np.testing.assert_allclose(found, on_last_tokens(steps, batch.step_ids), atol=1e-5)


def test_stated_confidence_changes_the_last_token(options, batch):
    rewards = np.nan_to_num(random_rewards(batch))
    confidence = np.linspace(0, 1, len(batch.outcome)).astype(np.float32)
    reward = make_reward(dataclasses.replace(options.reward, shaping=("confidence",), confidence_weight=2.0))
    found = np.asarray(reward(inputs_of(batch, rewards, confidence=jnp.asarray(confidence))))
    total = rewards.sum(1)
    adjusted = total + 2.0 * (total - total.mean()) * (confidence - 0.5)
    np.testing.assert_allclose(found.sum(1), adjusted, rtol=1e-4, atol=1e-5)
    for row in range(len(total)):
        columns = np.flatnonzero(batch.mask[row])
        np.testing.assert_allclose(found[row, columns[:-1]], rewards[row, columns[:-1]], atol=1e-6)


def test_confidences_are_read_from_the_text():
    texts = ["Confidence: 0.8", "confidence 70", "no statement", "Confidence: 0.2 then Confidence: 0.9"]
    responses = dataclasses.replace(fake_responses([[1, 0, 0, 1]]), texts=texts)
    found = responses.confidences(prime.Options().reward.confidence_pattern)
    np.testing.assert_allclose(found, [0.8, 0.7, 0.5, 0.9], atol=1e-6)


def slow_local(credit, batch, rewards, initial):
    """Outcome leave-one-out + centred local credit, unwhitened, coefficients 1; by loops."""
    steps = step_sums(np.nan_to_num(rewards), batch.step_ids)
    if credit == "step":
        credits = steps
    elif credit == "cumulative":
        credits = [list(np.cumsum(row)) for row in steps]
    elif credit == "value":
        credits = [slow_shaping("progress", row, value) for row, value in zip(steps, initial, strict=True)]
    else:
        credits = []
        for row in steps:
            x = np.asarray(row)
            w = np.exp(-x / 0.1 - max(-x / 0.1))
            weighted = w / w.sum() * x
            credits.append(list(np.cumsum(weighted[::-1])[::-1]))
    out = np.zeros(batch.mask.shape)
    for row in range(len(steps)):
        group = [r for r in range(len(steps)) if batch.group_ids[r] == batch.group_ids[row]]
        others = [r for r in group if r != row]
        loo = batch.outcome[row] - np.mean([batch.outcome[r] for r in others])
        for s, value in enumerate(credits[row]):
            if credit == "value":
                base = 0.0
            elif credit == "cumulative":
                base = np.mean([credits[r][s] for r in group if len(credits[r]) > s])
            else:
                base = np.mean([c for r in others for c in credits[r]])
            out[row, batch.step_ids[row] == s] = loo + value - base
    return out


@pytest.mark.parametrize("credit", ["step", "cumulative", "min", "value"])
def test_local_credit_equals_a_loop(options, batch, credit):
    rewards = random_rewards(batch, seed=3)
    initial = np.linspace(0, 1, len(batch.outcome)).astype(np.float32)
    advantage = dataclasses.replace(options.advantage, credit=credit, normalizer="none", whiten=False)
    found = advantages_of(advantage, batch, rewards, initial_value=jnp.asarray(initial))
    np.testing.assert_allclose(found, slow_local(credit, batch, rewards, initial), atol=1e-4)


@pytest.mark.parametrize("estimator", ["grpo", "lambda_grpo", "reinforce", "rloo_released"])
@pytest.mark.parametrize("credit", ["return", "step"])
def test_every_estimator_takes_every_credit_and_masked_values_are_ignored(options, batch, estimator, credit):
    advantage = dataclasses.replace(options.advantage, credit=credit, estimator=estimator)
    keep = np.ones(16, bool)
    keep[5] = False
    batch = dataclasses.replace(batch, keep=keep)
    rewards = random_rewards(batch)
    found = advantages_of(advantage, batch, rewards)
    clean = advantages_of(advantage, batch, np.nan_to_num(rewards))
    np.testing.assert_array_equal(found, clean)
    assert np.isfinite(found).all() and (np.asarray(found)[5] == 0).all() and np.abs(found).max() > 0


def test_the_deviation_normalizer_ignores_the_scale_of_the_rewards(options, batch):
    advantage = dataclasses.replace(options.advantage, credit="step", normalizer="deviation")
    rewards = np.nan_to_num(random_rewards(batch))
    once, larger = advantages_of(advantage, batch, rewards), advantages_of(advantage, batch, 100 * rewards)
    np.testing.assert_allclose(once, larger, rtol=1e-3, atol=1e-4)


def test_outcome_only_training_has_no_credit(options, batch):
    advantage = dataclasses.replace(options.advantage, credit="step", process_coef=0.0)
    plain = dataclasses.replace(options.advantage, process_coef=0.0)
    rewards = np.nan_to_num(random_rewards(batch))
    np.testing.assert_allclose(
        advantages_of(advantage, batch, rewards), advantages_of(plain, batch, rewards), atol=1e-5
    )


# ------------------------------------------------------------------------------------------- sources


def fake_responses(outcomes) -> Responses:
    table = np.asarray(outcomes, np.float32)
    rows = table.size
    return Responses(
        problems=list(range(len(table))), tokens=np.zeros((rows, 3), np.int32), mask=np.ones((rows, 3), bool),
        step_ids=np.zeros((rows, 3), np.int32), texts=[""] * rows, outcome=table.reshape(-1),
        usable=np.ones(rows, bool), finished=np.ones(rows, bool), unanswered=np.zeros(rows, bool),
    )  # fmt: skip


@pytest.fixture(scope="module")
def sampler(run_options) -> Sampler:
    task = CarryTask(2, 3, num_train=64, num_eval=16)
    tokenizer = task.tokenizer()
    return Sampler(task, tokenizer, fresh_config(run_options.model, tokenizer.vocab_size), 8, 10)


@pytest.fixture(scope="module")
def params(sampler):
    return jax.jit(init_params, static_argnums=0)(sampler.config, jax.random.key(0))


@pytest.fixture(scope="module")
def responses(sampler, params) -> Responses:
    return sampler.sample(params, sampler.task.train[:3], jax.random.key(1), samples_per_prompt=2)


def test_flipped_labels_are_as_many_as_asked_for(sampler):
    task = sampler.task
    problem = next(p for p in task.train if p.prompt.count("+") == 2)
    tokenizer, text = sampler.tokenizer, _solution(task, problem)
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    rows, width = 400, len(ids)
    tokens = np.tile(np.asarray(ids, np.int32), (rows, 1))
    mask = np.ones((rows, width), bool)
    step_ids, _, texts = step_ids_from_text(
        tokens, mask, tokenizer.token_bytes, task.splitter, special_ids=tuple(tokenizer.special_ids)
    )
    given = dataclasses.replace(
        fake_responses([[1.0] * rows]), problems=[problem], tokens=tokens, mask=mask, step_ids=step_ids, texts=texts
    )
    assert checker_rewards(task, given).sum() == 0.0
    source = StepChecker(task, flip=0.25)
    flipped = source.observe(given, sampler, None, jax.random.key(0)).process
    steps = len(task.splitter(text))
    share = (flipped.min(axis=1) < 0).mean()
    assert abs(share - (1 - 0.75**steps)) < 0.08
    np.testing.assert_array_equal(flipped, source.observe(given, sampler, None, jax.random.key(0)).process)


def _solution(task, problem):
    numbers = [int(x) for x in problem.prompt.rstrip("=").split("+")]
    total, parts = numbers[0], []
    for number in numbers[1:]:
        parts.append(f"{total}+{number}={total + number}")
        total += number
    return ";".join(parts) + f"#{total}"


def test_monte_carlo_values_are_the_success_rates_of_completions(sampler, params, responses, monkeypatch):
    asked: list[tuple[str, tuple[int, ...]]] = []

    def complete(self, params, problems, prefixes, key, *, samples_per_prefix, **sampling):
        asked.extend((p.id, tuple(prefix)) for p, prefix in zip(problems, prefixes, strict=True))
        outcome = np.tile([1.0, 0.0, 0.0, 1.0], len(problems)).astype(np.float32)
        rows = len(outcome)
        return dataclasses.replace(
            fake_responses([[0.0] * rows]), outcome=outcome, usable=np.ones(rows, bool), texts=[""] * rows
        )

    monkeypatch.setattr(Sampler, "complete", complete)
    source = PrefixValues(rollouts=4, batch_size=4, best_of=2)
    found = source.observe(responses, sampler, params, jax.random.key(0))
    size = responses.samples_per_prompt
    expected, count = np.zeros(responses.mask.shape), 0
    for row in range(len(responses.texts)):
        ids = responses.step_ids[row]
        first = int(np.argmax(responses.mask[row]))
        for s in range(ids.max()):
            end = np.flatnonzero(ids == s)[-1]
            expected[row, end] = 1 - 0.5**2
            count += 1
            problem = responses.problems[row // size]
            assert (problem.id, tuple(responses.tokens[row, first : end + 1].tolist())) in asked
        if responses.mask[row].any():
            expected[row, np.flatnonzero(responses.mask[row])[-1]] = responses.outcome[row]
    np.testing.assert_allclose(found.process, expected, atol=1e-6)
    np.testing.assert_allclose(found.initial_value, 1 - (1 - np.repeat(responses.solve_rates(), size)) ** 2, rtol=1e-6)
    assert found.sampled == 4 * count
    # Another prover values the prompts, too, since the policy's outcomes say nothing about it.
    asked.clear()
    other = PrefixValues(rollouts=4, prover=params).observe(responses, sampler, None, jax.random.key(0))
    assert [(problem.id, ()) for problem in responses.problems] == asked[count:]
    np.testing.assert_allclose(other.initial_value, 0.5)
    assert other.sampled == 4 * (count + len(responses.problems))


def test_completions_begin_with_their_prefix_and_are_judged_as_a_whole(sampler, params):
    problem = sampler.task.train[0]
    prefix = sampler.tokenizer.encode("1")
    found = sampler.complete(params, [problem], [prefix], jax.random.key(2), samples_per_prefix=3)
    assert len(found.texts) == 3 and all(text.startswith("1") for text in found.texts)
    assert (found.mask.sum(axis=1) <= sampler.max_new_tokens).all()
    judged = [verdict.score for verdict in sampler.task.verify_many([problem] * 3, found.texts)]
    np.testing.assert_array_equal(found.outcome, judged)


def written(sampler: Sampler, count: int) -> Responses:
    """Responses that a teacher wrote, as rows of prompt, response and end token."""
    tokenizer, task = sampler.tokenizer, sampler.task
    problems = list(task.train[:count])
    prompts = [sampler.encode(problem) for problem in problems]
    answers = [[*tokenizer.encode(_solution(task, problem)), tokenizer.eos_id] for problem in problems]
    answers[-1].pop()  # the last response is cut off before its end token
    drawn = [
        Drawn(np.array(answer, np.int32), np.zeros(len(answer), np.float32), index < count - 1)
        for index, answer in enumerate(answers)
    ]
    return dataclasses.replace(sampler, max_new_tokens=20).judge(problems, prompts, drawn)


def test_a_saved_prm_gives_the_rewards_of_the_training_step_and_ensembles_are_cautious(
    sampler, params, tmp_path, monkeypatch
):
    config, responses, paths = sampler.config, written(sampler, 5), []
    others = [jax.jit(init_params, static_argnums=0)(config, jax.random.key(seed)) for seed in (5, 6)]
    for index, other in enumerate(others):
        paths.append(tmp_path / f"prm{index}")
        prm.save_implicit(paths[-1], config, other, config, params, sampler.tokenizer, beta=0.3)
    single = [SavedPRM([path]).observe(responses, sampler, params, jax.random.key(0)).process for path in paths]
    logp = token_logprobs(config, others[0], responses.tokens, responses.mask)
    ref = token_logprobs(config, params, responses.tokens, responses.mask)
    implicit = rl.implicit_token_rewards(logp, ref, responses.mask, beta=0.3)
    steps = step_sums(np.asarray(implicit), responses.step_ids)
    np.testing.assert_allclose(single[0], on_last_tokens(steps, responses.step_ids), atol=2e-4)
    assert responses.outcome.all() and np.abs(single[0]).max() > 0.1
    both = SavedPRM(paths, pessimism=2.0).observe(responses, sampler, params, jax.random.key(0)).process
    stacked = np.stack(single)
    np.testing.assert_allclose(both, stacked.mean(0) - 2.0 * stacked.std(0), atol=1e-5)
    with pytest.raises(UserError, match="--reward.best-of 3 needs chances of success"):
        SavedPRM(paths[:1], best_of=3)
    monkeypatch.setattr(saved, "gives_probabilities", lambda model: True)
    best = SavedPRM(paths[:1], best_of=3).observe(responses, sampler, params, jax.random.key(0))
    ends = responses.step_ids == responses.step_ids.max(1, keepdims=True)
    expected = np.where(ends, single[0], 1 - (1 - single[0]) ** 3)
    np.testing.assert_allclose(best.process, np.where(single[0] == 0, 0, expected), atol=1e-5)
    firsts = [row[np.flatnonzero(ids == 0)[-1]] for row, ids in zip(best.process, responses.step_ids, strict=True)]
    np.testing.assert_allclose(best.initial_value, firsts, atol=1e-6)  # groups of one


def test_the_policy_as_prm_is_silent_until_the_policy_moves(options, tiny_config, tiny_frozen, batch):
    source = PolicyAsPRM(tiny_config, beta=0.05, pieces=options.policy)
    changed = replaced(options, advantage={"credit": "cumulative", "normalizer": "none"})
    setup = setup_of(changed, tiny_config, tiny_frozen.reference, source=source)
    frozen = dataclasses.replace(tiny_frozen, constants=())
    step, state = make_step(setup), init_state(setup, frozen, jax.random.key(0))
    state, _, first = step(state, frozen, batch)
    state, metrics, second = step(state, frozen, batch)
    assert np.abs(first).max() == 0.0 and np.abs(second).max() > 0 and metrics["prm/reward_abs"] > 0


def test_a_critic_learns_values_of_steps_and_credit_takes_their_differences(
    options, tiny_config, tiny_frozen
):
    # Every other response is right, and its first response token tells which.
    batch = make_batch(seed=9, prompts=4, size=4)
    tokens, outcome = batch.tokens.copy(), np.tile([1.0, 0.0], 8).astype(np.float32)
    tokens[:, :3], tokens[:, 3] = 4, np.where(outcome > 0.5, 5, 6)
    batch = dataclasses.replace(batch, tokens=tokens, outcome=outcome)
    critic = Critic(Learner(tiny_config, make_optimizer(1e-2)), options.critic, options.policy, 1)
    source = CriticSource(critic, tiny_frozen.reference)
    changed = replaced(options, advantage={"credit": "value"}, policy={"learning_rate": 0.0})
    setup = setup_of(changed, tiny_config, tiny_frozen.reference, source=source)
    frozen = dataclasses.replace(tiny_frozen, constants=())
    step, state = make_step(setup), init_state(setup, frozen, jax.random.key(0))
    for _ in range(60):
        state, metrics, values = step(state, frozen, batch)
    ends = np.asarray(values)[np.arange(16), [np.flatnonzero(row == 0)[-1] for row in batch.step_ids]]
    assert ends[outcome > 0.5].min() > ends[outcome < 0.5].max() + 0.3
    assert metrics["prm/pairwise_accuracy"] == 1.0
    judged = source.judge(state.source, SourceBatch(jax.tree.map(jnp.asarray, batch), None, frozen.reference))
    np.testing.assert_allclose(judged.initial_value, 0.5, atol=0.3)


def test_weights_by_rank_are_part_of_the_batch(sampler, params):
    options = RolloutOptions(
        prompts_per_step=2, samples_per_prompt=4, max_new_tokens=10, max_prompt_tokens=8, filter="none",
        weights="best_worst", outcome_noise=0.5,
    )  # fmt: skip
    stream = PromptStream(sampler.task.train, 0)
    collector = Collector(sampler, stream, options, jax.random.key(0), policy_params=lambda p: p)
    batch = collector.collect(params, 0).arrays
    weights = np.asarray(batch.weights).reshape(2, 4)
    np.testing.assert_allclose(weights.mean(axis=1), 1.0, rtol=1e-5)
    assert (weights >= 0).all()


# ------------------------------------------------------------------------------------------- samples


def test_samples_show_the_best_and_worst_of_mixed_prompts_first():
    responses = fake_responses([[0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0]])
    rewards = np.zeros((12, 3))
    rewards[3], rewards[5] = 0.1, 0.2
    assert chosen_rows(responses, rewards)[:2] == [5, 4]
    rows = chosen_rows(responses, rewards)
    assert [row // 3 for row in rows][:4] == [1, 1, 3, 3]


def test_the_page_escapes_text_and_colours_steps():
    record = {
        "step": 3, "prompt": "<b>1+1</b>", "response": "2", "outcome": 1.0, "info": {"answer": "2"},
        "steps": [["a & b\n", 0.5], ["c", -0.25]],
    }  # fmt: skip
    page = samples_page("run <1>", [record])
    assert "&lt;b&gt;1+1&lt;/b&gt;" in page and "a &amp; b" in page and "run &lt;1&gt;" in page
    assert "rgba(46, 160, 67, 0.50)" in page and "rgba(248, 81, 73, 0.25)" in page and "<b>1+1" not in page


# -------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    "changes",
    [
        {"reward": {"source": "values", "rollouts": 2}, "advantage": {"credit": "value"}},
        {"reward": {"source": "checker", "flip": 0.1}, "advantage": {"credit": "step"}},
        {"reward": {"source": "critic"}, "advantage": {"credit": "value"}},
    ],
    ids=["values", "checker", "critic"],
)
def test_sources_reach_the_loop(run_options, tmp_path, changes):
    options = replaced(
        run_options, sft={"steps": 10}, prm={"pretrain_rollouts": 0}, eval={"problems": 4, "batch_size": 8}, **changes
    )
    result = prime.train(dataclasses.replace(options, steps=2), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["policy/loss"]) for record in records[1:]) and result.prm is None
    assert records[-1]["rollouts"] > 32 if "values" in str(changes) else records[-1]["rollouts"] == 32


@pytest.mark.slow
def test_the_prm_of_a_run_rewards_another_policy(run_options, tmp_path):
    options = dataclasses.replace(
        replaced(run_options, sft={"steps": 10}, prm={"learning_rate": 1e-2}, eval={"prm_problems": 4}), steps=2
    )
    first = prime.train(options, tmp_path / "first")
    reward = {"source": "model", "path": (str(first.prm),), "shaping": ("clip", "delta")}
    second = prime.train(replaced(options, reward=reward, advantage={"credit": "step"}), tmp_path / "second")
    records = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert all(record["prm/reward_abs"] > 0 for record in records[1:])
    assert "prm_eval/step_auc" in second.before and not (tmp_path / "second" / "prm").exists()


def test_make_advantage_is_pure(options, batch):
    advantage = make_advantage(options.advantage)
    inputs = inputs_of(batch, np.nan_to_num(random_rewards(batch)))
    np.testing.assert_allclose(
        jax.jit(advantage)(inputs.process, inputs), advantage(inputs.process, inputs), atol=1e-5
    )


def test_saved_policy_of_a_run_can_be_the_prover(sampler, params, tmp_path):
    save_weights(tmp_path / "prover", sampler.config, params, tokenizer=sampler.tokenizer)
    start = Start(sampler.task, sampler.tokenizer, sampler.config, None, sampler.config, None)
    options = replaced(prime.Options(), model={"hidden_size": 16})
    loaded = start.load_prover(options, str(tmp_path / "prover"))
    np.testing.assert_array_equal(loaded["embed"]["embedding"], params["embed"]["embedding"])
