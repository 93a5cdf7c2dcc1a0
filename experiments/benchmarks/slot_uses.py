"""Labels and searches through slots against batches: processor time, utilisation, and whether results are the same.

    python -m experiments.benchmarks.slot_uses            # a random 4-layer Llama on the task carry; some minutes
    python -m experiments.benchmarks.slot_uses --smoke    # seconds, only to see that it runs

Three uses that sample whole solutions, as `prm-jax label` and `prm-jax search` make them: Monte-Carlo labels (rollouts
after every step of sampled solutions, so that prefixes and what is missing after them have many lengths), majority vote
and best-of-n. Each runs with ``--sampling.engine slots`` and ``batches``, both with --rows sequences at a time, on the
same seeds. Responses of a random model end after a geometric number of tokens, whose mean is about the vocabulary's
size. Everything is compiled by a first run; the engines take turns within each repeat. Seconds are processor time,
which other work on the machine changes least. What was measured is in docs/rollouts.md.

With --out the numbers are written after every use.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax

from prm_jax.data import CarryTask
from prm_jax.models import ModelConfig, init_params, save_weights
from prm_jax.prm.labelling import every_step_records
from prm_jax.prm.prefix_scores import PrefixScorer
from prm_jax.prm.search_results import search_problems
from prm_jax.rollouts import StepOptions, TaskPolicy, load_local_policy
from prm_jax.search.searchers import BestOfN, MajorityVote

ENGINES = ("batches", "slots")


def main() -> None:
    """Measures, prints a table and writes the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--samples", type=int, default=16, help="of a vote, of best-of-n")
    parser.add_argument("--solutions", type=int, default=2, help="that are labelled, per problem")
    parser.add_argument("--rollouts", type=int, default=8, help="from every prefix")
    parser.add_argument("--rows", type=int, default=32, help="sequences at a time")
    parser.add_argument("--longest", type=int, default=192, help="solution in tokens")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, help="write the numbers as JSON")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.problems, options.samples, options.solutions, options.rollouts, options.rows = 2, 4, 1, 2, 4
        options.longest, options.layers, options.width, options.repeats = 24, 1, 32, 1
    setting = {
        "machine": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(), "jax": jax.__version__, "device": str(jax.devices()[0].platform),
        **{key: value for key, value in vars(options).items() if key not in ("out", "smoke")},
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    results: dict[str, Any] = {"setting": setting}
    with tempfile.TemporaryDirectory() as directory:
        task = _saved_model(options, pathlib.Path(directory))
        print("| use | engine | CPU s, median (min - max) | times batches | tokens | utilisation | same results |")
        print("|---|---|--:|--:|--:|--:|--:|")
        for name, use in _uses(options).items():
            results[name] = _measure(options, directory, task, use)
            _print(name, results[name])
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")


def _saved_model(options: argparse.Namespace, directory: pathlib.Path) -> Any:
    """Writes a random model of the task's vocabulary; returns the task."""
    task = CarryTask(3, 6, num_eval=options.problems)
    tokenizer = task.tokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=options.width, intermediate_size=3 * options.width,
        num_layers=options.layers, num_heads=4, num_kv_heads=2, head_dim=options.width // 4,
    )  # fmt: skip
    save_weights(directory, config, init_params(config, jax.random.key(1)))
    tokenizer.save(directory)
    return task


Use = Callable[[TaskPolicy], Any]
"""Does its work for the policy's current problems; returns the results as plain values."""


def _uses(options: argparse.Namespace) -> dict[str, Use]:
    def labels(policy: TaskPolicy) -> Any:
        found, calls = every_step_records(
            policy, {"policy": "random"}, labels="soft", rollouts=options.rollouts, solutions=options.solutions
        )
        return [dataclasses.asdict(record) for record in found], calls

    def search(searcher: Any) -> Use:
        scorer = PrefixScorer(lambda partials: [p.logp / max(len(p.tokens), 1) for p in partials], "logp")

        def use(policy: TaskPolicy) -> Any:
            lines = search_problems(policy, searcher, scorer)
            return [[line[name] for name in ("id", "answer", "response", "correct", "tokens")] for line in lines]

        return use

    return {
        "Monte-Carlo labels": labels,
        "majority vote": search(MajorityVote(samples=options.samples)),
        "best of n": search(BestOfN(samples=options.samples)),
    }


def _measure(options: argparse.Namespace, directory: str, task: Any, use: Use) -> dict[str, Any]:
    """Seconds, tokens and utilisation of a use by engine; the first run of each compiles and is not counted."""
    measured: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for repeat in range(options.repeats + 1):
        for engine in ENGINES if repeat % 2 == 0 else ENGINES[::-1]:
            steps = StepOptions(max_new_tokens=options.longest, rows=options.rows, engine=engine, reuse_mib=None)
            policy = load_local_policy(directory, task, steps, by_steps=False)
            policy.check_prompts(task.eval)
            begun = time.process_time()
            policy.begin(list(task.eval), 0)
            found[engine] = use(policy)
            seconds, stats = round(time.process_time() - begun, 3), policy.engine.stats()
            own = measured.setdefault(engine, {"cpu_seconds": []})
            if repeat:
                own["cpu_seconds"].append(seconds)
            own |= {"responses": stats.responses, "tokens": stats.tokens, "utilisation": round(stats.utilisation, 3)}
    for engine, own in measured.items():
        pairs = zip(own["cpu_seconds"], measured["batches"]["cpu_seconds"], strict=True)
        own["times_batches"] = round(statistics.median(a / b for a, b in pairs), 3)
        own["same_results"] = found[engine] == found["batches"]
    return measured


def _print(name: str, measured: dict[str, Any]) -> None:
    for engine, own in measured.items():
        times = own["cpu_seconds"]
        print(
            f"| {name} | {engine} | {statistics.median(times):.2f} ({min(times):.2f} - {max(times):.2f}) | "
            f"{own['times_batches']:.2f} | {own['tokens']} | {own['utilisation']} | {own['same_results']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
