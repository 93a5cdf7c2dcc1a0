"""Engines: the responses of ``generate``, whatever else is asked; and the same through a server."""

import dataclasses

import jax
import numpy as np
import pytest

from prm_jax import models
from prm_jax.data.carry import ALPHABET, CarryTask
from prm_jax.errors import UserError
from prm_jax.rollouts import (
    Batching,
    Connection,
    LocalEngine,
    Request,
    SamplingOptions,
    StepOptions,
    TaskPolicy,
    TextEngine,
    generate_with,
    sample_all,
    stop_sets,
)
from prm_jax.rollouts.engine import first_stop
from prm_jax.search.language_model import Ask, Partial
from tests.rollouts.completion_server import serving

TOKENIZER = models.CharTokenizer(ALPHABET)
PROMPTS = ["1+2=", "3+4+5=", "7+7="]


@pytest.fixture(scope="module")
def model():
    config = models.ModelConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
        num_kv_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    return config, jax.jit(models.init_params, static_argnums=0)(config, jax.random.key(1))


def engine(model, **options):
    defaults = {"key": jax.random.key(3), "tokenizer": TOKENIZER, "stops": ((), (";", "#"))}
    return LocalEngine(*model, **{**defaults, **options})


def encoded(prompt):
    return tuple(TOKENIZER.encode(prompt))


def test_generate_with_an_engine_is_generate(model):
    expected = models.generate(
        *model, PROMPTS, jax.random.key(3), samples_per_prompt=3, max_new_tokens=12, temperature=0.9, stop=(";", "#"),
        options=models.DecodeOptions(tokenizer=TOKENIZER),
    )  # fmt: skip
    sampling = SamplingOptions(temperature=0.9)
    found = generate_with(engine(model, sampling=sampling), PROMPTS, samples_per_prompt=3, max_new_tokens=12, stop=1)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5)
    np.testing.assert_array_equal(found.finished, expected.finished)


@pytest.mark.parametrize("batching", [Batching(rows=4), Batching(rows=4, multiple=2)])
def test_a_response_does_not_depend_on_other_requests(model, batching):
    requests = [Request(encoded(p), 5 * i, s, 6 + 2 * i, i % 2) for i, p in enumerate(PROMPTS) for s in range(3)]
    together = sample_all(engine(model, batching=batching), requests)
    order = np.random.default_rng(0).permutation(len(requests))
    shuffled = sample_all(engine(model, batching=batching), [requests[i] for i in order])
    alone = sample_all(engine(model), requests[4:5])
    for i, place in enumerate(order):
        np.testing.assert_array_equal(shuffled[i].tokens, together[place].tokens)
    np.testing.assert_array_equal(alone[0].tokens, together[4].tokens)
    for request, one in zip(requests, together, strict=True):
        assert len(one.tokens) == len(one.logp) == len(one.version) <= request.max_new_tokens
        text = TOKENIZER.decode(one.tokens.tolist(), skip_special=True)
        stops = ((), (";", "#"))[request.stop]
        if one.end == "stop":
            assert text.endswith(stops[one.stop_index]) and text.count(stops[one.stop_index]) == 1
        elif one.end == "eos":
            assert one.tokens[-1] in TOKENIZER.eos_ids
        else:
            assert one.end == "length" and len(one.tokens) == request.max_new_tokens


def test_tickets_counters_versions_and_cancelling(model):
    made = engine(model, batching=Batching(rows=2))
    requests = [Request(encoded(PROMPTS[0]), i, 0, 4) for i in range(5)]
    tickets = made.submit(requests)
    assert made.poll() and made.stats().responses == 2
    made.update(model[1], version=7)
    gone = made.cancel([tickets[0], tickets[4], 99])
    assert [ticket for ticket, _ in gone] == [tickets[4]] and gone[0][1].end == "cancelled"
    rest = made.poll()
    assert [ticket for ticket, _ in rest] == tickets[2:4] and all((one.version == 7).all() for _, one in rest)
    stats = made.stats()
    assert made.poll() == [] and (stats.requests, stats.responses, stats.calls) == (5, 5, 2)
    assert 0 < stats.utilisation <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ()}, "empty prompt"),
        ({"prompt_id": 2**31}, "expected 0 <= prompt_id"),
        ({"sample": -1}, "sample -1"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"max_new_tokens": 64}, "exceeds the model's context of 64 tokens"),
        ({"stop": 2}, "stop set 2, but the engine has 2"),
    ],
)
def test_requests_that_cannot_be_served(model, change, message):
    with pytest.raises(UserError, match=message):
        engine(model).submit([dataclasses.replace(Request((1, 2), 0, 0, 4), **change)])


def test_stop_strings_need_a_tokenizer(model):
    with pytest.raises(UserError, match="stop strings need a tokenizer"):
        engine(model, tokenizer=None)
    with pytest.raises(UserError, match="there are no prompts"):
        generate_with(engine(model), [], max_new_tokens=4)


def test_the_first_stop_string_to_be_complete():
    assert first_stop("a;b#", ("#", ";")) == (1, 2)
    assert first_stop("ab", ("b", "ab")) == (1, 2)  # of two that end together, the longer
    assert first_stop("ab", ("c",)) is None


def answer(body, says_why=True, text="2;4#"):
    """Writes a fixed text up to the first stop string that was sent."""
    found = [stop for stop in body.get("stop", ()) if stop in text]
    end = min((text.index(stop) for stop in found), default=len(text))
    shown = text[:end]
    spelled = list(shown) + ([text[end]] if found else [""])
    logprobs = {"tokens": spelled, "token_logprobs": [-0.5] * len(spelled)}
    one = {"text": shown, "finish_reason": "stop", "logprobs": logprobs}
    reason = text[end] if found else None
    return [{**one, "stop_reason": reason} if says_why else one for _ in range(body["n"])]


def remote(url, **options):
    connection = Connection(model="tiny", **options)
    return TextEngine(url, TOKENIZER, connection=connection, seed=4, stops=(("#",), (";", "#")))


@pytest.mark.parametrize("says_why", [True, False])
def test_a_server_ends_a_step_at_its_boundary_and_a_solution_at_its_end(says_why):
    requests = [Request(encoded("1+1="), 3, sample, 8, stop) for stop in (1, 0) for sample in range(2)]
    with serving(lambda body, _: answer(body, says_why)) as (url, seen):
        made = remote(url)
        step, _, whole, _ = sample_all(made, requests)
        assert made.stats().responses == 4 and {body["n"] for body in seen} == {2}
        # Where the server does not say why it stopped, only what ends every request is sent.
        assert {tuple(body["stop"]) for body in seen} == {("#",), (";", "#")}
    assert TOKENIZER.decode(step.tokens.tolist()) == "2;" and (step.end, step.stop_index) == ("stop", 0)
    np.testing.assert_allclose(step.logp, [-0.5, -0.5])
    text = TOKENIZER.decode(whole.tokens.tolist(), skip_special=True)
    if says_why:
        assert text == "2;4#" and (whole.end, whole.stop_index) == ("stop", 0)
    else:
        assert text == "2;4" and whole.end == "eos" and whole.tokens[-1] == TOKENIZER.eos_id
    assert len(whole.logp) == len(whole.tokens) and whole.logp.sum() == pytest.approx(-2.0)


def test_samples_of_a_prompt_differ_in_their_seeds():
    requests = [Request(encoded("1+1="), 3, sample, 8) for sample in range(3)]
    with serving(lambda body, _: answer(body)) as (url, seen):
        sample_all(remote(url, at_once=1), requests)
        alone = sorted(body["seed"] for body in seen)
        seen.clear()
        sample_all(remote(url), requests[1:])
        assert len(set(alone)) == 3 and [body["seed"] for body in seen] == alone[1:2] and seen[0]["n"] == 2


def test_log_probabilities_of_other_tokens_keep_their_sum():
    def merged(body, _):
        spelled = {"tokens": ["2;", "4#"], "token_logprobs": [-1.0, -2.0]}
        return [{"text": "2;4#", "finish_reason": "length", "logprobs": spelled}]

    with serving(merged) as (url, _):
        (whole,) = sample_all(TextEngine(url, TOKENIZER, model="tiny"), [Request(encoded("1="), 0, 0, 8)])
    np.testing.assert_allclose(whole.logp, [-1, 0, -2, 0])
    with serving(lambda body, _: [{"text": "2", "finish_reason": "stop"}]) as (url, _):
        (bare,) = sample_all(remote(url, logprobs=False), [Request(encoded("1="), 0, 0, 8)])
        assert bare.logp is None and bare.end == "eos"
        assert np.isnan(generate_with(remote(url, logprobs=False), ["1="], max_new_tokens=4).logp[0, 0])


def test_one_failure_ends_the_other_requests_and_the_engine_can_be_used_again():
    good = []
    with serving(lambda body, _: answer(body) if good else [{"text": 3}]) as (url, seen):
        made = remote(url, workers=1)
        requests = [Request(encoded("1="), i, 0, 8) for i in range(20)]
        with pytest.raises(UserError, match='without "text"'):
            sample_all(made, requests)
        assert made.poll() == [] and len(seen) < 20
        good.append(True)
        assert len(sample_all(made, requests)) == 20


def test_what_a_server_cannot_do():
    with pytest.raises(UserError, match="has no top_k"):
        TextEngine("http://localhost:1", TOKENIZER, sampling=SamplingOptions(top_k=4))
    with pytest.raises(UserError, match="no environment variable 'NO_SUCH_KEY'"):
        TextEngine("http://localhost:1", TOKENIZER, connection=Connection(key_from="NO_SUCH_KEY"))
    with pytest.raises(UserError, match="cannot be given other weights"):
        TextEngine("http://localhost:1", TOKENIZER).update({}, 1)


def test_steps_of_a_policy_are_cut_as_the_task_cuts_them(model):
    task = CarryTask(3, 4)
    made = engine(model, stops=stop_sets(task))
    policy = TaskPolicy(made, task, StepOptions(step_tokens=6, max_new_tokens=20))
    policy.begin([task.eval[0]], 0)
    tokens = tuple(TOKENIZER.encode("1+2=3;3+4=7#7", add_special=False))
    pieces = policy.split(Partial(0, ((*tokens, TOKENIZER.eos_id),)))
    assert [TOKENIZER.decode(list(piece), skip_special=True) for piece in pieces] == list(
        policy.texts(Partial(0, (tokens,)))
    )
    assert sum(pieces, ()) == (*tokens, TOKENIZER.eos_id) and policy.split(Partial(0)) == []
    ((one, two), (three, _)) = policy.propose([Ask(Partial(0), 0), Ask(Partial(0), 1)], 2, False)
    assert len({one.tokens, two.tokens, three.tokens}) == 3
    with pytest.raises(ValueError, match="request number 16384"):
        policy.propose([Ask(Partial(0), 1 << 14)], 1, False)
    with pytest.raises(ValueError, match="by stop_sets"):
        TaskPolicy(engine(model), task, StepOptions())
