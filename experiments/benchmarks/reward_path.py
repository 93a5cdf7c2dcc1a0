"""From log-probabilities to PRIME's advantages: prm_jax under jit against the published PyTorch formulas, eager.

The path: implicit token rewards, division by the largest return of the batch, leave-one-out with dense and outcome
rewards in the released form, returns, whitening. The PyTorch side (`reward_path_torch.py`) has it twice: with a loop
over prompts, as the released codes have it, and with that loop vectorised, which nobody published. All sides must agree
before anything is timed; repeats are interleaved, one process a side.

    python -m experiments.benchmarks.reward_path [--torch-python PYTHON] [--smoke] [--out DIRECTORY]

PYTHON is an interpreter with torch (`pip install torch==2.13.0`, the CPU build); this one by default.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
SAMPLES = 4  # responses a prompt


class Side:
    """A worker process that answers one line a command."""

    def __init__(self, name: str, command: list[str], threads: int) -> None:
        """Starts it; it builds its inputs from the sizes in `command`."""
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        if threads == 1:
            flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
            env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {flags}".strip()
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=HERE.parents[1]
        )

    def ask(self, command: str) -> Any:
        """Sends a command and waits for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the {self.name} side ended without an answer to {command!r}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def inputs(rows: int, tokens: int) -> dict[str, np.ndarray]:
    """What a rollout batch hands over: log-probabilities, a right-padded mask, outcomes."""
    rng = np.random.default_rng(0)
    logp = -rng.exponential(size=(rows, tokens)).astype(np.float32)
    ref_logp = (logp + 0.1 * rng.normal(size=logp.shape)).astype(np.float32)
    lengths = rng.integers(tokens // 8, tokens + 1, size=rows)
    outcome = rng.integers(0, 2, size=rows).astype(np.float32)
    return {"logp": logp, "ref_logp": ref_logp, "mask": np.arange(tokens) < lengths[:, None], "outcome": outcome}


def peak_bytes(run: Any) -> int:
    """Largest resident size while `run` runs for the first time, above that before it (Linux).

    Later runs would say less: allocators keep what earlier ones gave back.
    """

    def status(key: str) -> int:
        text = pathlib.Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith(key))) * 1024

    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def serve(run: Any, save: Any) -> None:
    """The worker's loop: "time" runs once, "memory" says what the first run took, "save PATH" writes the result."""
    import time

    peak = peak_bytes(run)
    for line in sys.stdin:
        command, _, path = line.strip().partition(" ")
        answer: Any = None
        if command == "time":
            began = time.perf_counter()
            run()
            answer = time.perf_counter() - began
        elif command == "memory":
            answer = peak
        else:
            save(path)
        print(json.dumps(answer), flush=True)


def jax_worker(rows: int, tokens: int) -> None:
    """The prm_jax side."""
    import jax
    import jax.numpy as jnp

    from prm_jax import rl

    ids = jnp.arange(rows) // SAMPLES
    given = {name: jax.block_until_ready(jnp.array(x)) for name, x in inputs(rows, tokens).items()}

    def path(logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, outcome: jax.Array) -> jax.Array:
        rewards = rl.implicit_token_rewards(logp, ref_logp, mask, beta=1.0)
        rewards = rl.normalize_by_return(rewards, mask)
        return rl.rloo_advantages(rewards, outcome, mask, ids, num_groups=rows // SAMPLES, variant="released")

    compiled = jax.jit(path).lower(**given).compile()

    def run() -> jax.Array:
        return jax.block_until_ready(compiled(**given))

    serve(run, lambda target: np.save(target, np.asarray(run())))


def main() -> None:
    """Starts the sides, checks that they agree, measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        options.rows, options.tokens, options.repeats = 16, 64, 2
    if options.worker:
        return jax_worker(options.rows, options.tokens)
    sizes = [str(options.rows), str(options.tokens)]
    torch_worker = [options.torch_python, str(HERE / "reward_path_torch.py"), *sizes]
    this = [sys.executable, "-m", "experiments.benchmarks.reward_path", "--worker"]
    sides = [
        Side("prm_jax", [*this, "--rows", sizes[0], "--tokens", sizes[1]], options.threads),
        Side("torch, loop over prompts", [*torch_worker, "loop"], options.threads),
        Side("torch, vectorised", [*torch_worker, "vectorised"], options.threads),
    ]
    try:
        record = measure(sides, options)
    finally:
        for side in sides:
            side.close()
    print(table(record))
    if options.out is not None:
        (options.out / "reward_path.json").write_text(json.dumps(record, indent=1) + "\n")


def measure(sides: list[Side], options: argparse.Namespace) -> dict[str, Any]:
    """Agreement, then interleaved times, then memory."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = []
        for index, side in enumerate(sides):
            side.ask(f"save {folder}/{index}.npy")
            found.append(np.load(f"{folder}/{index}.npy"))
    mask = inputs(options.rows, options.tokens)["mask"]
    largest = [float(np.abs(np.where(mask, x - found[0], 0)).max()) for x in found]
    if max(largest) > 1e-3:
        sys.exit(f"the sides differ by {largest}; nothing was timed")
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(options.repeats):
        for side in sides:
            times[side.name].append(side.ask("time"))
    ours = times[sides[0].name]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "rows": options.rows,
        "tokens": options.tokens,
        "repeats": options.repeats,
        "threads": options.threads,
        "sides": {
            side.name: {
                "median_s": statistics.median(times[side.name]),
                "quartiles_s": statistics.quantiles(times[side.name], n=4)[::2],
                "times_prm_jax": statistics.median(t / o for t, o in zip(times[side.name], ours, strict=True)),
                "peak_mib_above_inputs": side.ask("memory") / 2**20,
                "largest_difference": difference,
            }
            for side, difference in zip(sides, largest, strict=True)
        },
    }


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = [
        f"{record['rows']} responses x {record['tokens']} tokens, {record['repeats']} interleaved repeats, "
        f"{record['threads']} thread(s); {record['machine']}",
        "",
        "| side | median ms (quartiles) | times prm_jax | peak MiB above inputs | largest difference |",
        "| --- | --: | --: | --: | --: |",
    ]
    for name, side in record["sides"].items():
        low, high = (1e3 * q for q in side["quartiles_s"])
        lines.append(
            f"| {name} | {1e3 * side['median_s']:.1f} ({low:.1f} - {high:.1f}) | {side['times_prm_jax']:.2f} | "
            f"{side['peak_mib_above_inputs']:.0f} | {side['largest_difference']:.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
