"""Engines on servers that exchange token ids, against stand-ins with the field names of vLLM, SGLang and llama.cpp."""

import threading
import time

import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.rollouts import Connection, RemoteEngine, Request, SamplingOptions, generate_with, sample_all
from prm_jax.rollouts.dialects import TokenRequest
from prm_jax.rollouts.llama_dialect import LlamaDialect
from tests.rollouts.completion_server import Answer, serving
from tests.rollouts.token_servers import LOGP, TOKENIZER, FakeLlama, FakeSglang, FakeVllm

KINDS = {"vllm": FakeVllm, "sglang": FakeSglang, "llama.cpp": FakeLlama}
PROMPT = tuple(TOKENIZER.encode("1+1="))


def engine(url, **options):
    connection = Connection(**{"backoff": 0.01, "retries": 2, **options.pop("connection", {})})
    return RemoteEngine(
        url, options.pop("model", ""), TOKENIZER, connection=connection, seed=7, stops=((), (";", "#")), **options
    )


def asked(count, *, prompt_id=3, stop=1, tokens=12):
    return [Request(PROMPT, prompt_id, sample, tokens, stop) for sample in range(count)]


@pytest.fixture(params=KINDS)
def fake(request):
    made = KINDS[request.param]()
    made.kind = request.param
    with made.running() as url:
        made.url = url
        yield made


def test_token_ids_in_and_out(fake):
    made = engine(fake.url)
    assert made.server.dialect.name == fake.kind
    found = sample_all(made, asked(24))
    ends = {one.end for one in found}
    assert {"eos", "stop"} <= ends <= {"eos", "stop", "length"}
    for one in found:
        assert one.tokens.dtype == np.int32 and len(one.tokens) == len(one.logp) == len(one.version)
        assert one.sampled.all() and one.logp[0] <= LOGP
        text = TOKENIZER.decode(one.tokens.tolist(), skip_special=True)
        if one.end == "stop":  # the stop string's token is part of the response, with its log-probability
            assert text[-1] == (";", "#")[one.stop_index] and not set(text[:-1]) & set(";#")
        if one.end == "eos":
            assert one.tokens[-1] == TOKENIZER.eos_id
    assert len({tuple(one.tokens) for one in found}) > 10  # seeds differ
    assert made.stats().responses == 24 and made.stats().tokens == sum(len(one.tokens) for one in found)
    again = sample_all(engine(fake.url), asked(24)[::-1])
    for one, other in zip(found, again[::-1], strict=True):  # neither order nor engine matters
        np.testing.assert_array_equal(one.tokens, other.tokens)
    samples = generate_with(made, ["1+1="], samples_per_prompt=2, max_new_tokens=6)
    assert np.isfinite(samples.logp).all()


def test_all_settings_are_always_sent(fake):
    made = engine(fake.url, sampling=SamplingOptions(temperature=1.0, top_k=5, top_p=0.9))
    sample_all(made, asked(1))
    body = fake.asked[0].get("sampling_params", fake.asked[0])
    for name in ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "stop"):
        assert name in body, name
    assert (body["top_k"], body["top_p"], body["min_p"]) == (5, 0.9, 0.0)
    ids = fake.asked[0].get("input_ids", fake.asked[0].get("prompt"))
    assert ids == list(PROMPT)


def test_log_probabilities_at_another_temperature_are_unknown(fake):
    said = []
    made = engine(fake.url, sampling=SamplingOptions(temperature=0.7), say=said.append)
    (one,) = sample_all(made, asked(1))
    if fake.kind == "sglang":
        assert one.logp is not None and not said
    else:
        assert one.logp is None and "behaviour's log-probabilities are unknown" in said[0]
        (kept,) = sample_all(engine(fake.url, sampling=SamplingOptions(0.7), keep_raw_logp=True), asked(1))
        np.testing.assert_array_equal(kept.logp, one.server_logp)
    assert one.server_logp is not None


def test_a_server_that_is_busy_or_hangs_up_is_asked_again(fake):
    half = Answer(200, b'{"choices": [{"tex', {"Content-Length": "1000"})
    fails = [Answer(503, {"error": {"message": "loading"}}), "hang up", half]
    fake.faults = lambda body, number: fails.pop() if number % 2 and fails else None
    found = sample_all(engine(fake.url, connection={"workers": 1, "retries": 3}), asked(6, stop=0))
    assert len(found) == 6 and not fails and len(fake.asked) == 9
    fake.faults = lambda body, number: Answer(503, {"error": {"message": "loading"}})
    with pytest.raises(UserError, match="HTTP 503: loading; asked 3 times"):
        sample_all(engine(fake.url), asked(1))


def test_completed_responses_are_kept_when_the_server_fails(fake):
    fake.faults = lambda body, number: Answer(400, {"error": {"message": "no"}}) if number > 3 else None
    made = engine(fake.url, connection={"workers": 1})
    tickets = made.submit(asked(6, stop=0))
    found = []
    with pytest.raises(UserError, match="refused the request, HTTP 400: no"):
        while True:
            found += made.poll()
    assert [ticket for ticket, _ in found] == tickets[:3]
    assert made.poll() == []
    fake.faults = lambda body, number: None
    assert len(sample_all(made, asked(6))) == 6  # the engine can be used again


def test_a_server_that_restarts_is_waited_for():
    fake, said = FakeLlama(), []
    with fake.running() as url:
        made = engine(url, say=said.append, connection={"workers": 1, "patience": 20})
        sample_all(made, asked(2))
    port = int(url.rpartition(":")[2])
    tickets = made.submit(asked(2))
    time.sleep(0.2)
    with fake.running(port):
        found = []
        while len(found) < 2:
            found += made.poll()
    assert sorted(ticket for ticket, _ in found) == tickets
    assert "waiting for" in said[0] and "answers again" in said[-1]
    made.submit(asked(1))
    with pytest.raises(UserError, match="has not answered for"):
        made.server.client._connection = Connection(patience=0.0, retries=0)
        made.poll()


def test_one_sample_is_not_asked_for_twice(fake):
    made = engine(fake.url)
    with pytest.raises(UserError, match="sample 0 of prompt 3 is asked for twice"):
        made.submit([*asked(2), *asked(1)])
    assert made.stats().requests == 0
    greedy = engine(fake.url, sampling=SamplingOptions(temperature=0.0))
    assert len(sample_all(greedy, [*asked(1), *asked(1)])) == 2


def test_samples_that_are_all_the_same_are_reported(fake):
    said = []
    fake.faults = lambda body, number: body.update(seed=5) or body.get("sampling_params", {}).update(sampling_seed=5)
    sample_all(engine(fake.url, say=said.append), asked(16, stop=0, tokens=30))
    assert len(said) == 1 and "seems to ignore the seeds" in said[0]


BROKEN = {
    "vllm": [
        (lambda a: a["choices"][0].pop("token_ids"), "return_token_ids"),
        (lambda a: a["choices"][0]["token_ids"].insert(0, 3), "log-probabilities for"),
        (lambda a: a["choices"][0].update(prompt_token_ids=[1, *PROMPT]), "must not add a beginning-of-text token"),
        (lambda a: a.update(choices=[]), "0 completions: expected 1"),
        (lambda a: a["choices"][0]["logprobs"].update(token_logprobs=None), 'as "token_logprobs"'),
        (lambda a: a["choices"][0].update(text="other"), "another tokenizer"),
        (lambda a: a.update(model="other"), "instead of 'tiny'; asked 3 times"),
        (lambda a: a["choices"][0].update(finish_reason="abort"), "ended the request early"),
    ],
    "sglang": [
        (lambda a: a.pop("meta_info"), 'as "meta_info"'),
        (lambda a: a["meta_info"].update(prompt_tokens=9), "read a prompt of 9 tokens"),
        (lambda a: a["meta_info"].update(output_token_logprobs=[[-1.0, None, "a"]]), "expected .log-probability, id"),
        (lambda a: a["meta_info"]["output_token_logprobs"][0].__setitem__(0, float("nan")), "as the log-probability"),
        (lambda a: a["meta_info"].update(weight_version="9"), "weights '9' instead of 'default'"),
        (lambda a: a["meta_info"].update(finish_reason={"type": "abort"}), "ended the request early"),
        (lambda a: a.update(output_ids=[2]), "other ids in output_ids"),
    ],
    "llama.cpp": [
        (lambda a: a.pop("tokens"), "too old for return_tokens"),
        (lambda a: a.pop("completion_probabilities"), "expected one for every token"),
        (lambda a: a["completion_probabilities"].insert(0, {"id": 1, "logprob": -1.0}), "expected one for every token"),
        (lambda a: a.update(model="/models/other.gguf"), "'other.gguf' instead of 'tiny.gguf'"),
        (lambda a: a.update(stop_type="none"), "ended the request early"),
        (lambda a: a.update(content="zzz"), "another tokenizer"),
    ],
}


@pytest.mark.parametrize(("kind", "change", "message"), [(k, *case) for k in BROKEN for case in BROKEN[k]])
def test_answers_that_cannot_be_used(kind, change, message):
    fake = KINDS[kind]()
    fake.change = lambda answer: change(answer) and answer or answer
    with fake.running() as url, pytest.raises(UserError, match=message):
        sample_all(engine(url), asked(1, stop=0))


def test_end_tokens_of_another_tokenizer(fake):
    def other(answer):
        for ids in (answer.get("tokens"), answer.get("output_ids"), answer.get("choices", [{}])[0].get("token_ids")):
            for i, token in enumerate(ids or ()):
                ids[i] = 3 if token == TOKENIZER.eos_id else token
        for pair in answer.get("meta_info", {}).get("output_token_logprobs", ()):
            pair[1] = 3 if pair[1] == TOKENIZER.eos_id else pair[1]
        for one in answer.get("completion_probabilities", ()):
            one["id"] = 3 if one["id"] == TOKENIZER.eos_id else one["id"]
        return answer

    fake.change = other
    with pytest.raises(UserError, match="not an end token of the tokenizer"):
        sample_all(engine(fake.url), asked(24))


def test_servers_that_cannot_be_used():
    with pytest.raises(UserError, match="no server answers at http://localhost:1"):
        engine("http://localhost:1")
    with serving(lambda body, number: []) as (url, _), pytest.raises(UserError, match="exchanges text, not token ids"):
        engine(url)
    with FakeVllm().running() as url, pytest.raises(UserError, match="serves the models tiny, not 'big'"):
        engine(url, model="big")
    fake = FakeLlama()
    page = fake.page
    fake.page = lambda path: (
        {"data": [{"owned_by": "llamacpp", "meta": {"n_vocab": 3}}]} if "models" in path else page(path)
    )
    with fake.running() as url, pytest.raises(UserError, match="vocabulary of 3 tokens"):
        engine(url)
    with FakeLlama().running() as url, pytest.raises(UserError, match="exceeds the model's context of 64"):
        engine(url).submit(asked(1, tokens=100))


def test_extended_responses(fake):
    made = engine(fake.url, hold=(1,))
    tickets = made.submit(asked(24))
    found = {}
    while len(found) < 24:
        found.update(made.poll())
    ticket = next(t for t in tickets if found[t].end == "stop")
    first, forced = found[ticket], TOKENIZER.encode("14")
    made.extend(ticket, forced, max_new_tokens=40)
    ((again, whole),) = made.poll()
    assert again == ticket and whole.tokens[: len(first.tokens) + 2].tolist() == [*first.tokens.tolist(), *forced]
    given = slice(len(first.tokens), len(first.tokens) + 2)
    assert not whole.sampled[given].any() and whole.sampled.sum() == len(whole.tokens) - 2
    assert (whole.logp[given] == 0).all() and len(whole.logp) == len(whole.tokens)
    sent = fake.asked[-1].get("input_ids", fake.asked[-1].get("prompt"))
    assert sent[: len(PROMPT) + len(first.tokens)] == [*PROMPT, *first.tokens.tolist()]
    with pytest.raises(UserError, match="cannot be extended"):
        made.extend(10**6, forced, max_new_tokens=40)


def test_cancelled_requests_end_on_the_server():
    fake = FakeSglang()
    fake.slowly = True
    with fake.running() as url:
        made = engine(url)
        tickets = made.submit(asked(3))
        while len(fake.slow) < 3:
            time.sleep(0.01)
        fake.slowly = False
        found = dict(made.cancel(tickets[:2]))
        assert {one.end for one in found.values()} == {"cancelled"} and set(found) == set(tickets[:2])
        assert all(len(one.tokens) == 1 and len(one.logp) == 1 for one in found.values())  # what it had written
        fake.slow.clear()  # aborted by the server itself: asked again
        ((ticket, one),) = made.poll()
        assert ticket == tickets[2] and one.end != "cancelled"
        assert made.cancel(tickets) == [] and made.stats().responses == 3


def test_requests_that_were_not_sent_yet_are_cancelled_at_once():
    fake = FakeSglang()
    fake.slowly = True
    with fake.running() as url:
        made = engine(url, connection={"workers": 1})
        tickets = made.submit(asked(3))
        while not fake.slow:
            time.sleep(0.01)
        begun = time.monotonic()
        found = dict(made.cancel(tickets))
        assert time.monotonic() - begun < 5 and len(fake.asked) == 1
        assert [len(found[ticket].tokens) for ticket in tickets] == [1, 0, 0]


def test_cancelling_closes_the_connection():
    release = threading.Event()
    fake = FakeVllm()
    fake.faults = lambda body, number: release.wait(10) and None if number == 1 else None
    with fake.running() as url:
        made = engine(url)
        (ticket,) = made.submit(asked(1))
        while not fake.asked:
            time.sleep(0.01)
        begun = time.monotonic()
        ((gone, one),) = made.cancel([ticket])
        assert gone == ticket and len(one.tokens) == 0 and time.monotonic() - begun < 5
        release.set()
        assert made.poll(timeout=0.05) == []
        assert len(sample_all(made, asked(2))) == 2


def test_polling_ends_in_time():
    fake = FakeVllm()
    fake.faults = lambda body, number: time.sleep(0.3)
    with fake.running() as url:
        made = engine(url)
        made.submit(asked(1))
        begun = time.monotonic()
        assert made.poll(timeout=0.05) == [] and time.monotonic() - begun < 0.25
        assert len(made.poll()) == 1


def test_llama_cpp_sends_no_log_probabilities_inside_characters():
    pieces = [b"a", "🌱".encode()[:2], "🌱".encode()[2:3], "🌱".encode()[3:], "ぁ".encode()[:1], b"\x81", b"b"]
    request = TokenRequest((1,), 9, token_bytes=lambda token: pieces[token])
    # The last two of "ぁ" (e3 81 81) are the same token: the second has the log-probability.
    tokens = [0, 1, 2, 3, 4, 5, 5, 6]
    sent = [{"id": token, "logprob": -float(i)} for i, token in enumerate([0, 3, 5, 6], 1)]
    answer = {"tokens": tokens, "content": "a", "stop_type": "limit", "completion_probabilities": sent}
    found = LlamaDialect().read(answer, request, "here")
    assert found.logp == (-1.0, None, None, -2.0, None, None, -3.0, -4.0)
    stopped = {**answer, "stop_type": "word", "stopping_word": "b", "completion_probabilities": sent[:2]}
    assert LlamaDialect().read(stopped, request, "here").logp[3:] == (-2.0, None, None, None, None)
    with pytest.raises(UserError, match="expected one for every token"):
        LlamaDialect().read({**answer, "completion_probabilities": sent[:2]}, request, "here")
