"""Rollouts: rows for training, the solve-rate filters, and a collector that resumes exactly."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

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
from prm_jax.prime.collect import Collector, to_batch
from prm_jax.prime.evaluate import sample_in_batches
from prm_jax.prime.options import RolloutOptions
from prm_jax.prime.responses import Responses, concatenate
from prm_jax.prime.sampler import Sampler
from prm_jax.prime.selection import passing_groups
from prm_jax.prime.sources import checker_rewards
from prm_jax.prime.sources.values import PrefixValues
from prm_jax.rollouts import SamplingOptions, SlotTuning
from prm_jax.rollouts.slot_source import SlotSource
from prm_jax.runs import processes
from prm_jax.verifiers import Verdict

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
    responses = sampler.sample(params, problems, jax.random.key(2), sampling=SamplingOptions(0.0))
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


def test_resample_goes_on_until_enough_pass_and_leaves_later_prompts_to_the_next_step(scripted):
    rates = [0, 0.5, 1, 0.5] + [0.5, 0.5, 0, 0.5] + [0.5] * 4
    collector = scripted(options_of("resample"), rates)
    found = collector.collect(None, 0)
    batch, chosen, metrics = found.arrays, found.responses, found.metrics
    first, second = scripted.asked
    assert chosen.problems == [first[1], first[3], second[0], second[1]] and batch.keep.all()
    assert metrics["rollout/sampled"] == 6 * SIZE
    assert metrics["rollout/wasted_tokens"] == 2 * SIZE * 3
    collector.collect(None, 1)
    assert scripted.asked[2][:2] == second[2:]  # sampled again, failing or not


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


@pytest.fixture(scope="module")
def slots(sampler):
    """The same sampler on slots: fewer than responses, and as many."""

    def of(count: int, **tuning) -> Sampler:
        source = SlotSource(
            sampler.config, sampler.tokenizer, sampler.task.stop, slots=count, columns=18, tuning=SlotTuning(**tuning)
        )
        return dataclasses.replace(sampler, engines=source)

    return of


@pytest.fixture(scope="module")
def graded(sampler):
    """The task with mixed outcomes that depend on the text alone: right if it holds an even number of digits."""

    class Graded(CarryTask):
        def verify_many(self, problems, responses):
            del problems
            even = [sum(c.isdigit() for c in text) % 2 == 0 for text in responses]
            return [Verdict(float(right), "pass" if right else "fail", "") for right in even]

    return Graded(2, 3, num_train=64, num_eval=16)


def collected(sampler, task, options, params, steps=2):
    """(collector, batches, metrics) of some steps."""
    collector = Collector(sampler, PromptStream(task.train, 0), options, jax.random.key(5), lambda params: params)
    found = [collector.collect(params, step) for step in range(steps)]
    return collector, found


def same_batches(found, expected):
    """The same batch, `found` from slots."""
    for field in dataclasses.fields(found.arrays):
        a, b = getattr(found.arrays, field.name), getattr(expected.arrays, field.name)
        if field.name == "behaviour_logp":
            np.testing.assert_allclose(a, b, atol=1e-5)
        elif a is not None:
            np.testing.assert_array_equal(a, b, err_msg=field.name)
    for name in ("solve_rate", "sampled", "kept_groups", "truncated", "length"):
        name = f"rollout/{name}"
        assert found.metrics[name] == pytest.approx(expected.metrics[name]), name
    assert 0 < found.metrics["rollout/utilisation"] <= 1


FILTERS = [
    {"kind": "mask"},
    {"kind": "none", "outcome_noise": 0.3},
    {"kind": "oversample", "oversample_factor": 3},
    {"kind": "resample", "solve_rate_low": 0.4, "solve_rate_high": 0.6, "outcome_noise": 0.3},
    {"kind": "resample", "solve_rate_low": 0.4, "solve_rate_high": 0.4, "max_resample_rounds": 2},
]


@pytest.mark.parametrize("options", FILTERS, ids=lambda options: "-".join(map(str, options.values())))
def test_the_batch_depends_neither_on_the_engine_nor_on_slots_or_lookahead(sampler, slots, graded, params, options):
    options = options_of(**options)
    same = dataclasses.replace(sampler, task=graded)
    first, expected = collected(same, graded, options, params)
    ways = [(slots(8), 0), (slots(16, steps_per_call=3), 0), (slots(24, sizes=(1.0,)), 3)]
    for made, lookahead in ways:
        changed = dataclasses.replace(options, lookahead=lookahead)
        second, found = collected(dataclasses.replace(made, task=graded), graded, changed, params)
        for one, other in zip(found, expected, strict=True):
            same_batches(one, other)
        assert second.position() == first.position()
    if options.outcome_noise:
        assert 0 < np.asarray(expected[0].arrays.keep).mean()


@pytest.mark.parametrize("options", [FILTERS[1], FILTERS[3]], ids=["none", "resample"])
@pytest.mark.parametrize("prompts", [1, 4])
def test_processes_that_stream_get_the_batch_of_one(slots, graded, params, monkeypatch, options, prompts):
    """With one prompt per step a process has none; both must still end."""
    options = dataclasses.replace(options_of(**options), prompts_per_step=prompts)
    first, expected = collected(dataclasses.replace(slots(8), task=graded), graded, options, params)
    both = [dataclasses.replace(slots(8), task=graded) for _ in range(2)]
    for collector, found in as_processes(monkeypatch, lambda i: collected(both[i], graded, options, params)):
        assert collector.position() == first.position()
        for mine, alone in zip(found, expected, strict=True):
            same_batches(mine, alone)
    sampled = [made.engines.stats().requests for made in both]
    assert sum(sampled) == sum(one.metrics["rollout/sampled"] for one in expected) and sampled[0] > 0


def as_processes(monkeypatch, run):
    """``[run(0)], [run(1)]``, each in a thread that takes itself for a process of a run of two."""
    own, given, meeting = threading.local(), [None, None], threading.Barrier(2)

    def gather(value, *, name="data", seconds=None):
        given[own.index] = value
        meeting.wait(60)
        everything = list(given)
        meeting.wait(60)
        return everything

    def start(index):
        own.index = index
        return run(index)

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "index", lambda: own.index)
    monkeypatch.setattr(processes, "gather", gather)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(start, range(2)))


def test_no_prompt_is_sampled_in_vain_without_lookahead(slots, graded, params):
    options = options_of("resample", solve_rate_low=0.4, solve_rate_high=0.6)
    _, found = collected(dataclasses.replace(slots(8), task=graded), graded, options, params, steps=3)
    assert [one.metrics["rollout/wasted_tokens"] for one in found] == [0, 0, 0]
    ahead = dataclasses.replace(options, lookahead=4)
    _, found = collected(dataclasses.replace(slots(8), task=graded), graded, ahead, params, steps=3)
    assert sum(one.metrics["rollout/wasted_tokens"] for one in found) > 0


def test_a_group_that_cannot_pass_any_more_is_cut(slots, graded, params):
    """With a cut-off response a group fails; the batch is the same but for the responses of failing groups."""
    options = options_of("resample", drop_truncated=True, max_resample_rounds=2, solve_rate_low=0.0)
    made = dataclasses.replace(slots(8, steps_per_call=2), task=graded)
    _, whole = collected(made, graded, options, params)
    _, cut = collected(made, graded, dataclasses.replace(options, cut_groups=True), params)
    for one, other in zip(cut, whole, strict=True):
        np.testing.assert_array_equal(one.arrays.keep, other.arrays.keep)
        kept = np.asarray(one.arrays.keep)
        np.testing.assert_array_equal(one.arrays.tokens[kept], other.arrays.tokens[kept])
        assert not one.arrays.judged[~kept].any()
    assert cut[0].metrics["rollout/wasted_tokens"] > 0


def test_an_engine_can_be_used_again_after_a_verifier_has_failed(slots, graded, params):
    options, calls = options_of("none"), []

    class Failing(type(graded)):
        def verify_many(self, problems, responses):
            calls.append(len(responses))
            if len(calls) == 2:
                raise RuntimeError("the judge is ill")
            return super().verify_many(problems, responses)

    task = Failing(2, 3, num_train=64, num_eval=16)
    made = dataclasses.replace(slots(8, steps_per_call=2), task=task)
    with pytest.raises(RuntimeError, match="ill"):
        collected(made, task, options, params, steps=1)
    _, found = collected(made, task, options, params, steps=1)
    _, expected = collected(dataclasses.replace(slots(8), task=graded), graded, options, params, steps=1)
    np.testing.assert_array_equal(found[0].arrays.tokens, expected[0].arrays.tokens)


def test_evaluation_and_values_are_the_same_from_slots(sampler, slots, task, params):
    problems, key = list(task.eval[:10]), jax.random.key(4)
    for temperature in (0.0, 1.0):
        expected = sample_in_batches(sampler, params, problems, key, batch_size=4, temperature=temperature)
        found = sample_in_batches(slots(8), params, problems, key, batch_size=4, temperature=temperature)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.finished, expected.finished)
    source = PrefixValues(rollouts=2, batch_size=3)
    observed = source.observe(expected, sampler, params, key)
    np.testing.assert_allclose(source.observe(expected, slots(8), params, key).process, observed.process)


def test_slots_take_no_memory_while_the_policy_learns(slots, graded, params):
    made = dataclasses.replace(slots(8), task=graded)
    collector, first = collected(made, graded, options_of("none"), params, steps=1)
    engine = made.engines._engine
    assert engine.params is None and engine._packed is None and engine._cache._cache is None
    second = collector.collect(params, 0)  # and it can be used again
    assert second.arrays.tokens.shape == first[0].arrays.tokens.shape


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
