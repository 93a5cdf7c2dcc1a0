"""The client of completion servers against a server in this process: answers, failures, delays, nonsense."""

import socket
import threading
import time

import pytest

from prm_jax.errors import UserError
from prm_jax.search.server import CompletionRequest, CompletionServer
from tests.search.completion_server import Answer, serving

ASK = CompletionRequest("1+1=", 2, 8, stop=(";",), temperature=0.7, top_p=0.9, seed=5)


def choice(text="2;", finish="length", logp=-0.5, **more):
    return {"text": text, "finish_reason": finish, "logprobs": {"tokens": [text], "token_logprobs": [logp]}, **more}


def client(url, **options):
    return CompletionServer(url, "tiny", **{"backoff": 0.01, "retries": 2, "timeout": 5.0, **options})


def test_requests_and_answers():
    with serving(lambda body, _: [choice(f"{body['prompt']}{i}") for i in range(body["n"])]) as (url, seen):
        asks = [ASK._replace(prompt=str(i), n=i + 1) for i in range(5)]
        found = client(f"{url}/v1/", key="secret").complete(asks)
        assert [[one.text for one in own] for own in found] == [[f"{i}{j}" for j in range(i + 1)] for i in range(5)]
        assert found[0][0] == (f"{0}{0}", "length", None, (("00", -0.5),))
        first = next(body for body in seen if body["prompt"] == "0")
        assert first == {
            "model": "tiny", "prompt": "0", "n": 1, "max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 5,
            "stop": [";"], "logprobs": 1, "path": "/v1/completions", "key": "Bearer secret",
        }  # fmt: skip
        seen.clear()
        one_by_one = client(url, at_once=1, logprobs=False).complete([ASK._replace(prompt=[1, 2], stop=())])
        assert len(one_by_one[0]) == 2 and one_by_one[0][0].logps is None
        assert sorted(body["seed"] for body in seen) == [5, 6] and all(body["n"] == 1 for body in seen)
        assert all("stop" not in b and "logprobs" not in b and b["prompt"] == [1, 2] for b in seen)
        assert client(url).complete([]) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"finish": "length"}, ("length", None)),
        ({"finish": "stop"}, ("either", None)),
        ({"finish": "stop", "stop_reason": ";"}, ("stop", ";")),
        ({"finish": "stop", "stop_reason": None}, ("text", None)),
        ({"finish": "stop", "matched_stop": 2}, ("text", None)),
        ({"finish": "stop", "stop_type": "word", "stopping_word": ";"}, ("stop", ";")),
        ({"finish": "stop", "stop_type": "eos", "stopping_word": ""}, ("text", None)),
        ({"finish": "eos_token"}, ("text", None)),
        ({"finish": "stop_sequence"}, ("either", None)),
    ],
)
def test_why_a_completion_ended(fields, expected):
    with serving(lambda body, _: [choice(**fields)]) as (url, _):
        ((one,),) = client(url).complete([ASK._replace(n=1)])
    assert (one.end, one.matched) == expected


def test_log_probabilities_in_the_form_of_chats():
    content = {"content": [{"token": "2", "logprob": -0.25}, {"token": ";", "logprob": -1}]}
    with serving(lambda body, _: [{**choice(), "logprobs": content}]) as (url, _):
        ((one,),) = client(url).complete([ASK._replace(n=1)])
    assert one.logps == (("2", -0.25), (";", -1.0))


@pytest.mark.parametrize(
    "failure",
    [Answer(503, {"error": {"message": "busy"}}, {"Retry-After": "0.01"}), Answer(500, b"<html>"), None],
    ids=["busy", "failed", "hung up"],
)
def test_what_passes_is_asked_again(failure):
    def answer(body, number):
        return [choice()] if number in (1, 4) else failure

    with serving(answer) as (url, seen):
        server = client(url)
        assert server.complete([ASK._replace(n=1)]) == server.complete([ASK._replace(n=1)])
        assert len(seen) == 4
        with pytest.raises(UserError, match="asked 3 times"):
            server.complete([ASK._replace(n=1)])
        assert len(seen) == 7


def test_a_slow_answer_is_not_waited_for_for_ever():
    gone = threading.Event()
    with serving(lambda body, number: gone.wait(5) and None if number < 3 else [choice()]) as (url, seen):
        begun = time.monotonic()
        assert client(url, timeout=0.1).complete([ASK._replace(n=1)]) and len(seen) == 3
        with pytest.raises(UserError, match="no answer within 0.1 s; asked once"):
            seen.clear()
            client(url, timeout=0.1, retries=0).complete([ASK._replace(n=1)])
        assert time.monotonic() - begun < 4
        gone.set()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(400, {"error": {"message": "no such model"}}), "refused the request, HTTP 400: no such model"),
        (Answer(404, b""), "HTTP 404: Not Found"),
        (Answer(200, b"<html>welcome"), "what is no JSON: b'<html>welcome'"),
        (Answer(200, {"object": "list"}), 'without "choices"'),
        (Answer(200, [1]), 'without "choices"'),
        ([choice()], "1 completions, asked for 2"),
        ([choice()] * 3, "3 completions, asked for 2"),
        ([choice(), {"finish_reason": "stop"}], 'without "text"'),
        ([choice(), choice(finish="content_filter")], "for the reason 'content_filter'"),
        ([choice(), {**choice(), "logprobs": None}], "no log-probabilities"),
        ([choice(), choice(logp=None)], "None as the log-probability of the token '2;'"),
        ([choice(), choice(logp=float("nan"))], "nan as the log-probability"),
        ([choice(), choice(logp=5.0)], "5.0 as the log-probability .*: expected a number of at most 0"),
    ],
)
def test_answers_that_cannot_be_used(answer, message):
    with serving(lambda body, _: answer) as (url, seen):
        with pytest.raises(UserError, match=message):
            client(url).complete([ASK])
        assert len(seen) == 1  # asking again would not help


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"no server answers at http://127.0.0.1:{port}/v1/completions .*refused"):
            client(f"http://127.0.0.1:{port}").complete([ASK])


def test_one_failure_ends_all():
    def answer(body, _):
        return Answer(400, {"error": "too long"}) if body["prompt"] == "0" else Answer(503, b"", {"Retry-After": "30"})

    with serving(answer) as (url, _):
        begun = time.monotonic()
        with pytest.raises(UserError, match="too long"):
            client(url).complete([ASK._replace(prompt=str(i)) for i in range(4)])
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "", "http://"])
def test_no_address(url):
    with pytest.raises(UserError, match="no address of a server"):
        CompletionServer(url, "tiny")


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": float("nan")}, {"timeout": float("inf")}, {"backoff": float("nan")}, {"retries": -1}],
)
def test_bad_options(options):
    with pytest.raises(UserError, match="timeout > 0"):
        CompletionServer("http://localhost:1", "tiny", **options)


def test_a_first_request_that_is_hung_up_on_is_asked_again():
    with serving(lambda body, number: None if number < 3 else [choice()]) as (url, seen):
        assert client(url).complete([ASK._replace(n=1)]) and len(seen) == 3
