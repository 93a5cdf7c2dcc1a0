"""Commands over many problems with two processes: the results of one process, in one file."""

import json
import shutil

import numpy as np
import pytest

from prm_jax import cli
from tests.several import run_together

pytestmark = pytest.mark.heavy

CALLS = """
import json, sys
from prm_jax.cli import main
for words in json.loads(sys.argv[1]):
    if code := main(words):
        sys.exit(code)
"""
TASK = ["--problems", "5", "--chunk", "3", "--task-options", "max_operands", "4", "--sampling.step-tokens", "8",
        "--sampling.max-new-tokens", "16"]  # fmt: skip


def calls(folder, policy, model_path, data_path) -> list[list[str]]:
    """One call of each command; a later one may read what an earlier one wrote."""
    train = ["--data.path", data_path, "--model.path", model_path, "--train.batch-size", "8", "--max-steps", "2"]
    return [[str(word) for word in words] for words in (
        ["train-prm", *train, "--train.learning-rate", "1e-2", "--mesh.data", "4", "--no-plots",
         "--run-dir", folder / "r"],
        ["score", folder / "r" / "model", data_path, "--out", folder / "scores"],
        ["eval", data_path, "--model", folder / "r" / "model", "--out", folder / "eval", "--resamples", "0"],
        ["search", policy, *TASK, "--method", "beam", "--beams", "2", "--width", "2", "--max-steps", "2",
         "--out", folder / "found.jsonl"],
        ["label", policy, folder / "labels.jsonl", *TASK, "--method", "every_step", "--solutions", "1",
         "--rollouts", "1"],
        ["generate", policy, "1+2=", "3+4=", "5+6=", "--json", "--max-new-tokens", "6", "--batch-size", "2"],
    )]  # fmt: skip


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_close(found, expected) -> None:
    """Equal, numbers that are not whole up to 1e-4."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in found:
            check_close(found[name], expected[name])
    elif isinstance(found, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_close(one, other)
    elif isinstance(found, float):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    else:
        assert found == expected


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(carry_model, model_path, data_path, tmp_path, capsys):
    both, alone = tmp_path / "both", tmp_path / "alone"
    given = json.dumps(calls(both, carry_model, model_path, data_path))
    first, second = run_together([["-c", CALLS, given]] * 2, devices=2, seconds=500)
    assert first.code == 0 and second.code == 0, first.err[-3000:] + second.err[-3000:]
    assert second.out == "" and "problems" not in second.err
    for words in calls(alone, carry_model, model_path, data_path):
        assert cli.main(words) == 0, words
    for name in ("found.jsonl", "labels.jsonl", "scores/scores.jsonl", "eval/scores/steps.jsonl"):
        check_close(lines(both / name), lines(alone / name))
    assert {path.name for path in both.iterdir()} == {path.name for path in alone.iterdir()}
    curves = [
        [line["prm/loss"] for line in lines(path / "r" / "metrics.jsonl") if "prm/loss" in line]
        for path in (both, alone)
    ]
    np.testing.assert_allclose(*curves, rtol=1e-5)
    results = [json.loads((path / "eval" / "results.json").read_text()) for path in (both, alone)]
    for one in results:
        one.pop("model")
    check_close(*results)
    written = [[json.loads(line) for line in text.splitlines() if line.startswith("{")] for text in
               (first.out, capsys.readouterr().out)]  # fmt: skip
    assert len(written[0]) == 3
    check_close(*written)


def test_an_error_of_one_process_ends_the_command_in_all(carry_model, tmp_path):
    for place, folder in enumerate(("here", "there")):  # the same relative path, but process 1 finds nothing
        (tmp_path / folder).mkdir()
        if not place:
            shutil.copytree(carry_model, tmp_path / folder / "model")
    code = "import os, sys; os.chdir(sys.argv.pop(1)); from prm_jax.cli import main; sys.exit(main())"
    commands = [["-c", code, str(tmp_path / folder), "search", "model", *TASK] for folder in ("here", "there")]
    first, second = run_together(commands, seconds=200)
    assert first.code == 2 and second.code == 2
    assert "stopped because process 1 on " in first.err and "no weights at model" in first.err
    assert "no weights at model" in second.err and "stopped" not in second.err
