"""New weights for a server: what is written, what the server is told, and the probe that looks for them."""

import dataclasses
import json
import socket
import sys
import urllib.request

import jax
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import LoRAConfig, init_lora, join, load_weights
from prm_jax.rollouts import (
    AdapterUpdates,
    Connection,
    Folder,
    FullUpdates,
    Probe,
    RemoteEngine,
    Request,
    RestartUpdates,
    SamplingOptions,
    ServerProcess,
    sample_all,
)
from prm_jax.rollouts.weight_updates import _score
from tests.models.checkpoints import CONFIGS, random_params, write_gguf
from tests.rollouts.completion_server import Answer
from tests.rollouts.token_servers import TOKENIZER, FakeLlama, FakeSglang, FakeVllm

CONFIG = dataclasses.replace(
    CONFIGS["llama"], vocab_size=TOKENIZER.vocab_size, rope_scaling=None, max_position_embeddings=64
)
PROMPT = tuple(TOKENIZER.encode("1+1="))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jax.numpy.asarray, random_params(CONFIG))


@pytest.fixture(scope="module")
def adapted(params):
    lora = LoRAConfig(rank=2, alpha=CONFIG.lora_alpha)
    return join(params, init_lora(CONFIG, params, jax.random.key(0), lora))


def engine(url, **options):
    return RemoteEngine(url, "", TOKENIZER, connection=Connection(backoff=0.01, retries=1), seed=7, **options)


def ask(made, prompt_id=0):
    return sample_all(made, [Request(PROMPT, prompt_id, sample, 6) for sample in range(3)])


@pytest.mark.parametrize("kind", [FakeVllm, FakeSglang])
def test_adapters(kind, tmp_path, adapted):
    fake = kind()
    with fake.running() as url:
        made = engine(url, weights=AdapterUpdates(CONFIG, Folder(tmp_path / "own", tmp_path / "theirs"), base="tiny"))
        before = ask(made)
        for version in (1, 2, 3):
            made.update(adapted, version)
            found = ask(made)
            assert {int(x) for one in found for x in one.version} == {version}
            name = fake.asked[-1].get("lora_path", fake.asked[-1].get("model"))
            assert name == f"policy-{version}"
    assert any(not np.array_equal(a.tokens, b.tokens) for a, b in zip(before, found, strict=True))  # other seeds
    paths = [path.rpartition("/")[2] for path, _ in fake.posts]
    assert paths == [*["load_lora_adapter"] * 3, "unload_lora_adapter"]
    assert fake.posts[0][1] == {"lora_name": "policy-1", "lora_path": str(tmp_path / "theirs" / "policy-1")}
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["policy-2", "policy-3"]
    settings = json.loads((tmp_path / "own" / "policy-3" / "adapter_config.json").read_text())
    assert settings["r"] == 2 and settings["base_model_name_or_path"] == "tiny"


@pytest.mark.parametrize("kind", [FakeVllm, FakeSglang])
def test_whole_weights(kind, tmp_path, adapted):
    fake = kind()
    with fake.running() as url:
        weights = FullUpdates(CONFIG, TOKENIZER, Folder(tmp_path), dtype="float32")
        made = engine(url, weights=weights)
        for version in (1, 2, 3):
            made.update(adapted, version)
            assert fake.version == str(version) and len(ask(made)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "v2", "v3"]
    assert (tmp_path / "current").resolve() == (tmp_path / "v3").resolve()
    assert load_weights(tmp_path / "current")[0].num_layers == CONFIG.num_layers  # adapters are merged
    told = fake.posts[0][1].get("model_path")
    assert told in (None, str(tmp_path / "v1"))
    if kind is FakeVllm:
        paths = [path for path, _ in fake.posts[:6]]
        assert paths == [
            "/sleep?level=2", "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache",
            "/reset_prefix_cache", "/update_weight_version",
        ]  # fmt: skip


def test_a_server_that_keeps_old_weights(tmp_path, params):
    fake = FakeSglang()
    with fake.running() as url:
        made = engine(url, weights=FullUpdates(CONFIG, TOKENIZER, Folder(tmp_path), dtype="bfloat16"))
        fake.other = lambda path, body: Answer(200, {"success": False, "message": "no such directory"})
        with pytest.raises(UserError, match="SGLang did not accept the weights .*v1: no such directory"):
            made.update(params, 1)
        fake.other = lambda path, body: Answer(200, {"success": True})  # says so, and keeps the old ones
        made.update(params, 1)
        with pytest.raises(UserError, match="answered with the weights 'default' instead of '1'; asked 2 times"):
            ask(made)


def test_versions_do_not_mix_in_a_group(tmp_path, params):
    fake = FakeSglang()
    with fake.running() as url:
        weights = FullUpdates(CONFIG, TOKENIZER, Folder(tmp_path), dtype="float32")
        made = engine(url, weights=weights)
        made.submit([Request(PROMPT, 0, 0, 6)])
        with pytest.raises(UserError, match="1 requests are in progress while the weights change"):
            made.update(params, 1)
        held = engine(url, weights=weights, stops=(tuple("0123456789"),), hold=(0,))
        (ticket,) = held.submit([Request(PROMPT, 5, 2, 6)])
        assert held.poll()[0][1].end == "stop"
        held.update(params, 1)
        with pytest.raises(UserError, match="begun with the weights of version 0, and those of version 1 would"):
            held.extend(ticket, [5], max_new_tokens=12)
        mixed = engine(url, weights=weights, mixed_versions=True)
        sample_all(mixed, [Request(PROMPT, 0, 0, 6)])
        mixed.update(params, 1)
        (one,) = sample_all(mixed, [Request(PROMPT, 0, 1, 6)])
        assert one.version[0] == 1
        mixed._groups._mixed = False
        mixed.submit([Request(PROMPT, 1, 0, 6)])
        mixed.poll()
        mixed.version = 2
        mixed.submit([Request(PROMPT, 1, 1, 6)])
        with pytest.raises(UserError, match=r"prompt 1 come from the weights of versions \[1, 2\]"):
            mixed.poll()
    with fake.running() as url, pytest.raises(UserError, match="no way to hand weights to the server"):
        engine(url).update(params, 1)


def test_restarts(tmp_path, params):
    write_gguf(tmp_path / "like.gguf", CONFIG, random_params(CONFIG))
    fake, started = FakeLlama(), []
    with fake.running() as url:

        def restart(path):
            started.append(path)
            fake.file = path
            return url

        made = engine(
            url, weights=RestartUpdates(CONFIG, Folder(tmp_path / "f"), like=tmp_path / "like.gguf", restart=restart)
        )
        for version in (1, 2, 3):
            made.update(params, version)
            ask(made)
        assert started[-1] == str(tmp_path / "f" / "policy-v3.gguf")
        assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["policy-v2.gguf", "policy-v3.gguf"]
        fake.file = "/elsewhere/policy-v2.gguf"  # someone else starts it with an old file
        with pytest.raises(UserError, match="weights 'policy-v2.gguf' instead of 'policy-v3.gguf'"):
            ask(made)
        stubborn = engine(
            url,
            weights=RestartUpdates(CONFIG, Folder(tmp_path / "f"), like=tmp_path / "like.gguf", restart=lambda _: url),
        )
        with pytest.raises(UserError, match="started again and has the model 'policy-v2.gguf' instead of"):
            stubborn.update(params, 4)
    with FakeLlama().running() as url, pytest.raises(UserError, match="cannot load an adapter while it runs"):
        engine(url, weights=AdapterUpdates(CONFIG, Folder(tmp_path / "a"))).update(
            join(params, init_lora(CONFIG, params, jax.random.key(0), LoRAConfig(2, CONFIG.lora_alpha))), 1
        )


class ScoringSglang(FakeSglang):
    """Sends the log-probabilities of a model."""

    def __init__(self, params, temperature):
        super().__init__()
        self.params, self.temperature = params, temperature

    def respond(self, body):
        answer = super().respond(body)
        prompt, ids = body["input_ids"], [one[1] for one in answer["meta_info"]["output_token_logprobs"]]
        row = np.zeros((1, 16), np.int32)
        row[0, : len(prompt) + len(ids)] = prompt + ids
        logp = np.asarray(_score(CONFIG, self.params, row, row > -1, temperature=self.temperature))[0]
        pairs = zip(logp[len(prompt) : len(prompt) + len(ids)].tolist(), ids, strict=True)
        answer["meta_info"]["output_token_logprobs"] = [[x, i, None] for x, i in pairs]
        return answer


def test_the_probe(tmp_path, params):
    fake = ScoringSglang(params, 0.5)
    wrong = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    probe = Probe(CONFIG, [PROMPT, (*PROMPT, 5)], "float32", max_new_tokens=8)
    with fake.running() as url:
        made = engine(
            url, weights=FullUpdates(CONFIG, TOKENIZER, Folder(tmp_path), dtype="float32"), probe=probe,
            sampling=SamplingOptions(temperature=0.5),
        )  # fmt: skip
        made.update(params, 1)
        assert probe.difference < 1e-5
        (ticket,) = made.submit([Request(PROMPT, 0, 0, 6)])
        assert [got for got, _ in made.poll()] == [ticket]  # the probe's own responses are not among them
        fake.params = wrong
        with pytest.raises(UserError, match="differ from the policy's by .* the server has other weights, or its"):
            made.update(params, 2)
        fake.params, fake.temperature = params, 1.0
        with pytest.raises(UserError, match="at temperature 1, not 0.5; set --connection.logprobs-at one"):
            made.update(params, 3)


SERVER = """
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = sys.argv[2].encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
if sys.argv[2] == "broken": sys.exit("no such model")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
"""


def test_a_server_as_a_child_process(tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = f"{sys.executable} {tmp_path}/server.py {port} {{model}}"
    process = ServerProcess(command, url, log=tmp_path / "log", seconds=30)
    for model in ("one", "two"):
        assert process(model) == url
        assert urllib.request.urlopen(f"{url}/x").read().decode() == model
    with pytest.raises(UserError, match=r"ended with status 1 instead of serving broken: no such model \(.*log\)"):
        process("broken")
    process.close()
    with pytest.raises(UserError, match="expected a command with {model}"):
        ServerProcess("llama-server", url, log=tmp_path / "log")
    with pytest.raises(UserError, match="cannot start /no/such/server"):
        ServerProcess("/no/such/server {model}", url, log=tmp_path / "log")("x")
