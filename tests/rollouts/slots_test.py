"""The slot engine: the responses of ``generate``, whatever shares the slots with them."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax import cli, models
from prm_jax.data.carry import ALPHABET, CarryTask
from prm_jax.errors import UserError
from prm_jax.models.sampling import row_uniform, row_uniforms
from prm_jax.rollouts import (
    LocalEngine,
    Request,
    SamplingOptions,
    SlotEngine,
    SlotTuning,
    StepOptions,
    TaskPolicy,
    generate_with,
    load_local_policy,
    sample_all,
    stop_sets,
)
from prm_jax.rollouts import slot_programs as programs
from prm_jax.rollouts.slot_rows import counters
from prm_jax.search.language_model import Ask, Partial
from prm_jax.search.searchers import make_searcher
from tests.compiled import hidden_states, logits, token_logprobs

TOKENIZER = models.CharTokenizer(ALPHABET)
PROMPTS = ["1+2=", "3+4+5=", "7+7=", "1+2+3+4+5+6="]
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model():
    config = models.ModelConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    return config, jax.jit(models.init_params, static_argnums=0)(config, jax.random.key(1))


def engine(model, **options):
    defaults = {
        "slots": 4, "columns": 48, "key": KEY, "tokenizer": TOKENIZER, "stops": ((), (";", "#")),
        "tuning": SlotTuning(steps_per_call=8),
    }  # fmt: skip
    return SlotEngine(*model, **{**defaults, **options})


def encoded(prompt):
    return tuple(TOKENIZER.encode(prompt))


def mixed(count, seed=0):
    """Requests of different prompts, lengths and stop sets."""
    rng = np.random.default_rng(seed)
    return [
        Request(encoded(PROMPTS[i % 4]), i % 4, i // 4, int(rng.integers(1, 24)), int(rng.integers(2)))
        for i in range(count)
    ]


def scored(config, params, request, one):
    """Log-probabilities of a response, from one pass over all of it; equally long rows compile once."""
    row = [*request.prompt, *one.tokens]
    logp = token_logprobs(config, params, jnp.array([row + [0] * (64 - len(row))]))
    return np.asarray(logp)[0, len(request.prompt) : len(row)]


def check_equal(found, expected, atol=1e-5):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logp, expected.logp, atol=atol)
    assert (found.end, found.stop_index) == (expected.end, expected.stop_index)


@pytest.mark.parametrize(
    ("slots", "steps", "sampling"),
    [
        (1, 7, SamplingOptions()),
        (4, 1, SamplingOptions(temperature=0.0)),
        (4, 8, SamplingOptions(temperature=0.8, top_k=6, top_p=0.9)),
        (16, 32, SamplingOptions()),
    ],
)
def test_generate_with_slots_is_generate(model, slots, steps, sampling):
    expected = models.generate(
        *model, PROMPTS, KEY, samples_per_prompt=3, max_new_tokens=12, temperature=sampling.temperature,
        top_k=sampling.top_k, top_p=sampling.top_p, stop=(";", "#"), options=models.DecodeOptions(tokenizer=TOKENIZER),
    )  # fmt: skip
    made = engine(model, slots=slots, sampling=sampling, tuning=SlotTuning(steps_per_call=steps))
    found = generate_with(made, PROMPTS, samples_per_prompt=3, max_new_tokens=12, stop=1)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5)
    np.testing.assert_array_equal(found.finished, expected.finished)


def test_a_row_draws_the_numbers_of_generate():
    expected = row_uniforms(KEY, jnp.array([5, 2]), samples=3, steps=4)
    np.testing.assert_array_equal(row_uniform(KEY, 2, 1, 3), expected[3, 4])


def test_responses_are_those_of_the_local_engine_for_any_slots_order_and_neighbours(model):
    requests = mixed(20)
    local = LocalEngine(*model, key=KEY, tokenizer=TOKENIZER, stops=((), (";", "#")))
    expected = sample_all(local, requests)
    assert {one.end for one in expected} == {"eos", "stop", "length"}
    order = np.random.default_rng(1).permutation(len(requests))
    for made in (engine(model), engine(model, slots=3, columns=None)):
        found = sample_all(made, [requests[i] for i in order])
        for one, place in zip(found, order, strict=True):
            check_equal(one, expected[place])
            assert one.sampled.all() and len(one.sampled) == len(one.version) == len(one.tokens)
    check_equal(sample_all(engine(model), requests[7:8])[0], expected[7])


def test_equal_slots_give_equal_bits_whatever_else_is_asked(model):
    requests = mixed(12)
    first = sample_all(engine(model), requests)
    second = sample_all(engine(model), requests[::-1] + mixed(8, seed=5))[: len(requests)][::-1]
    alone = sample_all(engine(model), requests[4:5])
    for one, other in zip([*first, first[4]], [*second, *alone], strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.logp, other.logp)


def test_log_probabilities_are_those_of_the_whole_response(model):
    config, params = model
    request = Request(encoded(PROMPTS[0]), 0, 0, 20)
    one = sample_all(engine(model, eos_ids=()), [request])[0]
    np.testing.assert_allclose(one.logp, scored(config, params, request, one), atol=1e-4)


def test_stop_strings_across_tokens(model):
    stops = ((), ("=1", "12", "+"), ("+", "5+"))
    made = engine(model, stops=stops, eos_ids=())
    requests = [Request(encoded(PROMPTS[0]), i, 0, 30, 1 + i % 2) for i in range(24)]
    ended = 0
    for request, one in zip(requests, sample_all(made, requests), strict=True):
        text = TOKENIZER.decode(one.tokens.tolist(), skip_special=True)
        if one.end == "stop":
            ended += 1
            string = stops[request.stop][one.stop_index]
            assert text.endswith(string) and not any(stop in text[:-1] for stop in stops[request.stop])
            assert request.stop == 1 or (one.stop_index == 1) == text.endswith("5+")
        else:
            assert one.end == "length" and len(one.tokens) == 30 and "+" not in text
    assert ended > 12


def test_cancelling_frees_slots_and_changes_no_other_response(model):
    requests = [Request(encoded(PROMPTS[i % 4]), i, 0, 6 if i % 2 else 30) for i in range(12)]
    expected = sample_all(engine(model, eos_ids=()), requests)
    made = engine(model, eos_ids=(), tuning=SlotTuning(steps_per_call=2))
    tickets = made.submit(requests)
    found = dict(made.poll())
    gone = dict(made.cancel([tickets[0], tickets[11], tickets[1], 99]))
    assert set(gone) == {tickets[0], tickets[11]} and tickets[1] in found
    assert len(gone[tickets[11]].tokens) == 0
    partial = gone[tickets[0]]
    assert partial.end == "cancelled" and 0 < len(partial.tokens) < 30
    np.testing.assert_array_equal(partial.tokens, expected[0].tokens[: len(partial.tokens)])
    while more := made.poll():
        found |= dict(more)
    assert set(found) == set(tickets) - set(gone)
    for ticket, one in found.items():
        check_equal(one, expected[ticket])
    stats = made.stats()
    assert stats.wasted_tokens == len(partial.tokens) and stats.responses == stats.requests == 12
    assert stats.tokens == sum(len(one.tokens) for one in [*found.values(), *gone.values()])


def test_a_prefix_is_continued_as_if_never_interrupted(model):
    requests = [Request(encoded(PROMPTS[i % 4]), i, 0, 20, i % 2) for i in range(8)]
    made = engine(model)
    expected = sample_all(made, requests)
    prefixes = [one.tokens[: len(one.tokens) // 2].tolist() for one in expected]
    tickets = made.submit(requests, prefixes=prefixes)
    found = {}
    while more := made.poll():
        found |= dict(more)
    for ticket, one, prefix in zip(tickets, expected, prefixes, strict=True):
        again, given = found[ticket], len(prefix)
        np.testing.assert_array_equal(again.tokens, one.tokens)
        np.testing.assert_allclose(again.logp[given:], one.logp[given:], atol=1e-5)
        assert not again.sampled[:given].any() and again.sampled[given:].all() and (again.logp[:given] == 0).all()
        assert again.end == one.end


def test_a_stop_string_may_begin_in_the_prefix(model):
    request, prefix = Request(encoded(PROMPTS[0]), 0, 0, 6), encoded("1+")
    free = _after(engine(model, eos_ids=()), request, prefix)
    drawn = TOKENIZER.decode(free.tokens[2:3].tolist())
    assert len(free.tokens) == 6 and drawn
    one = _after(engine(model, stops=(("0", "+" + drawn),), eos_ids=()), request, prefix)
    assert (one.end, one.stop_index, len(one.tokens)) == ("stop", 1, 3)


def _after(made, request, prefix):
    ticket = made.submit([request], prefixes=[prefix])[0]
    found = dict(made.poll())
    return found[ticket]


@pytest.mark.parametrize("crowded", [False, True])
def test_forced_tokens_equal_a_prefix(model, crowded):
    """An extended response, in its own slot or read again, is that of a request which begins with its tokens."""
    made = engine(model, slots=2, tuning=SlotTuning(steps_per_call=3, hold=(1,)))
    request = next(
        r
        for r in (Request(encoded(PROMPTS[0]), i, 0, 12, 1) for i in range(30))
        if sample_all(engine(model, slots=2), [r])[0].end == "stop"
    )
    ticket = made.submit([request])[0]
    first = dict(made.poll())[ticket]
    others = made.submit([Request(encoded(PROMPTS[1]), 50 + i, 0, 12) for i in range(4)]) if crowded else []
    if crowded:
        made.submit([request] * 2)  # held too, so that the first one must give up its slot
        while made.poll():
            pass
    read = made.stats().prefill_tokens
    observation = encoded("9;1#8")  # stop strings in forced tokens end nothing
    made.extend(ticket, observation, max_new_tokens=30)
    found = {}
    while more := made.poll():
        found |= dict(more)
    one = found[ticket]
    assert ticket not in others and (made.stats().prefill_tokens > read) == crowded
    given = len(first.tokens) + len(observation)
    assert one.tokens[:given].tolist() == [*first.tokens, *observation] and len(one.tokens) > given
    assert one.sampled.tolist() == [True] * len(first.tokens) + [False] * 5 + [True] * (len(one.tokens) - given)
    assert (one.logp[len(first.tokens) : given] == 0).all()
    fresh = _after(engine(model), dataclasses.replace(request, max_new_tokens=30), one.tokens[:given].tolist())
    np.testing.assert_array_equal(one.tokens, fresh.tokens)
    np.testing.assert_allclose(one.logp[given:], fresh.logp[given:], atol=1e-5)
    assert one.end == fresh.end and made.stats().forced_tokens == 5


def test_a_held_response_gives_way_to_waiting_requests(model):
    made = engine(model, slots=1, tuning=SlotTuning(hold=(1,)))
    requests = [Request(encoded(PROMPTS[0]), i, 0, 12, 1) for i in range(6)]
    found = sample_all(made, requests)
    stopped = [ticket for ticket, one in enumerate(found) if one.end == "stop"]
    assert len(stopped) > 1
    made.extend(stopped[0], encoded("5"), max_new_tokens=20)
    assert made.cancel([stopped[1]]) == []
    with pytest.raises(UserError, match="cannot be extended"):
        made.extend(stopped[1], encoded("5"), max_new_tokens=20)
    assert dict(made.poll())[stopped[0]].tokens[len(found[stopped[0]].tokens)] == encoded("5")[0]


def test_nothing_is_compiled_after_warming_up(model, caplog):
    made = engine(model, slots=9, tuning=SlotTuning(steps_per_call=5, hold=(1,), sizes=(1.0, 0.5)))
    made.warm([4, 12, 24, 30, 40])
    made.stats()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for number in range(5):
            tickets = made.submit(mixed(40, seed=number))
            made.cancel([tickets[3]])
            while found := made.poll():
                for ticket, one in found:
                    if one.end == "stop" and len(one.tokens) < 10:
                        made.extend(ticket, encoded("5+"), max_new_tokens=20)
            made.update(made.params, number + 1)
    compiled = [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]
    assert compiled == []
    assert made.stats().calls > 20


def test_long_tailed_lengths_keep_the_slots_busy(model):
    config, params = model
    config = dataclasses.replace(config, max_position_embeddings=160)
    made = SlotEngine(config, params, slots=4, columns=160, key=KEY, tuning=SlotTuning(steps_per_call=16))
    lengths = np.clip(np.random.default_rng(2).exponential(20, 32).astype(int), 1, 140)
    requests = [Request(encoded(PROMPTS[0]), i, 0, int(n)) for i, n in enumerate(lengths)]
    assert [len(one.tokens) for one in sample_all(made, requests)] == lengths.tolist()
    stats = made.stats()
    chunks = sum(lengths[i : i + 4].max() for i in range(0, 32, 4))
    assert stats.utilisation >= 0.6 and stats.tokens == lengths.sum()
    assert stats.steps <= 0.8 * chunks and stats.slot_steps == 4 * stats.steps


@pytest.mark.parametrize("running", ["finish", "restart", "resume", "keep"])
def test_new_weights_while_responses_are_running(model, running):
    config, params = model
    other = jax.tree.map(lambda x: x * 1.1, params)
    requests = [Request(encoded(PROMPTS[i % 4]), i, 0, 20) for i in range(6)]
    old, new = (sample_all(engine((config, p), eos_ids=()), requests) for p in (params, other))
    made = engine(model, eos_ids=(), tuning=SlotTuning(steps_per_call=3, refill_share=1.0))
    tickets = made.submit(requests)
    assert made.poll(timeout=0) == []
    made.update(other, 7, running=running)
    found = {}
    while more := made.poll():
        found |= dict(more)
    for i in (0, 4):
        one = found[tickets[i]]
        versions = one.version.tolist()
        if running == "restart" or (running, i) != ("finish", 0) and i == 4 and running != "finish":
            check_equal(one, new[i])
            assert set(versions) == {7}
        elif running == "finish" and i == 0:
            check_equal(one, old[i])
            assert set(versions) == {0}
        elif i == 0:
            assert versions == [0] * 3 + [7] * 17
            np.testing.assert_array_equal(one.tokens[:3], old[i].tokens[:3])
    assert made.stats().wasted_tokens == (12 if running == "restart" else 0)
    if running == "resume":
        one = found[tickets[0]]
        logp = scored(config, other, requests[0], one)
        np.testing.assert_allclose(one.logp[3:], logp[3:], atol=1e-4)


@pytest.mark.parametrize("shape", [{"data": 2, "tensor": 2}, {"data": 1, "fsdp": 4, "tensor": 2}])
def test_slots_over_a_mesh(model, shape):
    config, params = model
    mesh = models.make_mesh(**shape)
    requests = mixed(10)
    expected = sample_all(engine(model), requests)
    found = sample_all(engine((config, models.shard_params(params, mesh))), requests)
    for one, other in zip(found, expected, strict=True):
        check_equal(one, other)
    with pytest.raises(UserError, match="a multiple of"):
        engine(model, slots=3, mesh=mesh)


def test_adapters_and_a_half_precision_cache(model):
    config, params = model
    adapters = models.init_lora(config, params, jax.random.key(5), models.LoRAConfig(rank=2))
    adapters = jax.tree.map(lambda x: x + 0.05, adapters)
    joined = models.join(params, adapters)
    requests = mixed(6)
    expected = sample_all(LocalEngine(config, joined, key=KEY, tokenizer=TOKENIZER, stops=((), (";", "#"))), requests)
    for one, other in zip(sample_all(engine((config, joined)), requests), expected, strict=True):
        check_equal(one, other)
    half = engine(model, tuning=SlotTuning(cache_dtype="bfloat16"), eos_ids=())
    request = Request(encoded(PROMPTS[0]), 0, 0, 16)
    one = sample_all(half, [request])[0]
    np.testing.assert_allclose(one.logp, scored(config, params, request, one), atol=0.05)
    assert half._cache.arrays.layers[0].k.dtype == jnp.bfloat16


@pytest.mark.parametrize(("dtype", "most", "mean"), [("int8", 0.05, 0.01), ("int4", 0.8, 0.12)])
def test_a_cache_of_few_bits(model, dtype, most, mean):
    """Its log-probabilities differ by the rounding of keys and values; the memory is what is said."""
    config, params = model
    tuning = SlotTuning(cache_dtype=dtype, hold=(1,), sizes=(1.0, 0.5), steps_per_call=4)
    made = engine(model, slots=16, tuning=tuning, eos_ids=())
    requests = [Request(encoded(PROMPTS[i % 4]), i, 0, 16) for i in range(20)]
    found = sample_all(made, requests)
    differences = []
    for request, one in zip(requests, found, strict=True):
        differences.append(np.abs(one.logp - scored(config, params, request, one)))
    assert 0 < np.max(differences) < most and np.mean(differences) < mean
    again = sample_all(engine(model, slots=16, tuning=tuning, eos_ids=()), requests[3:4])[0]
    np.testing.assert_array_equal(again.tokens, found[3].tokens)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(made._cache.arrays.layers))
    assert made._cache.size in (8, 16)
    assert size == programs.cache_bytes(config, made._cache.size, 48, dtype)
    assert size < 0.4 * programs.cache_bytes(config, made._cache.size, 48, "float32")


def test_the_cache_is_updated_in_place(model):
    config, _ = model
    made = engine(model)
    size = programs.cache_bytes(config, 4, 48, "float32")
    assert size == sum(leaf.nbytes for leaf in jax.tree.leaves(made._cache.arrays.layers)) == 2 * 2 * 2 * 8 * 4 * 48 * 4
    rules, forced = made._rules, np.full((8, 4), programs.DRAW, np.int32)
    empty = counters({}, 4, made._key_data)
    lowered = programs.run.lower(
        config, made._packed, made._cache.arrays, empty, forced, rules, np.int32(0), sharding=None
    )
    assert lowered.compile().memory_analysis().alias_size_in_bytes >= size


def test_few_responses_are_moved_into_fewer_slots(model):
    lengths = np.clip(np.random.default_rng(2).exponential(12, 40).astype(int), 1, 40)
    requests = [Request(encoded(PROMPTS[i % 4]), i, 0, int(n)) for i, n in enumerate(lengths)]
    found, steps = [], []
    for sizes in ((1.0,), (1.0, 0.25)):
        made = engine(model, slots=32, eos_ids=(), tuning=SlotTuning(steps_per_call=8, sizes=sizes))
        found.append(sample_all(made, requests))
        assert made.stats().tokens == lengths.sum()
        steps.append(made.stats())
        found[-1] += sample_all(made, requests[:5])  # few from the start
        made.submit(requests)  # and many again
        while made.poll():
            pass
    for one, other in zip(*found, strict=True):
        check_equal(one, other)
    assert steps[0].moves == 0 and steps[1].moves >= 1 and steps[1].slot_steps < 0.75 * steps[0].slot_steps
    assert found[0][40].tokens.tolist() == found[0][0].tokens.tolist()


def test_held_responses_keep_their_tokens_when_slots_are_moved(model):
    made = engine(model, slots=16, tuning=SlotTuning(steps_per_call=4, hold=(1,), sizes=(1.0, 0.5)))
    requests = [Request(encoded(PROMPTS[0]), i, 0, 12, 1) for i in range(16)]
    found = sample_all(made, requests)
    held = [ticket for ticket, one in enumerate(found) if one.end == "stop"][:3]
    made.submit([Request(encoded(PROMPTS[1]), 90, 0, 3)])
    made.poll()
    for ticket in held:
        made.extend(ticket, encoded("5+"), max_new_tokens=20)
    again = {}
    while more := made.poll():
        again |= dict(more)
    for ticket in held:
        given = [*found[ticket].tokens.tolist(), *encoded("5+")]
        fresh = _after(engine(model), dataclasses.replace(requests[ticket], max_new_tokens=20), given)
        np.testing.assert_array_equal(again[ticket].tokens, fresh.tokens)


def test_requests_draw_from_the_key_that_they_were_submitted_with(model):
    requests = mixed(6)
    keys = [jax.random.key(1), jax.random.key(2)]
    expected = [sample_all(engine(model, key=key), requests) for key in keys]
    made = engine(model, key=keys[0])
    tickets = made.submit(requests)
    made.draw_with(keys[1])
    tickets += made.submit(requests)
    found = {}
    while more := made.poll():
        found |= dict(more)
    for ticket, one in zip(tickets, [*expected[0], *expected[1]], strict=True):
        check_equal(found[ticket], one)
    made.draw_with(keys[0], SamplingOptions(temperature=0.0))
    greedy = sample_all(engine(model, sampling=SamplingOptions(temperature=0.0)), requests)
    for one, other in zip(sample_all(made, requests), greedy, strict=True):
        check_equal(one, other)


def test_a_cancelled_response_is_continued_with_its_log_probabilities(model):
    request = Request(encoded(PROMPTS[0]), 0, 0, 20)
    made = engine(model, eos_ids=(), sampling=SamplingOptions(top_k=4), tuning=SlotTuning(steps_per_call=6))
    whole = sample_all(made, [request])[0]
    ticket = made.submit([request])[0]
    made.poll(timeout=0)
    partial = dict(made.cancel([ticket]))[ticket]
    assert len(partial.tokens) == 6
    made.update(made.params, 3)
    ticket = made.submit([request], prefixes=[partial])[0]
    again = dict(made.poll())[ticket]
    check_equal(again, whole)
    np.testing.assert_allclose(again.log_mass, whole.log_mass, atol=1e-5)
    assert again.sampled.all() and again.version.tolist() == [0] * 6 + [3] * 14


@pytest.mark.parametrize("truncation", [{"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.6, "top_k": 5, "top_p": 0.8}])
def test_the_kept_mass_normalises_what_was_drawn_from(model, truncation):
    """exp(logp - log_mass) over the tokens that truncation keeps is 1, from slots and from `generate`."""
    config, params = model
    sampling = SamplingOptions(**truncation)
    made = engine(model, eos_ids=(), sampling=sampling)
    one = sample_all(made, [Request(encoded(PROMPTS[0]), 0, 0, 16)])[0]
    samples = models.generate(
        *model, [list(encoded(PROMPTS[0]))], KEY, max_new_tokens=16, temperature=sampling.temperature,
        top_k=sampling.top_k, top_p=sampling.top_p,
    )  # fmt: skip
    np.testing.assert_allclose(samples.log_mass[0], one.log_mass, atol=1e-5)
    row = jnp.array([[*encoded(PROMPTS[0]), *one.tokens]])
    found = logits(config, params, hidden_states(config, params, row))[0]
    probabilities = np.asarray(jax.nn.softmax(found / sampling.temperature))[len(encoded(PROMPTS[0])) - 1 : -1]
    for p, token, logp, mass in zip(probabilities, one.tokens, one.logp, one.log_mass, strict=True):
        order = np.sort(p)[::-1]
        kept = order[: sampling.top_k or len(order)]
        if sampling.top_p < 1:
            kept = kept[: 1 + int(np.searchsorted(np.cumsum(kept) / kept.sum(), sampling.top_p))]
        assert p[token] >= kept[-1] * (1 - 1e-4)
        np.testing.assert_allclose([np.exp(logp), np.exp(mass)], [p[token], kept.sum()], rtol=1e-4)


def test_search_samples_through_slots():
    task = CarryTask(3, 4)
    tokenizer = task.tokenizer()
    config = models.ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
        num_kv_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    params = models.init_params(config, jax.random.key(0))
    asks = [Ask(Partial(i, (), 0.0, False), stream=0) for i in range(2)]
    proposed = []
    for made in (
        LocalEngine(config, params, key=KEY, stops=stop_sets(task), tokenizer=tokenizer),
        SlotEngine(config, params, slots=4, key=KEY, stops=stop_sets(task), tokenizer=tokenizer),
    ):
        policy = TaskPolicy(made, task, StepOptions(step_tokens=8, max_new_tokens=24))
        policy.begin(task.eval[:2], first=0)
        policy.check_prompts(task.eval[:2])
        columns = made._cache.columns if isinstance(made, SlotEngine) else 0
        proposed.append(policy.propose(asks, 3, whole=False))
    assert made._cache.columns == columns >= 24, "there was room from the start"
    for steps, others in zip(*proposed, strict=True):
        assert [step.tokens for step in steps] == [other.tokens for other in others]


def test_the_commands_sample_through_slots(tmp_path, capsys):
    tokenizer = models.CharTokenizer(ALPHABET)
    config = models.ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
        num_kv_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    models.save_weights(tmp_path, config, models.init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    written = []
    for name in ("batches", "slots"):
        out = tmp_path / f"{name}.jsonl"
        words = ["search", str(tmp_path), "--problems", "3", "--method", "majority", "--samples", "4"]
        words += ["--sampling.max-new-tokens", "30", "--sampling.rows", "5", "--sampling.engine", name]
        assert cli.main([*words, "--solutions", str(out)]) == 0
        records = [json.loads(line) for line in out.read_text().splitlines()]
        written.append([(record["id"], record["steps"], record["outcome"]) for record in records])
    assert len(written[0]) == 12 and written[0] == written[1]
    assert cli.main([*words, "--sampling.reuse-mib", "8", "--solutions", str(tmp_path / "third.jsonl")]) == 2
    assert "leave it out with --sampling.engine slots" in capsys.readouterr().err
    task, options = CarryTask(3, 4), StepOptions()
    kinds = [type(load_local_policy(tmp_path, task, options, by_steps=steps).engine) for steps in (False, True)]
    assert kinds == [SlotEngine, LocalEngine]
    assert [make_searcher(name, {}).by_steps for name in ("majority", "beam")] == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots is 0"),
        ({"columns": 65}, "columns is 65: expected 2 to 64"),
        ({"tokenizer": None}, "stop strings need a tokenizer"),
        ({"tuning": {"steps_per_call": 0}}, "steps_per_call is 0"),
        ({"tuning": {"refill_share": 1.5}}, "refill_share is 1.5"),
        ({"tuning": {"sizes": (0.0, 1.0)}}, "expected shares in"),
        ({"tuning": {"cache_dtype": "int2"}}, "cache_dtype is 'int2'"),
    ],
)
def test_options_out_of_range(model, options, message):
    with pytest.raises(UserError, match=message):
        if "tuning" in options:
            options = {"tuning": SlotTuning(**options["tuning"])}
        engine(model, **options)


@pytest.mark.parametrize(
    ("request_", "prefix", "message"),
    [
        (Request((1, 2), 0, 0, 47), (), "exceeds the engine's 48 columns"),
        (Request((1, 2), 0, 0, 63), (), "exceeds the model's context of 64 tokens"),
        (Request((1, 200), 0, 0, 4), (), "contains token 200"),
        (Request((1, 2), 0, 0, 4), (3, -1), "contains token -1"),
        (Request((1, 2), 0, 0, 4), (1, 2, 3, 4), "4 response tokens are given"),
        (Request((), 0, 0, 4), (), "empty prompt"),
    ],
)
def test_requests_that_cannot_be_served(model, request_, prefix, message):
    made = engine(model)
    with pytest.raises(UserError, match=message):
        made.submit([request_], prefixes=[prefix])
    with pytest.raises(UserError, match="2 prefixes for 1 requests"):
        made.submit([request_], prefixes=[(), ()])
    assert made.stats().requests == 0


def test_weights_that_are_not_numbers(model):
    config, params = model
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    made = engine((config, broken))
    made.submit([Request(encoded(PROMPTS[0]), 4, 2, 8)])
    with pytest.raises(UserError, match="not a number at token 0 of prompt 4, sample 2"):
        made.poll()


def test_a_cache_that_does_not_fit(model):
    config, params = model
    large = dataclasses.replace(config, max_position_embeddings=2**24)
    with pytest.raises(UserError, match=r"1048576 slots of 16777216 columns need \d+\.\d\d GiB"):
        SlotEngine(large, params, slots=2**20, columns=2**24, key=KEY)
