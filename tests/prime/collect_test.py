"""Rollouts: rows for training, the solve-rate filters, and a collector that resumes exactly."""

import dataclasses

import jax
import numpy as np
import pytest

from prm_jax.data.carry import CarryTask
from prm_jax.data.pipeline import PromptStream
from prm_jax.data.problems import Problem
from prm_jax.data.steps import step_ids_from_text
from prm_jax.errors import UserError
from prm_jax.models import init_params
from prm_jax.models.loading import fresh_config
from prm_jax.prime.collect import Collector, passing_groups, to_batch
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.responses import Responses, Sampler, concatenate
from prm_jax.prime.sources import checker_rewards

PROMPTS, SIZE = 4, 4


@pytest.fixture(scope="module")
def task() -> CarryTask:
    return CarryTask(2, 3, num_train=64, num_eval=16)


@pytest.fixture(scope="module")
def sampler(task, run_options) -> Sampler:
    tokenizer = task.tokenizer()
    return Sampler(task, tokenizer, fresh_config(run_options.model, tokenizer.vocab_size), 8, 10)


@pytest.fixture(scope="module")
def params(sampler):
    return jax.jit(init_params, static_argnums=0)(sampler.config, jax.random.key(0))


def fake(outcomes: list[list[float]], finished: bool = True, usable: np.ndarray | None = None) -> Responses:
    """Responses with these outcomes and nothing else of interest."""
    table = np.asarray(outcomes, np.float32)
    rows = table.size
    return Responses(
        problems=list(range(table.shape[0])),
        tokens=np.arange(rows)[:, None].repeat(3, 1).astype(np.int32),
        mask=np.ones((rows, 3), bool),
        step_ids=np.zeros((rows, 3), np.int32),
        texts=[str(i) for i in range(rows)],
        outcome=table.reshape(-1),
        usable=np.ones(rows, bool) if usable is None else usable,
        finished=np.full(rows, finished),
        unanswered=np.zeros(rows, bool),
    )


@pytest.fixture
def scripted(monkeypatch, sampler):
    """A collector whose samples have prescribed solve rates, and the list of prompts it asked for."""
    asked: list[list] = []

    def build(options: RolloutOptions, rates, problems=None) -> Collector:
        task = sampler.task
        stream = PromptStream(problems or task.train, 0)
        collector = Collector(sampler, stream, options, jax.random.key(0), lambda params: params)
        draws = iter(rates)

        def sample_by_prompt(self, params, problems, key, **_):
            asked.append(list(problems))
            table = []
            for _ in problems:
                right = round(next(draws) * SIZE)
                table.append([1.0] * right + [0.0] * (SIZE - right))
            return dataclasses.replace(fake(table), problems=list(problems))

        monkeypatch.setattr(Sampler, "sample", sample_by_prompt)
        return collector

    build.asked = asked
    return build


def options_of(kind: str, **changes) -> RolloutOptions:
    base = RolloutOptions(prompts_per_step=PROMPTS, samples_per_prompt=SIZE, max_new_tokens=10, max_prompt_tokens=8)
    return dataclasses.replace(base, filter=kind, **changes)


def test_rows_are_prompt_response_padding_and_steps_cover_the_response(sampler, params, task):
    problems = list(task.train[:3])
    responses = sampler.sample(params, problems, jax.random.key(1), samples_per_prompt=2)
    assert responses.tokens.shape == (6, 18)
    for row in range(6):
        prompt = sampler.encode(problems[row // 2])
        np.testing.assert_array_equal(responses.tokens[row, : len(prompt)], prompt)
        count = responses.mask[row].sum()
        np.testing.assert_array_equal(np.flatnonzero(responses.mask[row]), len(prompt) + np.arange(count))
        assert (responses.tokens[row, len(prompt) + count :] == sampler.tokenizer.pad_id).all()
        np.testing.assert_array_equal(responses.step_ids[row] >= 0, responses.mask[row])
        response = responses.tokens[row, responses.mask[row]]
        assert sampler.tokenizer.decode(response, skip_special=True) == responses.texts[row]
        assert responses.finished[row] == (response[-1] == sampler.tokenizer.eos_id)


def test_outcomes_are_the_tasks_verdicts(sampler, params, task):
    problems = list(task.train[:8])
    responses = sampler.sample(params, problems, jax.random.key(2), temperature=0.0)
    expected = [task.verify(p, t) for p, t in zip(problems, responses.texts, strict=True)]
    np.testing.assert_array_equal(responses.outcome, expected)


def test_bounds_of_the_filter_are_inclusive():
    rates = [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0.8, 0.8, 0.8, 0.8]]
    passed = passing_groups(fake(rates), options_of("mask"))
    assert passed.tolist() == [False, False, True, True, True, True]
    cut = passing_groups(fake(rates, finished=False), options_of("mask", drop_truncated=True))
    assert not cut.any()


def test_mask_keeps_the_shape_and_drops_failing_groups(scripted):
    found = scripted(options_of("mask"), [0, 0.5, 1, 0.25]).collect(None, 0)
    batch, metrics = found.arrays, found.metrics
    assert batch.tokens.shape[0] == PROMPTS * SIZE
    np.testing.assert_array_equal(batch.keep.reshape(PROMPTS, SIZE)[:, 0], [False, True, False, True])
    assert metrics["rollout/kept_groups"] == 0.5 and metrics["rollout/solve_rate"] == pytest.approx(0.4375)


def test_oversample_puts_passing_prompts_first_and_fills_up_in_order(scripted):
    rates = [0, 0.5, 1, 0, 0.25, 1, 0, 0.75]
    collector = scripted(options_of("oversample", oversample_factor=2), rates)
    found = collector.collect(None, 0)
    batch, chosen = found.arrays, found.responses
    drawn = scripted.asked[0]
    assert len(drawn) == 2 * PROMPTS and batch.keep.all()
    assert chosen.problems == [drawn[1], drawn[4], drawn[7], drawn[0]]


def test_resample_goes_on_until_enough_pass_and_puts_the_surplus_back(scripted):
    rates = [0, 0.5, 1, 0.5] + [0.5, 0.5, 0, 0.5] + [0.5] * 4
    collector = scripted(options_of("resample"), rates)
    found = collector.collect(None, 0)
    batch, chosen, metrics = found.arrays, found.responses, found.metrics
    first, second = scripted.asked
    assert chosen.problems == [first[1], first[3], second[0], second[1]] and batch.keep.all()
    assert metrics["rollout/sampled"] == 2 * PROMPTS * SIZE
    assert len(collector.buffer.pending) == 1
    collector.collect(None, 1)
    assert scripted.asked[2][0] == second[3]  # the surplus prompt is sampled anew, first


def test_resample_gives_up_after_its_rounds_and_masks_what_failed(scripted):
    collector = scripted(options_of("resample", max_resample_rounds=2), [0, 0, 0.5, 0, 0, 0, 0, 0])
    said = []
    collector.say = said.append
    batch = collector.collect(None, 0).arrays
    np.testing.assert_array_equal(batch.keep.reshape(PROMPTS, SIZE)[:, 0], [True, False, False, False])
    assert "1 of 4 prompts" in said[-1]


def test_a_broken_verdict_is_masked_and_not_counted_as_wrong():
    usable = np.ones(8, bool)
    usable[1] = False
    responses = fake([[1, 0, 0, 1], [1, 0, 0, 0]], usable=usable)
    batch = to_batch(responses, np.array([True, True]))
    assert not batch.keep[1] and batch.keep.sum() == 7


def test_noise_turns_outcomes_round_by_the_key_alone(sampler, params, task):
    options = options_of("none", outcome_noise=0.4)
    outcomes = []
    for _ in range(2):
        collector = Collector(sampler, PromptStream(task.train, 0), options, jax.random.key(3), lambda params: params)
        outcomes.append(collector.collect(params, 0).arrays.outcome)
    np.testing.assert_array_equal(*outcomes)
    stream = PromptStream(task.train, 0)
    clean = Collector(sampler, stream, options_of("none"), jax.random.key(3), lambda params: params)
    assert 0 < np.mean(outcomes[0] != clean.collect(params, 0).arrays.outcome) < 0.9


def test_a_restored_collector_goes_on_as_if_never_stopped(sampler, params, task):
    def collector() -> Collector:
        stream = PromptStream(task.train, 0)
        return Collector(sampler, stream, options_of("none"), jax.random.key(0), lambda params: params)

    whole = collector()
    for step in range(3):
        expected = whole.collect(params, step).arrays
    first = collector()
    for step in range(2):
        first.collect(params, step)
    second = collector()
    second.restore(first.position())
    found = second.collect(params, 2).arrays
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)
    assert second.sampled == whole.sampled


def test_prompts_that_do_not_fit_are_left_out_and_counted(sampler, task, scripted):
    short = dataclasses.replace(sampler, max_prompt_tokens=5)  # 2 operands fit, 3 do not
    collector = scripted(options_of("none"), [0.5] * PROMPTS)
    collector.sampler = short
    collector.collect(None, 0)
    assert all(len(short.encode(problem)) <= 5 for problem in scripted.asked[0])
    assert collector.too_long > 0
    none = scripted(options_of("none"), [0.5] * PROMPTS)
    none.sampler = dataclasses.replace(sampler, max_prompt_tokens=2)
    with pytest.raises(UserError, match="longer than 2 tokens"):
        none.collect(None, 0)


def test_take_and_concatenate_keep_groups_whole():
    a, b = fake([[1, 0, 0, 0], [1, 1, 0, 0]]), fake([[1, 1, 1, 0]])
    joined = concatenate([a, b]).take([2, 0])
    np.testing.assert_allclose(joined.solve_rates(), [0.75, 0.25])
    assert joined.texts == ["0", "1", "2", "3", "0", "1", "2", "3"]
    assert len(a.take([]).texts) == 0


def test_the_checkers_rewards_stand_on_the_last_token_of_the_first_wrong_step(task):
    problem = Problem("7+5+9=", "21", "sum")
    texts = ["7+5=12;12+9=21#21", "7+5=2;2+9=11#11", "7+5=12;12+9=11#11", "7+5=12;12+9=21#22", ""]
    tokenizer = task.tokenizer()
    rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    tokens = np.array([row + [0] * (20 - len(row)) for row in rows], np.int32)
    mask = np.arange(20)[None, :] < np.array([len(row) for row in rows])[:, None]
    step_ids, _, found = step_ids_from_text(
        tokens, mask, tokenizer.token_bytes, task.splitter, special_ids=tuple(tokenizer.special_ids)
    )
    assert found == texts
    responses = dataclasses.replace(
        fake([[1, 0, 0, 0, 0]]), problems=[problem], tokens=tokens, mask=mask, step_ids=step_ids, texts=texts
    )
    rewards = checker_rewards(task, responses)
    for text, row, ids in zip(texts, rewards, step_ids, strict=True):
        labels = task.step_labels(problem, text)
        expected = np.zeros(20)
        if False in labels:
            expected[max(t for t in range(20) if ids[t] == labels.index(False))] = -1.0
        np.testing.assert_array_equal(row, expected)
    assert rewards.sum() == -3.0 and rewards[0].sum() == 0.0
    np.testing.assert_array_equal(to_batch(responses, np.array([True]), process=rewards).process, rewards)
