"""Random small models of every family in llama.cpp: its log-probs of given tokens against this package's.

Needs the package xllamacpp, a build of llama.cpp's server, and gguf.
"""

import dataclasses
import functools
import gc
import json
import math
import urllib.request

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from prm_jax.models import decoder_layers, load_weights, save_weights, token_logprobs
from tests.models import checkpoints
from tests.models.checkpoints import random_params
from tests.models.gguf_families_test import CONFIGS, FORMS, Form, write

pytestmark = [pytest.mark.optional, pytest.mark.slow]

TOKENS = np.random.default_rng(1).integers(4, 97, 20).tolist()
ATTENTION = math.sqrt(1 + math.log(2) / math.log(512))
SCALING = dataclasses.replace(checkpoints.LONGROPE, original_max_position_embeddings=512, attention_factor=ATTENTION)
MODELS = CONFIGS | {
    # llama.cpp's smallest context is 256 tokens, and rows within the original one have the short factors.
    "phi3": dataclasses.replace(CONFIGS["phi3"], max_position_embeddings=1024, rope_scaling=SCALING),
    "llama": dataclasses.replace(checkpoints.CONFIGS["llama"], rope_scaling=None),
    "qwen2": checkpoints.CONFIGS["qwen2"],
    "qwen3": checkpoints.CONFIGS["qwen3"],
}
PHI3 = {"rope.scaling.original_context_length": 512, "rope.scaling.attn_factor": ATTENTION}
HOW = FORMS | {
    "phi3": dataclasses.replace(FORMS["phi3"], metadata=FORMS["phi3"].metadata | PHI3),
    "llama": Form("llama", interleaved=True),
    "qwen2": Form("qwen2"),
    "qwen3": Form("qwen3"),
}
TOLERANCE = {"gemma2": 2e-3, "gemma3": 2e-3}
"""Where GELU is rounded: an argument between two numbers of half precision may go the other way."""


def _half_gelu(config, gate):
    """As llama.cpp's code for CPUs has it, which looks GELU up in a table of half-precision numbers."""
    return nn.gelu(gate.astype(jnp.float16).astype(gate.dtype)).astype(jnp.float16).astype(gate.dtype)


def _server(path):
    xllamacpp = pytest.importorskip("xllamacpp")
    options = xllamacpp.CommonParams()
    options.model.path = str(path)
    options.n_ctx, options.n_parallel, options.cpuparams.n_threads, options.port = 256, 1, 1, 0
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.verbosity = 0
    return xllamacpp.Server(options)


def _next_logprobs(address: str, prompt: list[int], size: int) -> dict[int, float]:
    """Log-probs of every token after a prompt."""
    body = {
        "prompt": prompt, "n_predict": 1, "n_probs": size, "temperature": 1.0, "samplers": ["temperature"],
        "cache_prompt": False, "ignore_eos": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.loads(answer.read())["completion_probabilities"][0]
    return {one["id"]: one["logprob"] for one in found["top_logprobs"]}


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_gives_the_same_log_probs(tmp_path, monkeypatch, name):
    config = MODELS[name]
    if config.family.activation == "gelu_tanh":
        monkeypatch.setattr(decoder_layers, "activate", _half_gelu)
    save_weights(tmp_path / "hf", config, random_params(config))
    hf = load_file(tmp_path / "hf" / "model.safetensors")
    write(tmp_path / "m.gguf", config, hf, HOW[name], vocabulary=True)
    read, params = load_weights(tmp_path / "m.gguf")
    with jax.default_matmul_precision("highest"):
        score = jax.jit(functools.partial(token_logprobs, read))
        expected = np.asarray(score(params, np.array([TOKENS])))[0, 1:]
    server = _server(tmp_path / "m.gguf")
    size = config.vocab_size
    prefixes = [TOKENS[:end] for end in range(1, len(TOKENS))]
    found = [
        _next_logprobs(server.listening_address, prefix, size)[token]
        for prefix, token in zip(prefixes, TOKENS[1:], strict=True)
    ]
    del server
    gc.collect()
    print(f"{name}: largest difference {np.abs(np.array(found) - expected).max():.2g}")
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE.get(name, 2e-5))
