"""A server that speaks SandboxFusion's protocol: results, failures, retries."""

import http.server
import json
import threading

import pytest

from prm_jax.errors import UserError
from prm_jax.verifiers.sandbox import CallTests, IOTests, Limits, RemoteSandbox, check_canaries
from prm_jax.verifiers.sandbox import remote as module


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        status, answer = self.server.answers.pop(0) if self.server.answers else (200, self.server.run(body))
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def finished(stdout="", code=0, stderr=""):
    return {
        "status": "Success" if code == 0 else "Failed",
        "run_result": {
            "status": "Finished", "execution_time": 0.1, "return_code": code, "stdout": stdout, "stderr": stderr,
        },
    }  # fmt: skip


def add_or_multiply(body):
    a, b = map(int, body["stdin"].split())
    return finished(f"{a + b if ' + ' in body['code'] else a * b}\n")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    made.answers, made.requests, made.run = [], [], add_or_multiply
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def sandbox_of(server):
    return RemoteSandbox(f"http://127.0.0.1:{server.server_address[1]}", limits=Limits(cpu_seconds=2, wall_seconds=3))


def test_canaries_and_tests(server):
    sandbox = sandbox_of(server)
    check_canaries(sandbox, calls=False)
    results = sandbox.check("print(int(input()) + int(input()))", IOTests(("1 2", "3 4"), ("3", "8")))
    assert [result.state for result in results] == ["pass", "fail"]
    assert server.requests[-1]["language"] == "python" and server.requests[-1]["run_timeout"] == 2
    assert "8" not in str(server.requests[-1])  # expected values stay here


def test_ends(server):
    sandbox = sandbox_of(server)
    server.answers += [(200, finished("x", 1, "Traceback\nValueError: no"))]
    run = sandbox.run("code")
    assert (run.state, run.status, run.detail) == ("crash", 1, "exit status 1: ValueError: no")
    server.answers += [(200, {"status": "Failed", "run_result": {"status": "TimeLimitExceeded"}})]
    assert sandbox.run("code").state == "timeout"


def test_failures_are_retried_then_masked(server):
    sandbox = sandbox_of(server)
    server.answers += [(500, {}), (200, b"not json"), (200, finished("7"))]
    assert sandbox.run("code").stdout == "7" and sandbox.failures == 2
    server.answers += [(200, {"status": "SandboxError", "message": "no worker"})] * 3
    run = sandbox.run("code")
    assert run.state == "infra_error" and "no worker" in run.detail


def test_function_tests_and_bad_addresses_are_refused(server):
    with pytest.raises(UserError, match="expected values"):
        sandbox_of(server).check("def f(): pass", CallTests(("assert f() is None",)))
    with pytest.raises(UserError, match="http://"):
        RemoteSandbox("localhost:8080")
