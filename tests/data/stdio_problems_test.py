"""The problems of examples/: their solutions pass, and solutions with a planted bug fail."""

import json
import pathlib

import pytest

from prm_jax.data import load_task
from prm_jax.verifiers.sandbox import available_levels

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
FILE = EXAMPLES / "stdio_problems.jsonl"
pytestmark = pytest.mark.skipif(all(available_levels().values()), reason="no sandbox on this machine")


def test_solutions_pass_and_bugs_fail():
    task = load_task("code", train=str(FILE), check_solutions=True, eval_fraction=0.2)  # refuses a solution that fails
    rows = {row["question"]: row for row in map(json.loads, FILE.read_text().splitlines())}
    problems = [*task.train, *task.eval]
    assert len(problems) == len(rows) == 40 and len(task.eval) > 0
    broken = []
    for problem in problems:
        (old, new), solution = rows[problem.prompt]["bug"], problem.metadata["solution"]
        assert solution.count(old) >= 1
        broken.append(solution.replace(old, new))
    verdicts = task.verify_many(problems, broken)
    assert [verdict.status for verdict in verdicts] == ["fail"] * 40
    task.verifier.close()


@pytest.mark.heavy
def test_the_easier_functions_have_right_solutions():
    train, held_out = (str(EXAMPLES / f"function_problems{name}.jsonl") for name in ("", "_held_out"))
    task = load_task("code", train=train, eval=held_out, check_solutions=True)
    assert (len(task.train), len(task.eval)) == (40, 20)
    assert task.verify(task.train[0], "def something_else():\n    pass") == 0.0
    task.verifier.close()
