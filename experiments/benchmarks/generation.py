"""Generation on a CPU: tokens a second, against llama.cpp on the same weights in the same precision.

    python -m experiments.benchmarks.generation smollm2 --peer-python PATH   # SmolLM2-135M against llama.cpp
    python -m experiments.benchmarks.generation tiny            # a model of 0.16M parameters, 256 rows
    python -m experiments.benchmarks.generation tiny --smoke    # seconds, only to see that it runs

The peer (`llama_peer.py`) reads an F32 GGUF file that this script writes and answers one request per slot at the same
time. Both engines get the same token ids, sample at temperature 1 from the whole vocabulary and never stop early. They
take turns within each repeat. What was measured is in README.md.
"""

import argparse
import concurrent.futures
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks.llama_peer import ask, cpu_seconds, running, write_form

Prompts = list[list[int]]


def main() -> None:
    """Runs what the command line asks for and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["smollm2", "tiny"])
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that can import xllamacpp")
    parser.add_argument("--rows", type=int, default=16, help="prompts of smollm2, one a slot of the peer")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt of smollm2")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate a row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the peer")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.model == "tiny":
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
        write_form(find_smollm2(), path, "float32")
        config, params = load_weights(path)
        rng = np.random.default_rng(0)
        prompts = [[1, *row] for row in rng.integers(100, 40000, (options.rows, options.prompt - 1)).tolist()]
        context = options.prompt + options.new + 8
        with running(
            options.peer_python, path, slots=options.rows, context=context, threads=options.threads
        ) as (address, pid):
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
            cpu, begun = cpu_seconds(pid), time.perf_counter()
            run(repeat + 1)
            wall = time.perf_counter() - begun
            measured[name][1].append((wall, cpu_seconds(pid) - cpu))
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


def _compare_greedy(config: Any, params: Any, address: str, prompts: Prompts) -> None:
    """Says whether the two engines compute the same: greedy responses token by token."""
    import jax
    import numpy as np

    from prm_jax.models import generate

    ours = np.asarray(generate(config, params, prompts, jax.random.key(0), max_new_tokens=16, temperature=0.0).tokens)
    theirs = np.array([ask(address, prompt, 16, 0, temperature=0.0)["tokens"] for prompt in prompts])
    equal = int((ours == theirs).all(axis=1).sum())
    print(f"greedy responses of 16 tokens that are equal in both engines: {equal} of {len(prompts)}", flush=True)


def _ask_all(address: str, prompts: Prompts, new: int, seed: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(lambda i: ask(address, prompts[i], new, seed * 1000 + i), range(len(prompts))))


if __name__ == "__main__":
    main()
