"""The client of completion servers against a server in this process: answers, failures, delays, nonsense."""

import contextlib
import socket
import threading
import time

import pytest

from prm_jax.errors import UserError
from prm_jax.rollouts import CompletionRequest, CompletionServer
from tests.rollouts.completion_server import Answer, serving

ASK = CompletionRequest("1+1=", 2, 8, stop=(";",), temperature=0.7, top_p=0.9, seed=5)


def choice(text="2;", finish="length", logp=-0.5, **more):
    return {"text": text, "finish_reason": finish, "logprobs": {"tokens": [text], "token_logprobs": [logp]}, **more}


def tokens(texts, logps):
    return {"text": "2;", "finish_reason": "length", "logprobs": {"tokens": texts, "token_logprobs": logps}}


def client(url, **options):
    return CompletionServer(url, "tiny", **{"backoff": 0.01, "retries": 2, "timeout": 5.0, **options})


def test_requests_and_answers():
    with serving(lambda body, _: [choice(f"{body['prompt']}{i}") for i in range(body["n"])]) as (url, seen):
        asks = [ASK._replace(prompt=str(i), n=i + 1) for i in range(5)]
        found = client(f"{url}/v1/", key="secret").complete(asks)
        assert [[one.text for one in own] for own in found] == [[f"{i}{j}" for j in range(i + 1)] for i in range(5)]
        assert found[0][0] == ("00", "length", None, (("00", -0.5),))
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


def test_slow_answers_time_out_and_are_asked_again():
    gone = threading.Event()
    with serving(lambda body, number: gone.wait(5) and None if number < 3 else [choice()]) as (url, seen):
        begun = time.monotonic()
        assert client(url, timeout=0.1).complete([ASK._replace(n=1)]) and len(seen) == 3
        with pytest.raises(UserError, match="no complete answer within 0.1 s; asked once"):
            seen.clear()
            client(url, timeout=0.1, retries=0).complete([ASK._replace(n=1)])
        assert time.monotonic() - begun < 4
        gone.set()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(400, {"error": {"message": "no such model"}}), "refused the request, HTTP 400: no such model"),
        (Answer(404, b""), "HTTP 404: Not Found"),
        (Answer(200, b"<html>welcome"), "did not answer with JSON: b'<html>welcome'"),
        (Answer(200, {"object": "list"}), 'without "choices"'),
        (Answer(200, [1]), 'without "choices"'),
        ([choice()], "1 completions instead of 2"),
        ([choice()] * 3, "3 completions instead of 2"),
        ([choice(), {"finish_reason": "stop"}], 'without "text"'),
        ([choice(), choice(finish="content_filter")], "for the reason 'content_filter'"),
        ([choice(), {**choice(), "logprobs": None}], "no log-probabilities"),
        ([choice(), choice(logp=None)], "None as the log-probability of the token '2;'"),
        ([choice(), choice(logp=True)], "True as the log-probability"),
        ([choice(), choice(logp=-(10**400))], "-1000.* as the log-probability"),
        ([choice(), choice(logp="-0.5")], "-0.5 as the log-probability"),
        ([choice(), tokens(["2", ";"], [-0.5])], "1 log-probabilities for 2 tokens"),
        ([choice(), tokens(["2"], [-0.5])], "do not spell its text: '2' instead of '2;'"),
        ([choice(), tokens([], [])], "do not spell its text: '' instead of '2;'"),
        ([choice(), tokens(["un", "related"], [-0.5, -1])], "do not spell its text: 'unrelated' instead"),
        ([choice(), tokens(["2", ";", "a", "b", "c"], [-1] * 5)], "3 log-probabilities for tokens after the end"),
        ([choice(), tokens(["2", ";", *"aaaaaaaa"], [-1] * 10)], "10 log-probabilities for a completion of at most 8"),
        ([choice(), tokens(["2", 7], [-1, -1])], "-1 as the log-probability of the token '7'"),
        ([choice(), choice(finish="stop", stop_reason="\x1b[2Jboo")], r"stopped a completion at '\\\\x1b\[2Jboo'"),
        ([choice(index=1), choice(index=1)], r"numbered its completions \[1, 1\]: expected each index from 0 to 1"),
        ([choice(index=0), choice(index=True)], r"numbered its completions \[0, True\]"),
        ([choice(index=0), choice(index=10**300)], r"numbered its completions \[0, 1000"),
        ([choice(index=0), choice(index=None)], r"numbered its completions \[0\]"),
        (Answer(200, {"model": "other", "choices": [choice()] * 2}), "as the model 'other' instead of 'tiny'"),
        (Answer(200, b'{"choices": ' + b"9" * 5000 + b"}"), "did not answer with JSON"),
        (Answer(200, b"[" * 100_000), "did not answer with JSON"),
        (Answer(400, {"error": {"message": "no\x1b]0;title\x07\x1b[2J"}}), r"no\\x1b\]0;title\\x07\\x1b\[2J; if"),
        (Answer(400, b"\x1b[31m" * 1000), r"^[^\x1b]*$"),
        ([choice(), choice(logp=float("nan"))], "nan as the log-probability"),
        ([choice(), choice(logp=5.0)], "5.0 as the log-probability .*: expected .* at most 0"),
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


ADDRESSES = [
    "localhost:8000", "ftp://host", "", "http://", "http://[::1", "http://host:99999", "http://host:0", "http://h:x",
    "http://a b", "http://a\nb", "http://h\u00e9te", f"http://{'a' * 64}", "http://a..b", "http://\x1b[2J",
]  # fmt: skip


@pytest.mark.parametrize("url", ADDRESSES)
def test_odd_addresses_are_refused(url):
    with pytest.raises(UserError, match="is not the address of a server"):
        CompletionServer(url, "tiny")


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": float("nan")}, {"timeout": float("inf")}, {"backoff": float("nan")}, {"retries": -1}],
)
def test_bad_options(options):
    with pytest.raises(UserError, match="timeout > 0"):
        CompletionServer("http://localhost:1", "tiny", **options)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://me:secret@host", "holds a user name or password"),
        ("http://host/?key=1", "has a query or fragment"),
        ("http://host/#top", "has a query or fragment"),
    ],
)
def test_addresses_with_more_than_a_path_are_refused(url, message):
    with pytest.raises(UserError, match=message) as raised:
        CompletionServer(url, "tiny")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("key", ["two words", "line\n", "sp\u00e9cial", "\x00", "a\r\nX-Other: 1"])
def test_keys_that_no_header_can_hold_are_refused(key):
    with pytest.raises(UserError, match=f"API key of {len(key)} characters holds white space") as raised:
        CompletionServer("http://localhost:1", "tiny", key=key)
    assert key not in str(raised.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_does_not_follow_redirects(status):
    with serving(lambda body, _: [choice()]) as (other, stolen):
        with serving(lambda body, _: Answer(status, b"", {"Location": f"{other}/v1/completions"})) as (url, seen):
            with pytest.raises(UserError, match=f"HTTP {status}: it redirects to {other}/v1/completions; give that"):
                client(url, key="secret").complete([ASK])
        assert len(seen) == 1 and not stolen


@pytest.mark.parametrize("name", ["tiny", "tiny:20260101", "/models/tiny", None, "", 7])
def test_names_under_which_a_server_may_answer(name):
    answer = {"choices": [choice()] * 2} | ({} if name is None else {"model": name})
    with serving(lambda body, _: Answer(200, answer)) as (url, _):
        assert client(url).complete([ASK])
    with serving(lambda body, _: Answer(200, answer | {"model": "other"})) as (url, _):
        assert client(url, any_model=True).complete([ASK])


def test_tokens_of_parts_of_characters_and_of_another_spelling_of_spaces():
    cases = [
        ("\u00e9", ["\ufffd", "\ufffd"]), ("\u00e9", ["bytes:\\xc3", "bytes:\\xa9"]), (" 2;", ["\u25812", ";"]),
        ("2;", [" 2", ";"]), ("2", ["2", ";", ""]),
    ]  # fmt: skip
    for text, spelled in cases:
        one = {**tokens(spelled, [-1.0] * len(spelled)), "text": text}
        with serving(lambda body, _, one=one: [one]) as (url, _):
            ((found,),) = client(url).complete([ASK._replace(n=1)])
            assert found.text == text and len(found.logps) == len(spelled)


@contextlib.contextmanager
def raw_server(send):
    """A server that reads a request and then calls `send(connection)`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=one, args=(connection,), daemon=True).start()

        def one(connection):
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                send(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
             b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n"],
    ids=["status", "headers", "body", "body without a length", "error"],
)  # fmt: skip
def test_the_deadline_is_for_the_whole_answer(head):
    def drip(connection):
        connection.sendall(head)
        for _ in range(200):
            connection.sendall(b"a")
            time.sleep(0.02)

    with raw_server(drip) as url:
        begun = time.monotonic()
        with pytest.raises(UserError, match="no complete answer within 0.3 s; asked once|HTTP 500: .*; asked once"):
            client(url, timeout=0.3, retries=0).complete([ASK])
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"Content-Length: 99999999999\r\n\r\n", "its answer has 99999999999 bytes, more than the"),
        (b"Content-Length: " + b"9" * 300 + b"\r\n\r\n", "its answer has 9999"),
        (b"\r\n", r"its answer exceeds the \d+ bytes that were expected"),
    ],
)
def test_answers_without_end_are_not_read_into_memory(head, message):
    sent = []

    def flood(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + head)
        for _ in range(64):
            connection.sendall(b" " * (1 << 20))
            sent.append(1)

    with raw_server(flood) as url, pytest.raises(UserError, match=message):
        client(url, retries=0).complete([ASK])
    assert len(sent) < 32


@pytest.mark.parametrize(
    "answer",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}", b"HTTP/1.1 999999 OK\r\n\r\n",
     b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
     b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"],
    ids=["no http", "cut off", "status", "headers", "chunks", "header"],
)  # fmt: skip
def test_broken_http(answer):
    with raw_server(lambda connection: connection.sendall(answer)) as url:
        with pytest.raises(UserError, match="asked twice|asked 2 times") as raised:
            client(url, retries=1).complete([ASK])
    assert "\r" not in str(raised.value)


@pytest.mark.parametrize("after", ["1e999", "nan", "-5", "soon", "Wed, 21 Oct 2065 07:28:00 GMT"])
def test_odd_times_to_wait(after):
    def answer(body, number):
        return [choice()] * 2 if number == 2 else Answer(503, b"", {"Retry-After": after})

    if after == "1e999":
        with serving(answer) as (url, _), pytest.raises(UserError, match="asked once"):
            client(url, retries=0).complete([ASK])
        return
    with serving(answer) as (url, _):
        assert client(url).complete([ASK])


def test_a_first_request_that_is_hung_up_on_is_asked_again():
    with serving(lambda body, number: None if number < 3 else [choice()]) as (url, seen):
        assert client(url).complete([ASK._replace(n=1)]) and len(seen) == 3
