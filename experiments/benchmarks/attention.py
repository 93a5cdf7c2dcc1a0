"""Attention in blocks against one array of scores: gradient of `token_logprobs`, and of attention alone, on a CPU.

    python experiments/benchmarks/attention.py                     # SmolLM2-135M's sizes, random weights; many minutes
    python experiments/benchmarks/attention.py --layers 1 4 --lengths 1024     # less work: extrapolated to 30 layers
    python experiments/benchmarks/attention.py --smoke             # seconds, only to see that it runs

Both implementations are compiled once and take turns within each repeat. Seconds are processor time, which other work
on the machine changes least; a ratio is taken within each repeat, and its median, least and most are printed. Temporary
memory is the compiler's figure. With two numbers of layers, the medians are extrapolated to 30 on a line, since all
layers do the same. What was measured is in docs/models.md.
"""

import argparse
import dataclasses
import json
import math
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
    parser.add_argument("--layers", type=int, nargs="+", default=[30], help="one number, or two to extrapolate from")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, help="write the numbers as JSON; lengths that are there stay")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    config = SMOLLM2
    if options.smoke:
        options.lengths, options.layers, options.repeats = [40], [1, 2], 1
        config = dataclasses.replace(config, vocab_size=64, hidden_size=64, intermediate_size=64)
    kept = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    for length in options.lengths:
        found = {}
        for layers in options.layers:
            own = dataclasses.replace(config, num_layers=layers)
            found[layers] = {**measure(own, options.rows, length, options.repeats), "setting": setting(options)}
            kept[f"{options.rows} x {length}, {layers} layers"] = found[layers]
            print(row(options.rows, length, layers, found[layers]), flush=True)
        if len(found) == 2:
            kept[f"{options.rows} x {length}, extrapolated"] = whole = extrapolated(found, SMOLLM2.num_layers)
            seconds = whole["seconds"]
            print(
                f"| {options.rows} x {length:,} | {SMOLLM2.num_layers}, extrapolated | {seconds['naive']:.2f} | "
                f"{seconds['blockwise']:.2f} | {whole['ratio']:.2f} | |", flush=True,
            )  # fmt: skip
        if options.out:
            options.out.write_text(json.dumps(kept, indent=1) + "\n")


def extrapolated(found: dict[int, dict[str, Any]], layers: int) -> dict[str, Any]:
    """Median seconds of both implementations with `layers` layers, on the line through two measured numbers."""
    (few, less), (many, more) = found.items()
    seconds = {}
    for name in NAMES:
        low, high = (statistics.median(one["seconds"][name]) for one in (less, more))
        seconds[name] = high + (layers - many) * (high - low) / (many - few)
    return {"layers": layers, "seconds": seconds, "ratio": seconds["blockwise"] / seconds["naive"]}


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
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for repeat in range(repeats):
        for name in NAMES[:: 1 if repeat % 2 else -1]:
            begun = time.process_time()
            jax.block_until_ready(runs[name]())
            seconds[name].append(time.process_time() - begun)
    ratios = [b / a for a, b in zip(*(seconds[name] for name in NAMES), strict=True)]
    return {
        "seconds": seconds,
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "temporary_bytes_of_attention": {name: _attention_bytes(config, rows, length, name) for name in NAMES},
    }


def row(rows: int, length: int, layers: int, found: dict[str, Any]) -> str:
    """One line of the table in docs/models.md."""
    ratio, temporary = found["ratio"], found["temporary_bytes_of_attention"]
    seconds = [statistics.median(found["seconds"][name]) for name in NAMES]
    return (
        f"| {rows} x {length:,} | {layers} | {seconds[0]:.2f} | {seconds[1]:.2f} | {ratio['median']:.2f} "
        f"({ratio['least']:.2f} - {ratio['most']:.2f}) | {temporary['blockwise'] / 2**20:.0f} instead of "
        f"{temporary['naive'] / 2**20:.0f} MiB |"
    )


def setting(options: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions and options."""
    return {
        "repeats": options.repeats, "cores": os.cpu_count(), "load": [round(x, 1) for x in os.getloadavg()],
        "machine": platform.machine(), "python": platform.python_version(), "jax": jax.__version__,
    }  # fmt: skip


def _attention_bytes(config: ModelConfig, rows: int, length: int, name: str) -> int:
    """Temporary bytes of the gradient of one layer's attention."""
    shapes = [(rows, length, heads, config.head_dim) for heads in (config.num_heads, *(config.num_kv_heads,) * 2)]
    q, k, v = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return (attend(q, k, v, implementation=name) ** 2).sum() / math.prod(q.shape)  # type: ignore[arg-type]

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
    analysis = compiled.memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


if __name__ == "__main__":
    main()
