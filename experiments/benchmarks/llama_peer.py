"""llama.cpp's server as a peer of benchmarks: started in a process of its own, and asked for tokens.

The server is that of the prebuilt package xllamacpp, in any Python environment that has it. It reads a GGUF file,
keeps an F32 cache, and decodes the requests of all its slots together (continuous batching).
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, Literal


@contextlib.contextmanager
def running(python: str, path: pathlib.Path, *, slots: int, context: int, threads: int) -> Iterator[tuple[str, int]]:
    """The server of a GGUF file, as (address, process id); it ends with the block.

    Args:
      python: of an environment with xllamacpp.
      path: the file.
      slots: requests that are decoded together.
      context: maximum length of a prompt with its response, in tokens.
      threads: of the server.
    """
    command = [python, __file__, "--gguf", str(path), "--context", str(context * slots)]
    command += ["--slots", str(slots), "--threads", str(threads)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            said = next((line for line in process.stdout if line.startswith("{")), "")
            if not said:
                raise SystemExit(f"the peer did not start: {python} must be able to import xllamacpp")
            answer = json.loads(said)
            print(f"peer: xllamacpp {answer['version']}, {threads} threads, {slots} slots", flush=True)
            yield answer["address"], process.pid
        finally:
            process.stdin.close()


def ask(
    address: str, prompt: list[int], new: int, seed: int, *, temperature: float = 1.0, logprobs: bool = False,
    cache: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """One response of exactly `new` tokens, drawn from the whole vocabulary; llama.cpp's answer.

    Args:
      address: of the server.
      prompt: token ids.
      new: number of tokens.
      seed: of the sampling.
      temperature: 0 is greedy decoding.
      logprobs: ask for the log-probability of each token.
      cache: let a slot keep the part of its last prompt that is the same.
    """
    body = {
        "prompt": prompt,
        "n_predict": new,
        "ignore_eos": True,
        "temperature": temperature,
        "samplers": ["temperature"],
        "seed": seed,
        "cache_prompt": cache,
        "return_tokens": True,
        "n_probs": int(logprobs),
    }
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=3600) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    if found["tokens_predicted"] != new:
        raise SystemExit(f"llama.cpp generated {found['tokens_predicted']} tokens instead of {new}")
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, where the system tells."""
    if pid == os.getpid():
        return time.process_time()
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_form(source: pathlib.Path, target: pathlib.Path, form: Literal["float32", "q8_0", "q4_0"]) -> None:
    """The model of a GGUF file with every matrix in another form."""
    from prm_jax.models import load_weights
    from prm_jax.models.gguf_export import save_gguf

    config, params = load_weights(source, dtype="float32")
    save_gguf(target, config, params, like=source, dtype=form)


def _serve() -> None:
    """The server's own process: needs nothing but xllamacpp, ends when its input does."""
    import xllamacpp

    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf")
    for name in ("--context", "--slots", "--threads"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = options.gguf
    params.n_ctx = options.context
    params.n_parallel = options.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    version = importlib.metadata.version("xllamacpp")
    print(json.dumps({"address": server.listening_address, "version": version}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
