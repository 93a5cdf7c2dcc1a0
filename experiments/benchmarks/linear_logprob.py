"""Log-probs from hidden states, forward and with gradients, against what a user would take instead.

    python -m experiments.benchmarks.linear_logprob [--smoke] [--json FILE] [--tune]

Every contender that runs on this machine, in turn, on the same arrays; another one begins each round, and inputs
change from call to call. Modes: `forward`; `gradient` (of the sum of log-probs, by hidden states and head); `score 50%`
(forward with half of the tokens masked) and so on. Ceilings of the machine are measured in the same call.
`--tune` times tiles of this machine's kernel instead, and prints lines for the table,
`prm_jax/pallas/linear_logprob/tuned_blocks.py`.
What was measured is in linear_logprob.md.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from prm_jax.pallas import LogprobOptions, linear_logprob, linear_logprob_loss
from prm_jax.pallas.linear_logprob import tuning
from prm_jax.pallas.linear_logprob.dispatch import this_machine

PRODUCTS = {"forward": 1, "gradient": 3}  # that the numbers need; what makes logits again does four for a gradient
ACCELERATOR_SHAPES = (
    (8192, 3584, 152064),  # Qwen2.5-7B
    (2048, 3584, 152064),
    (32768, 3584, 152064),
    (8192, 4096, 131072),  # Liger-Kernel's README
    (4096, 4096, 151936),  # tokamax's benchmark
    (32768, 2560, 128256),  # Marin
)
CPU_SHAPES = ((2048, 576, 49152),)  # SmolLM2-135M


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    shapes: tuple[tuple[int, int, int], ...] = ()
    """(tokens, features, vocabulary); by default those of the platform."""
    dtype: str = ""
    """float32 on a CPU, else bfloat16."""
    modes: tuple[str, ...] = ("forward", "gradient", "score 100%", "score 50%", "score 25%")
    repeats: int = 30
    seconds: float = 60.0
    """Of timing for a mode and shape; fewer repeats, but at least five, where they would take longer."""


SMOKE = Config(shapes=((128, 64, 1024),), dtype="float32", repeats=2)


class Arrays(NamedTuple):
    """One problem."""

    hidden: jax.Array  # [T, D]
    head: jax.Array  # [V, D]
    tokens: jax.Array  # [T]
    mask: jax.Array  # [T]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to compute a mode.

    Attributes:
      name: the row's.
      call: computes once and may return before it is done.
      wait: for a result of ``call``.
      numbers: of a result: [logp], or the gradients of hidden and head.
      temporaries: bytes beside arguments and results.
    """

    name: str
    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    numbers: Callable[[Any], Sequence[np.ndarray]]
    temporaries: int


def make_arrays(shape: tuple[int, int, int], dtype: str, valid: float) -> Arrays:
    """Random arrays with logits of unit variance; a share of the tokens counts, at random places."""
    count, width, vocab = shape
    keys = jax.random.split(jax.random.key(0), 4)
    return Arrays(
        jax.random.normal(keys[0], (count, width)).astype(dtype),
        (jax.random.normal(keys[1], (vocab, width)) / width**0.5).astype(dtype),
        jax.random.randint(keys[2], (count,), 0, vocab),
        jax.random.permutation(keys[3], count) < round(valid * count),
    )


def jax_contender(name: str, logprob: Callable[..., jax.Array], arrays: Arrays, mode: str) -> Contender:
    """From a function of arrays to log-probs [T]; for gradients, of their sum."""
    if mode == "gradient":
        return compiled_contender(name, jax.grad(lambda *a: jnp.sum(logprob(*a)), (0, 1)), arrays)
    return compiled_contender(name, logprob, arrays)


def compiled_contender(name: str, f: Callable[..., Any], arrays: Arrays) -> Contender:
    """From a function that returns log-probs, or gradients."""
    compiled = jax.jit(f).lower(*arrays).compile()
    # Two sets of inputs in turn, so that nothing is computed on the very same data as the call before.
    inputs = itertools.cycle([arrays, arrays._replace(hidden=arrays.hidden[::-1])])
    next(inputs)
    jax.block_until_ready(compiled(*next(inputs)))  # warms up; the call after this one has the arrays as they are
    return Contender(
        name,
        lambda: compiled(*next(inputs)),
        jax.block_until_ready,
        lambda out: [np.asarray(x, np.float32) for x in jax.tree.leaves(out)],
        compiled.memory_analysis().temp_size_in_bytes,
    )


def ours(arrays: Arrays, mode: str) -> list[Contender]:
    """This project's implementations that run on this machine."""
    here = {"cpu": [], "gpu": ["mosaic_gpu"], "tpu": ["mosaic_tpu"]}[jax.default_backend()]
    compacted = (False, True) if mode.startswith("score") else (False,)
    rows = []
    for name, compact in itertools.product(["xla_vocab", "xla_token", *here], compacted):

        def logprob(hidden: Any, head: Any, tokens: Any, mask: Any, name: str = name, compact: bool = compact) -> Any:
            options = LogprobOptions(implementation=name, compact=compact)
            return linear_logprob(hidden, head, tokens, mask=mask, options=options)[0]

        rows.append(jax_contender(f"prm_jax {name}{', compacted' if compact else ''}", logprob, arrays, mode))
    if mode == "gradient":

        def loss(hidden: Any, head: Any, tokens: Any, mask: Any) -> Any:
            return linear_logprob_loss(hidden, head, tokens, lambda s, _: jnp.sum(s.logp), mask=mask)[0]

        rows.append(compiled_contender("prm_jax closed loss", jax.grad(loss, (0, 1)), arrays))
    return rows


def contenders(arrays: Arrays, mode: str) -> tuple[list[Contender], dict[str, str]]:
    """All that run here, and why others do not."""
    from experiments.benchmarks.linear_logprob_peers import ON_GPU_ONLY, PEERS

    rows, missing = ours(arrays, mode), {}
    for name, (make, install) in PEERS.items():
        if name in ON_GPU_ONLY and jax.default_backend() != "gpu":
            missing[name] = "needs a GPU"
            continue
        try:
            rows.extend(make(arrays, mode))
        except ImportError as error:
            missing[name] = f"{error}; to compare with it: {install}"
        except Exception as error:  # a peer that fails at a shape is a result
            missing[name] = f"{type(error).__name__}: {str(error)[:200]}"
    return rows, missing


def exact(
    arrays: Arrays, mode: str, sample: int = 16
) -> tuple[list[np.ndarray], Callable[[Sequence[np.ndarray]], list]]:
    """Float64 values of a sample of rows, and the function that takes the same sample from a result."""
    rows = np.flatnonzero(np.asarray(arrays.mask))[:sample]
    hidden = np.asarray(arrays.hidden[rows], np.float64)
    head = np.asarray(arrays.head, np.float32)
    tokens = np.asarray(arrays.tokens)[rows]
    logits = np.concatenate([hidden @ piece.T.astype(np.float64) for piece in np.array_split(head, 64)], axis=1)
    top = logits.max(axis=1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    if mode != "gradient":
        return [log_p[np.arange(len(rows)), tokens]], lambda out: [out[0][rows]] if out[0].ndim else [out[0]]
    d = -np.exp(log_p)
    d[np.arange(len(rows)), tokens] += 1.0
    pieces = zip(np.array_split(d, 64, axis=1), np.array_split(head, 64), strict=True)
    return [sum(a @ b.astype(np.float64) for a, b in pieces)], lambda out: [out[0][rows]]


def measure(config: Config, shape: tuple[int, int, int], dtype: str, mode: str) -> dict[str, Any]:
    """Numbers of all contenders in one mode at one shape."""
    valid = float(mode.split()[1].rstrip("%")) / 100 if mode.startswith("score") else 1.0
    arrays = make_arrays(shape, dtype, valid)
    rows, missing = contenders(arrays, mode)
    expected, sampled = exact(arrays, mode)
    errors, once = {}, 0.0
    for row in rows:  # warm already
        began = time.perf_counter()
        out = row.wait(row.call())
        once += time.perf_counter() - began
        pairs = [(a, b) for a, b in zip(sampled(row.numbers(out)), expected, strict=True) if a.shape == b.shape]
        errors[row.name] = max((float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs), default=None)
        del out
    repeats = min(config.repeats, max(5, int(config.seconds / once)))
    wall: dict[str, list[float]] = {row.name: [] for row in rows}
    cpu: dict[str, list[float]] = {row.name: [] for row in rows}
    for i in range(repeats):
        for row in [*rows[i % len(rows) :], *rows[: i % len(rows)]]:
            began, began_cpu = time.perf_counter(), time.process_time()
            row.wait(row.call())
            wall[row.name].append(time.perf_counter() - began)
            cpu[row.name].append(time.process_time() - began_cpu)
    count, width, vocab = shape
    flops = 2 * count * width * vocab * valid * PRODUCTS.get(mode, 1)
    table = {}
    for row in rows:
        ms = [1e3 * t for t in wall[row.name]]
        quarter, middle, three = statistics.quantiles(ms, n=4, method="inclusive")
        table[row.name] = {
            "ms (median)": middle,
            "ms (quartiles)": f"{quarter:.4g} to {three:.4g}",
            "CPU s (median)": statistics.median(cpu[row.name]),
            "useful TFLOP/s": flops / (middle * 1e9),
            "temporaries MB": row.temporaries / 1e6,
            "error": errors[row.name],
        }
    return {"shape": shape, "dtype": dtype, "mode": mode, "repeats": repeats, "rows": table, "missing": missing}


def ceilings(dtype: str) -> dict[str, float]:
    """The machine's own: a large square product and a copy."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    block = jnp.zeros((16 if jax.default_backend() == "cpu" else 256, 1 << 20), jnp.float32)

    def best(f: Callable[..., Any], *args: Any) -> float:
        jax.block_until_ready(f(*args))
        times = []
        for _ in range(10):
            began = time.perf_counter()
            jax.block_until_ready(f(*args))
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    product = best(jax.jit(jnp.dot), a, a)
    copy = best(jax.jit(lambda x: x + 1), block)
    return {"product TFLOP/s": 2 * size**3 / product / 1e12, "copy GB/s": 2 * block.nbytes / copy / 1e9}


def machine() -> str:
    """One line on what the numbers were made with."""

    def of(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"no {package}"

    packages = ", ".join(of(p) for p in ("jax", "tokamax", "torch", "liger-kernel", "cut-cross-entropy"))
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    kind, python = jax.devices()[0].device_kind, platform.python_version()
    return f"{kind}, {os.cpu_count()} cores{load}; {packages}, Python {python}"


def markdown(result: dict[str, Any]) -> str:
    """One mode at one shape as a table."""

    def cell(x: Any) -> str:
        return x if isinstance(x, str) else "" if x is None else f"{x:.3g}"

    columns = list(next(iter(result["rows"].values())))
    title = f"{result['mode']}, (T, D, V) = {tuple(result['shape'])}, {result['dtype']}, {result['repeats']} repeats"
    lines = [f"**{title}**", "", "| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(cell(row[c]) for c in columns) + " |" for name, row in result["rows"].items()]
    return "\n".join([*lines, *(f"\n{name} left out: {why}" for name, why in result["missing"].items())])


def tune(config: Config, shapes: Sequence[tuple[int, int, int]], dtype: str) -> dict[str, Any]:
    """Times the tiles of this machine's kernel; returns the fastest of each entry of the table."""
    target = this_machine()
    name = {"tpu": "mosaic_tpu", "gpu": "mosaic_gpu"}.get(target.platform)
    if name is None:
        raise SystemExit(f"only kernels have tiles to tune, and {target.platform} has none; run this on a TPU or GPU")
    tiles = [(64, c) for c in (64, 128, 192, 256)]
    if name == "mosaic_tpu":
        tiles = list(itertools.product((128, 256, 512, 1024), (256, 512, 1024, 1536, 2048)))
    best: dict[str, Any] = {}
    for shape, mode in itertools.product(shapes, ("forward", "gradient") if name == "mosaic_tpu" else ("forward",)):
        arrays = make_arrays(shape, dtype, 1.0)
        for tile in tiles:

            def logprob(*a: Any, tile: tuple[int, int] = tile) -> Any:
                hidden, head, tokens, mask = a
                rows = tile[0] if name == "mosaic_tpu" else None
                options = LogprobOptions(implementation=name, token_block=rows, vocab_block=tile[1])
                return linear_logprob(hidden, head, tokens, mask=mask, options=options)[0]

            try:
                row = jax_contender(str(tile), logprob, arrays, mode)
                times = []
                for _ in range(max(5, config.repeats // 3)):
                    began = time.perf_counter()
                    row.wait(row.call())
                    times.append(time.perf_counter() - began)
            except Exception as error:  # a tile that does not compile is no candidate
                print(f"{shape} {mode} {tile}: {type(error).__name__}: {str(error)[:100]}")
                continue
            ms = 1e3 * statistics.median(times)
            print(f"{shape} {mode} {tile}: {ms:.3f} ms")
            key = (
                tuning.device_name(target.device_kind), "backward" if mode == "gradient" else mode, dtype,
                tuning.bucket(shape[1], tuning.D_BUCKETS), tuning.bucket(shape[0], tuning.T_BUCKETS),
            )  # fmt: skip
            if ms < best.get(str(key), (float("inf"),))[0]:
                best[str(key)] = (ms, tile)
    for key, (ms, tile) in best.items():
        print(f"    {key}: {tile},  # {ms:.3f} ms on {target.device_kind}")
    return best


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measures log-probs from hidden states side by side."""

    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)
    smoke: bool = False
    """The smallest sizes instead."""
    tune: bool = False
    """Time tiles of this machine's kernel."""
    json: pathlib.Path | None = None
    """Write the numbers there, too."""


def main() -> None:
    """Reads flags, runs, prints."""
    arguments = tyro.cli(Arguments)
    config = SMOKE if arguments.smoke else arguments.config
    on_cpu = jax.default_backend() == "cpu"
    shapes = config.shapes or (CPU_SHAPES if on_cpu else ACCELERATOR_SHAPES)
    dtype = config.dtype or ("float32" if on_cpu else "bfloat16")
    result: dict[str, Any] = {"machine": machine(), "ceilings": ceilings(dtype)}
    print(f"{result['machine']}\nceilings: {result['ceilings']}\n")
    if arguments.tune:
        result["tiles"] = tune(config, shapes, dtype)
    else:
        result["results"] = []
        for shape, mode in itertools.product(shapes, config.modes):
            result["results"].append(measure(config, shape, dtype, mode))
            print(markdown(result["results"][-1]) + "\n", flush=True)
            if arguments.json is not None:  # after each table: a later one may run out of memory
                arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
