"""`SlotEngine` against batches of `models.generate`: processor time at the same responses.

    python experiments/benchmarks/slots.py            # 128 responses of a random 4-layer Llama; minutes on one core
    python experiments/benchmarks/slots.py --shape smollm2 --layers 6 --prompts 8 --repeats 2
    python experiments/benchmarks/slots.py --smoke    # seconds, only to see that it runs

Two sets of lengths: lognormal (median 40, sigma 1, cut at --longest), as reasoning has them, and equal ones, where
slots have nothing to gain. The model has no end token; a response is cut at its own length. `generate` decodes all rows
until the longest ends ("rectangle"), or as many prompts at a time as fill the slots ("chunks"), each chunk with the
columns of its own longest response. "slots" has --slots of them, "all" as many as there are responses, of which few
remaining ones move into a quarter. All are compiled once and take turns within each repeat. Seconds are processor
time, which other work on the machine changes least. What was measured is in docs/rollouts.md.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from prm_jax.models import DecodeOptions, ModelConfig, generate, init_params
from prm_jax.rollouts import Request, SlotEngine, SlotTuning, sample_all
from prm_jax.rollouts.slot_source import default_slots

KEY = jax.random.key(7)
Run = Callable[[], list[np.ndarray]]


def main() -> None:
    """Measures, prints tables and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--shape", choices=["small", "smollm2"], default="small", help="of the model, random weights")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="of the small model")
    parser.add_argument("--steps", type=int, default=32, help="decode steps per call")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, help="write the numbers as JSON")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.prompts, options.samples, options.slots, options.longest, options.width = 2, 2, 2, 16, 64
        options.repeats = 1
    rows = options.prompts * options.samples
    lengths = np.random.default_rng(0).lognormal(np.log(min(40, options.longest / 4)), 1.0, rows).astype(int)
    results: dict[str, Any] = {"setting": _setting(options)}
    for name, own in (
        ("lognormal", np.clip(lengths, 1, options.longest)),
        ("equal", np.full(rows, min(32, options.longest))),
    ):
        results[name] = measured = _measure(_Work(options, own))
        _print(name, own, measured)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


class _Work:
    """Responses of given lengths to random prompts."""

    def __init__(self, options: argparse.Namespace, lengths: np.ndarray) -> None:
        self.options, self.lengths = options, lengths
        self.config = _config(options)
        self.params = init_params(self.config, jax.random.key(1))
        rng = np.random.default_rng(1)
        vocab = self.config.vocab_size
        self.prompts = [rng.integers(0, vocab, rng.integers(8, 48)).tolist() for _ in range(options.prompts)]
        self.engines = {
            name: SlotEngine(
                self.config, self.params, slots=count, columns=48 + int(lengths.max()), key=KEY,
                tuning=SlotTuning(steps_per_call=options.steps),
            )
            for name, count in (("slots", options.slots), ("all", default_slots(len(lengths))))
        }  # fmt: skip

    def rectangle(self) -> list[np.ndarray]:
        return self._generate(range(len(self.prompts)))

    def chunks(self) -> list[np.ndarray]:
        size = max(1, self.options.slots // self.options.samples)
        starts = range(0, len(self.prompts), size)
        return [row for i in starts for row in self._generate(range(i, min(i + size, len(self.prompts))))]

    def slots(self, name: str) -> list[np.ndarray]:
        count = self.options.samples
        requests = [
            Request(tuple(prompt), p, g, int(self.lengths[p * count + g]))
            for p, prompt in enumerate(self.prompts)
            for g in range(count)
        ]
        return [one.tokens for one in sample_all(self.engines[name], requests)]

    def positions(self) -> dict[str, int]:
        """Token positions that each way computes."""
        per_chunk = max(1, self.options.slots // self.options.samples) * self.options.samples
        chunks = [self.lengths[i : i + per_chunk] for i in range(0, len(self.lengths), per_chunk)]
        used = {}
        for name, engine in self.engines.items():
            before = engine.stats().slot_steps
            self.slots(name)
            used[name] = engine.stats().slot_steps - before
        return {
            "rectangle": len(self.lengths) * int(self.lengths.max()),
            "chunks": sum(len(chunk) * int(chunk.max()) for chunk in chunks),
            **used,
        }

    def _generate(self, which: range) -> list[np.ndarray]:
        count = self.options.samples
        own = self.lengths[which.start * count : which.stop * count]
        found = generate(
            self.config, self.params, [self.prompts[i] for i in which], KEY, samples_per_prompt=count,
            max_new_tokens=int(own.max()), options=DecodeOptions(prompt_ids=list(which)),
        )  # fmt: skip
        return [row[:length] for row, length in zip(np.asarray(found.tokens), own, strict=True)]


def _config(options: argparse.Namespace) -> ModelConfig:
    if options.shape == "smollm2":
        return ModelConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_layers=options.layers, num_heads=9,
            num_kv_heads=3, head_dim=64, max_position_embeddings=2048, tie_word_embeddings=True,
        )  # fmt: skip
    return ModelConfig(
        vocab_size=512, hidden_size=options.width, intermediate_size=3 * options.width, num_layers=options.layers,
        num_heads=4, num_kv_heads=2, head_dim=options.width // 4, max_position_embeddings=4096,
    )  # fmt: skip


def _measure(work: _Work) -> dict[str, Any]:
    runs: dict[str, Run] = {"rectangle": work.rectangle, "chunks": work.chunks}
    runs |= {name: functools.partial(work.slots, name) for name in work.engines}
    first = {name: run() for name, run in runs.items()}  # compiles
    equal = {
        name: sum(np.array_equal(a, b) for a, b in zip(rows, first["rectangle"], strict=True))
        for name, rows in first.items()
    }
    positions, tokens = work.positions(), int(work.lengths.sum())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(work.options.repeats):
        for name in list(runs) if repeat % 2 == 0 else list(runs)[::-1]:
            begun = time.process_time()
            runs[name]()
            seconds[name].append(time.process_time() - begun)
    return {
        name: {
            "cpu_seconds": [round(one, 3) for one in seconds[name]],
            "tokens_per_cpu_second": round(tokens / statistics.median(seconds[name]), 1),
            "utilisation": round(tokens / positions[name], 3),
            "wasted_positions": positions[name] - tokens,
            "equal_responses": equal[name],
        }
        for name in runs
    }


def _print(name: str, lengths: np.ndarray, measured: dict[str, Any]) -> None:
    print(
        f"\n{name} lengths: {len(lengths)} responses, {lengths.sum()} tokens, median {np.median(lengths):.0f}, "
        f"mean {lengths.mean():.0f}, longest {lengths.max()}"
    )
    print("| | CPU s, median (min - max) | tokens per CPU s | utilisation | unused positions | same responses |")
    print("|---|--:|--:|--:|--:|--:|")
    for which, one in measured.items():
        times = one["cpu_seconds"]
        print(
            f"| {which} | {statistics.median(times):.2f} ({min(times):.2f} - {max(times):.2f}) | "
            f"{one['tokens_per_cpu_second']:.0f} | {one['utilisation']:.2f} | {one['wasted_positions']} | "
            f"{one['equal_responses']} of {len(lengths)} |"
        )


def _setting(options: argparse.Namespace) -> dict[str, Any]:
    setting = {
        "machine": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(), "jax": jax.__version__, "device": str(jax.devices()[0].platform),
        **{key: value for key, value in vars(options).items() if key not in ("out", "smoke")},
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    return setting


if __name__ == "__main__":
    main()
