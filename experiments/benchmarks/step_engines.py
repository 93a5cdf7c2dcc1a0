"""Slots against batches in ``prm-jax search`` and ``prm-jax label``: processor time of whole commands.

    python -m experiments.benchmarks.step_engines --json experiments/benchmarks/step_engines.json    # 15 minutes
    python -m experiments.benchmarks.step_engines --smoke                                            # seconds

Random Llamas of 2 layers of 64 and 4 layers of 256 on the task carry, whose responses end after 16 tokens on average
and at most 64. Each command runs once to compile ("first"), then --repeats times, the engines in turn. Both engines
give the same results. What was measured is in docs/rollouts.md.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from typing import Any

import jax

from prm_jax import cli, models
from prm_jax.data.carry import ALPHABET

ENGINES = ("batches", "slots")
WIDTHS = {64: 2, 256: 4}
"""Width of a model -> its layers."""
COMMANDS = {
    "search best_of_n": ["search", "--method", "best_of_n"],
    "search beam": ["search", "--method", "beam"],
    "label every_step": ["label", "--method", "every_step"],
}


def main() -> None:
    """Measures, prints a table and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="write the numbers to this file")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.widths, options.commands, options.problems, options.repeats = [64], ["search beam"], 2, 1
    results: dict[str, Any] = {
        "setting": {
            "machine": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
            "python": platform.python_version(), "jax": jax.__version__, "device": jax.devices()[0].platform,
            "problems": options.problems, "repeats": options.repeats,
        }
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in results["setting"].items()))
    print("| width | command | batches: first, then | slots: first, then | slots / batches |\n|---|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for width in options.widths:
            model = _saved(width, pathlib.Path(folder))
            for name in options.commands:
                found = _measure(model, COMMANDS[name], options, pathlib.Path(folder))
                results.setdefault(str(width), {})[name] = found
                columns = [f"{found[e]['first']:.1f}, {statistics.median(found[e]['then']):.2f}" for e in ENGINES]
                print(f"| {width} | {name} | {columns[0]} | {columns[1]} | {found['ratio']:.2f} |", flush=True)
                if options.json:
                    options.json.write_text(json.dumps(results, indent=1) + "\n")


def _saved(width: int, folder: pathlib.Path) -> pathlib.Path:
    """The directory of a model with random weights."""
    tokenizer = models.CharTokenizer(ALPHABET)
    config = models.ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=width, intermediate_size=3 * width, num_layers=WIDTHS[width],
        num_heads=4, num_kv_heads=2, head_dim=width // 4, max_position_embeddings=128,
    )  # fmt: skip
    path = folder / str(width)
    models.save_weights(path, config, models.init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    return path


def _measure(
    model: pathlib.Path, command: list[str], options: argparse.Namespace, folder: pathlib.Path
) -> dict[str, Any]:
    first = {engine: _timed(model, command, engine, options, folder) for engine in ENGINES}
    then: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for repeat in range(options.repeats):
        for engine in ENGINES if repeat % 2 == 0 else ENGINES[::-1]:
            then[engine].append(_timed(model, command, engine, options, folder))
    return {
        **{engine: {"first": first[engine], "then": then[engine]} for engine in ENGINES},
        "ratio": statistics.median(b / a for a, b in zip(then["batches"], then["slots"], strict=True)),
    }


def _timed(
    model: pathlib.Path, command: list[str], engine: str, options: argparse.Namespace, folder: pathlib.Path
) -> float:
    """Processor seconds of a command in this process."""
    out = folder / "out.jsonl"
    out.unlink(missing_ok=True)
    name, *words = command
    target = [str(out)] if name == "label" else []
    words = [name, str(model), *target, *words, "--problems", str(options.problems), "--sampling.engine", engine]
    words += ["--sampling.max-new-tokens", "64", "--sampling.step-tokens", "32"]
    begun = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = cli.main(words)
    if code:
        raise SystemExit(f"prm-jax {' '.join(words)} ended with {code}")
    return time.process_time() - begun


if __name__ == "__main__":
    main()
