"""Generation on a CPU: tokens a second, against llama.cpp on the same weights in the same precision.

    python experiments/benchmarks/generation.py smollm2 --peer-python PATH   # SmolLM2-135M against llama.cpp
    python experiments/benchmarks/generation.py tiny                         # a 0.16M-parameter model, 256
    rows python experiments/benchmarks/generation.py tiny --smoke                 # seconds, only to see that
    it runs

The peer is llama.cpp's own server in the prebuilt package xllamacpp, in any Python environment that has it.
It reads an F32 GGUF file that this script writes, keeps an F32 cache, and answers one request a slot at the
same time.  Both engines get the same token ids, sample at temperature 1 from the whole vocabulary and never
stop early.  They take turns within each repeat.  What was measured is in README.md.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

Prompts = list[list[int]]


def main() -> None:
    """Runs what the command line asks for and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["smollm2", "tiny", "serve"])
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that can import xllamacpp")
    parser.add_argument("--rows", type=int, default=16, help="prompts of smollm2, one a slot of the peer")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt of smollm2")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate a row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the peer")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--gguf", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model == "serve":
        _serve(options)
    elif options.model == "tiny":
        _tiny(options)
    else:
        _smollm2(options)


def _tiny(options: argparse.Namespace) -> None:
    import jax
    import numpy as np

    from prm_jax.models import ModelConfig, init_params

    config = ModelConfig(
        vocab_size=17, hidden_size=64, intermediate_size=192, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=32
    )
    params = init_params(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, 17, (4 if options.smoke else 32, 10)).tolist()
    runs = {}
    for new in (8,) if options.smoke else (24, 64):
        ours = _ours(config, params, prompts, new, samples=8)
        runs[f"32 prompts x 8 samples, {new} new tokens"] = (ours, os.getpid(), len(prompts) * 8 * new)
    _report(_measure(runs, 2 if options.smoke else options.repeats))


def _smollm2(options: argparse.Namespace) -> None:
    import numpy as np

    from prm_jax.models import load_weights
    from prm_jax.models.smollm2 import find_smollm2

    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "smollm2-f32.gguf"
        _write_f32(find_smollm2(), path)
        config, params = load_weights(path)
        rng = np.random.default_rng(0)
        prompts = [[1, *row] for row in rng.integers(100, 40000, (options.rows, options.prompt - 1)).tolist()]
        with _peer(options, path) as (address, pid):
            _compare_greedy(config, params, address, prompts[: min(8, options.rows)])
            tokens = options.rows * options.new
            runs = {
                "prm_jax": (_ours(config, params, prompts, options.new), os.getpid(), tokens),
                "llama.cpp": (lambda seed: _ask_all(address, prompts, options.new, seed), pid, tokens),
            }
            measured = _measure(runs, options.repeats)
    _report(measured)
    ratios = sorted(a[0] / b[0] for a, b in zip(measured["llama.cpp"][1], measured["prm_jax"][1], strict=True))
    print(
        f"wall time of llama.cpp / prm_jax in the same repeat: median {ratios[len(ratios) // 2]:.2f}, "
        f"from {ratios[0]:.2f} to {ratios[-1]:.2f}"
    )


def _ours(config: Any, params: Any, prompts: Prompts, new: int, samples: int = 1) -> Callable[[int], None]:
    import jax

    from prm_jax.models import generate

    def run(seed: int) -> None:
        key = jax.random.key(seed)
        jax.block_until_ready(generate(config, params, prompts, key, samples_per_prompt=samples, max_new_tokens=new))

    return run


def _measure(
    runs: dict[str, tuple[Callable[[int], Any], int, int]], repeats: int
) -> dict[str, tuple[int, list[tuple[float, float]]]]:
    """Runs the engines in turn; name -> (tokens, (wall seconds, CPU seconds) of each repeat)."""
    for name, (run, _, _) in runs.items():
        begun = time.perf_counter()
        run(0)
        print(f"{name}: first call, compilation included: {time.perf_counter() - begun:.1f} s", flush=True)
    measured: dict[str, tuple[int, list[tuple[float, float]]]] = {n: (t, []) for n, (_, _, t) in runs.items()}
    for repeat in range(repeats):
        order = list(runs) if repeat % 2 == 0 else list(runs)[::-1]
        for name in order:
            run, pid, _ = runs[name]
            cpu, begun = _cpu_seconds(pid), time.perf_counter()
            run(repeat + 1)
            wall = time.perf_counter() - begun
            measured[name][1].append((wall, _cpu_seconds(pid) - cpu))
    return measured


def _report(measured: dict[str, tuple[int, list[tuple[float, float]]]]) -> None:
    import jax

    print(
        f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ",
        end="",
    )
    print(f"Python {platform.python_version()}, jax {jax.__version__}\n")
    print(f"{'':44s} {'tokens/s: median':>17s} {'from':>8s} {'to':>8s} {'tokens/CPU-s: median':>21s}")
    for name, (tokens, times) in measured.items():
        wall = sorted(tokens / w for w, _ in times)
        cpu = sorted(tokens / max(c, 1e-9) for _, c in times)
        middle = len(times) // 2
        print(f"{name:44s} {wall[middle]:17.1f} {wall[0]:8.1f} {wall[-1]:8.1f} {cpu[middle]:21.1f}")


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process, where the system tells."""
    if pid == os.getpid():
        return time.process_time()
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _compare_greedy(config: Any, params: Any, address: str, prompts: Prompts) -> None:
    """Says whether the two engines compute the same: greedy responses token by token."""
    import jax
    import numpy as np

    from prm_jax.models import generate

    ours = np.asarray(generate(config, params, prompts, jax.random.key(0), max_new_tokens=16, temperature=0.0).tokens)
    theirs = np.array([_ask(address, prompt, 16, 0, temperature=0.0)["tokens"] for prompt in prompts])
    equal = int((ours == theirs).all(axis=1).sum())
    print(f"greedy responses of 16 tokens that are equal in both engines: {equal} of {len(prompts)}", flush=True)


def _ask_all(address: str, prompts: Prompts, new: int, seed: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda i: _ask(address, prompts[i], new, seed * 1000 + i), range(len(prompts))))
    found = sum(answer["tokens_predicted"] for answer in answers)
    if found != new * len(prompts):
        raise SystemExit(f"llama.cpp generated {found} tokens instead of {new * len(prompts)}")


def _ask(address: str, prompt: list[int], new: int, seed: int, temperature: float = 1.0) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "n_predict": new,
        "ignore_eos": True,
        "temperature": temperature,
        "samplers": ["temperature"],
        "seed": seed,
        "cache_prompt": False,
        "return_tokens": True,
    }
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.loads(answer.read())


@contextlib.contextmanager
def _peer(options: argparse.Namespace, path: pathlib.Path) -> Iterator[tuple[str, int]]:
    """llama.cpp's server in a process of its own, so that the two engines share no threads."""
    context = (options.prompt + options.new + 8) * options.rows
    command = [options.peer_python, __file__, "serve", "--gguf", str(path), "--new", str(context)]
    command += ["--rows", str(options.rows), "--threads", str(options.threads)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            said = next((line for line in process.stdout if line.startswith("{")), "")
            if not said:
                raise SystemExit(f"the peer did not start: {options.peer_python} must be able to import xllamacpp")
            answer = json.loads(said)
            print(f"peer: xllamacpp {answer['version']}, {options.threads} threads, {options.rows} slots", flush=True)
            yield answer["address"], process.pid
        finally:
            process.stdin.close()


def _serve(options: argparse.Namespace) -> None:
    """The peer's side: needs nothing but xllamacpp, ends when its input does."""
    import importlib.metadata

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.gguf
    params.n_ctx = options.new
    params.n_parallel = options.rows
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    version = importlib.metadata.version("xllamacpp")
    print(json.dumps({"address": server.listening_address, "version": version}), flush=True)
    sys.stdin.read()


def _write_f32(source: pathlib.Path, target: pathlib.Path) -> None:
    """The same model with every tensor in float32."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    skipped = ("general.architecture", "general.file_type", "general.quantization_version")
    for field in reader.fields.values():
        if field.name in skipped or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
