"""Attention in blocks against one array of scores: gradient of `token_logprobs`, and of attention alone, on a CPU.

    python experiments/benchmarks/attention.py             # SmolLM2-135M's sizes, random weights; half an hour
    python experiments/benchmarks/attention.py --alone     # attention by itself; a minute
    python experiments/benchmarks/attention.py --smoke     # seconds, only to see that it runs

Both implementations are compiled once and take turns within each repeat. Seconds are processor time, which other work
on the machine changes least; a ratio is taken within each repeat, and its median, least and most are printed. Temporary
memory is the compiler's figure. Without recomputation (`--remat full`), the arrays of scores of 30 layers need 45 GB
at 4,096 tokens. What was measured is in docs/models.md.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax.models import ModelConfig, init_params, token_logprobs
from prm_jax.models.attention import attend

SMOLLM2 = ModelConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
    tie_word_embeddings=True, rope_theta=1e5, max_position_embeddings=8192,
)  # fmt: skip
NAMES = ("naive", "blockwise")


def main() -> None:
    """Measures, prints a table and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 2048, 4096])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--layers", type=int, default=SMOLLM2.num_layers)
    parser.add_argument("--remat", choices=["none", "full"], default="none", help="full: layers are recomputed")
    parser.add_argument("--alone", action="store_true", help="attention by itself, forward and gradient")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, help="write the numbers as JSON; lengths that are there stay")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    config = dataclasses.replace(SMOLLM2, num_layers=options.layers, remat=options.remat)
    if options.smoke:
        options.lengths, options.repeats = [40], 1
        config = dataclasses.replace(config, vocab_size=64, hidden_size=64, intermediate_size=64, num_layers=2)
    kept = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    for length in options.lengths:
        shape = f"{options.rows} x {length}"
        if options.alone:
            found = measure_alone(config, options.rows, length, options.repeats)
            name, line = f"{shape}, alone", row_alone(options.rows, length, found)
        else:
            found = measure(config, options.rows, length, options.repeats)
            name = f"{shape}, {config.num_layers} layers" + (", recomputed" if options.remat == "full" else "")
            line = row(options.rows, length, config.num_layers, found)
        kept[name] = {**found, "setting": setting(options)}
        print(line, flush=True)
        if options.out:
            options.out.write_text(json.dumps(kept, indent=1) + "\n")


def measure(config: ModelConfig, rows: int, length: int, repeats: int) -> dict[str, Any]:
    """Seconds of both implementations by repeat, and temporary bytes of attention's gradient."""
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (rows, length), 0, config.vocab_size)
    runs: dict[str, Callable[[], Any]] = {}
    for name in NAMES:
        own = dataclasses.replace(config, attention=name)  # type: ignore[arg-type]
        gradient = jax.jit(jax.grad(lambda p, t, own=own: token_logprobs(own, p, t).mean()))
        compiled = gradient.lower(params, tokens).compile()
        runs[name] = lambda compiled=compiled: compiled(params, tokens)
    temporary = {name: _temporary_bytes(_alone(config, rows, length, name, gradient=True)) for name in NAMES}
    return {**_in_turn(runs, repeats), "temporary_bytes_of_attention": temporary}


def measure_alone(config: ModelConfig, rows: int, length: int, repeats: int) -> dict[str, Any]:
    """One layer's attention: seconds forward and of the gradient, and temporary bytes of the gradient."""
    arrays = [
        jax.random.normal(jax.random.key(i), shape.shape, shape.dtype)
        for i, shape in enumerate(_shapes(config, rows, length))
    ]
    found: dict[str, Any] = {}
    for gradient in (False, True):
        programs = {name: _alone(config, rows, length, name, gradient=gradient) for name in NAMES}
        runs = {name: lambda program=program: program(*arrays) for name, program in programs.items()}
        for run in runs.values():
            jax.block_until_ready(run())
        found["gradient" if gradient else "forward"] = _in_turn(runs, repeats)
    found["temporary_bytes"] = {name: _temporary_bytes(program) for name, program in programs.items()}
    return found


def _in_turn(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Processor seconds of each run, and ratios within a repeat."""
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for repeat in range(repeats):
        for name in NAMES[:: 1 if repeat % 2 else -1]:
            begun = time.process_time()
            jax.block_until_ready(runs[name]())
            seconds[name].append(time.process_time() - begun)
    ratios = [b / a for a, b in zip(*(seconds[name] for name in NAMES), strict=True)]
    spread = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return {"seconds": seconds, "ratio": spread}


def row(rows: int, length: int, layers: int, found: dict[str, Any]) -> str:
    """One line of the table in docs/models.md."""
    ratio, temporary = found["ratio"], found["temporary_bytes_of_attention"]
    seconds = [statistics.median(found["seconds"][name]) for name in NAMES]
    return (
        f"| {rows} x {length:,} | {layers} | {seconds[0]:.2f} | {seconds[1]:.2f} | {ratio['median']:.2f} "
        f"({ratio['least']:.2f} - {ratio['most']:.2f}) | {temporary['blockwise'] / 2**20:.0f} instead of "
        f"{temporary['naive'] / 2**20:.0f} MiB |"
    )


def row_alone(rows: int, length: int, found: dict[str, Any]) -> str:
    """One line of the table of attention alone in docs/models.md."""
    ratios = [found[name]["ratio"] for name in ("forward", "gradient")]
    temporary = found["temporary_bytes"]
    return (
        f"| {rows} x {length:,} | "
        + " | ".join(f"{ratio['median']:.2f} ({ratio['least']:.2f} - {ratio['most']:.2f})" for ratio in ratios)
        + f" | {temporary['blockwise'] / 2**20:.0f} instead of {temporary['naive'] / 2**20:.0f} MiB |"
    )


def setting(options: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions and options."""
    return {
        "repeats": options.repeats, "cores": os.cpu_count(), "load": [round(x, 1) for x in os.getloadavg()],
        "machine": platform.machine(), "python": platform.python_version(), "jax": jax.__version__,
    }  # fmt: skip


def _shapes(config: ModelConfig, rows: int, length: int) -> list[jax.ShapeDtypeStruct]:
    """Of queries, keys and values."""
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    return [jax.ShapeDtypeStruct((rows, length, count, config.head_dim), jnp.float32) for count in heads]


def _alone(config: ModelConfig, rows: int, length: int, name: str, *, gradient: bool) -> Any:
    """The compiled attention of one layer, or its gradient."""
    shapes = _shapes(config, rows, length)

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, implementation=name)  # type: ignore[arg-type]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (run(q, k, v) ** 2).mean()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)) if gradient else run).lower(*shapes).compile()


def _temporary_bytes(program: Any) -> int:
    analysis = program.memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


if __name__ == "__main__":
    main()
