"""The server of a run: new weights, keys and temperatures between uses, against a stand-in that runs the model."""

import dataclasses

import jax
import numpy as np
import pytest

from prm_jax.errors import UserError
from prm_jax.models import LoRAConfig, init_lora, join
from prm_jax.rollouts import Connection, RemoteSource, Request, SamplingOptions, ServerOptions, sample_all
from tests.models.checkpoints import CONFIGS, random_params, write_gguf
from tests.rollouts.token_servers import LLAMAS, TOKENIZER, FakeLlama, ModelSglang

CONFIG = dataclasses.replace(
    CONFIGS["llama"], vocab_size=TOKENIZER.vocab_size, rope_scaling=None, max_position_embeddings=64
)
PROMPTS = [TOKENIZER.encode("1+1="), TOKENIZER.encode("1+2+3=")]


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jax.numpy.asarray, random_params(CONFIG))


def source(url, folder, **options):
    own = {name: options.pop(name) for name in ("model_path", "adapters") if name in options}
    return RemoteSource(
        url, CONFIG, TOKENIZER, ("#",), options=ServerOptions(folder=str(folder), precision="float32", **options),
        connection=Connection(backoff=0.01, retries=1), probe_prompts=PROMPTS, **own,
    )  # fmt: skip


def draw(made, params, key=0, sampling=SamplingOptions()):
    engine = made.prepare(params, sampling)
    made.draw_with(jax.random.key(key))
    requests = [Request(tuple(p), i, sample, 8) for i, p in enumerate(PROMPTS) for sample in range(2)]
    return sample_all(engine, requests)


def test_weights_keys_and_temperatures_change_between_uses(tmp_path, params):
    other = jax.tree.map(lambda x: x + 0.2 * np.sign(x), params)
    with (fake := ModelSglang()).running() as url:
        made = source(url, tmp_path)
        first = draw(made, params)
        again = draw(made, params)
        for one, two in zip(first, again, strict=True):
            np.testing.assert_array_equal(one.tokens, two.tokens)
        assert [path for path, _ in fake.posts] == ["/update_weights_from_disk"]  # the same weights are sent once
        assert any(len(a.tokens) != len(b.tokens) or (a.tokens != b.tokens).any()
                   for a, b in zip(first, draw(made, params, key=1), strict=True))  # fmt: skip
        greedy = draw(made, params, sampling=SamplingOptions(0.0))
        np.testing.assert_array_equal(greedy[0].tokens, greedy[1].tokens)
        metrics = made.metrics()
        assert metrics["rollout/server_difference"] < 1e-4 and metrics["rollout/server_update_seconds"] > 0
        assert draw(made, other)[0].version[0] == 2 and fake.version == "2"
        fake.frozen = True  # the server keeps these weights, but says that it has the new ones
        with pytest.raises(UserError, match="the server has other weights"):
            draw(made, params)


def test_adapters_are_the_default_where_there_are_any(tmp_path, params):
    adapted = join(params, init_lora(CONFIG, params, jax.random.key(0), LoRAConfig(2, CONFIG.lora_alpha)))
    with (fake := ModelSglang()).running() as url:
        fake.use(CONFIG, params)
        draw(source(url, tmp_path, adapters=True), adapted)
        assert fake.posts[0][0] == "/load_lora_adapter" and fake.asked[-1]["lora_path"] == "policy-1"
        draw(source(url, tmp_path, adapters=True), adapted)  # a resumed run begins with the same names
        paths = [path for path, _ in fake.posts]
        assert paths == ["/load_lora_adapter"] * 2 + ["/unload_lora_adapter", "/load_lora_adapter"]


def test_a_server_that_is_restarted(tmp_path, params):
    write_gguf(tmp_path / "like.gguf", CONFIG, random_params(CONFIG))
    fake = FakeLlama()
    with fake.running() as url:
        LLAMAS[:] = [(fake, url)]
        hook = "tests.rollouts.token_servers:restart_llama"
        made = source(url, tmp_path / "f", restart=hook, model_path=str(tmp_path / "like.gguf"), probe=0)
        draw(made, params)
        assert fake.file == str(tmp_path / "f" / "policy-v0.gguf")
        draw(made, jax.tree.map(lambda x: x * 2, params))
        assert fake.file == str(tmp_path / "f" / "policy-v1.gguf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": ""}, "needs a folder for the policy's weights"),
        ({"weights": "adapter"}, "the policy has no adapters; give --model.lora-rank"),
        ({"weights": "restart"}, "needs --rollout.server.restart"),
        ({"restart": "llama-server -m {model}", "model_path": "."}, "a GGUF file of the same model"),
        ({"restart": "llama-server -m file", "model_path": "m.gguf"}, "expected a command with {model}"),
        ({"restart": "no_such:thing", "model_path": "m.gguf"}, "no_such"),
    ],
)
def test_options_that_cannot_work(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        source("http://localhost:1", options.pop("folder", tmp_path), **options)
