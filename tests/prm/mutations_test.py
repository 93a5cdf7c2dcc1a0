"""Step labels of programs by editing right solutions."""

import json

import pytest

from prm_jax import cli
from prm_jax.data import load_task, read_step_data
from prm_jax.errors import UserError
from prm_jax.prm.labelling.mutations import mutation_records
from prm_jax.verifiers.sandbox import available_levels

pytestmark = pytest.mark.skipif(all(available_levels().values()), reason="no sandbox on this machine")

ROWS = [
    {
        "task_id": 1,
        "text": "Count the even numbers below a limit.",
        "code": "def count(items, limit):\n    total = 0\n    for item in items:\n"
        "        if item % 2 == 0 and item < limit:\n            total += 1\n    return total\n",
        "test_list": ["assert count([1, 2, 4, 8], 8) == 2", "assert count([], 3) == 0"],
    },
    {
        "task_id": 2,
        "text": "Its own solution is wrong.",
        "code": "def one():\n    return 2\n",
        "test_list": ["assert one() == 1"],
    },
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("code") / "mbpp.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def test_labels_are_right_before_the_edit_wrong_at_it_and_unknown_after(path):
    task = load_task("code", train=str(path), eval_fraction=0.0)
    records, runs = mutation_records(task, task.train, {"a": 1}, mutations=6, refactors=3, seed=0)
    assert runs == len(records) + 3  # the wrong solution and its edits are left out
    assert {record.group for record in records} == {"1"}
    assert {record.outcome for record in records} == {0.0, 1.0}
    for record in records:
        if record.outcome == 1.0:
            assert set(record.labels) == {1.0}
        else:
            step = record.provenance["step"]
            rest = len(record.steps) - step - 1
            assert record.labels == (1.0,) * step + (0.0,) + (None,) * rest
            assert record.steps[step] not in ROWS[0]["code"]
        assert _passes("".join(record.steps)) == bool(record.outcome)
    again, _ = mutation_records(task, task.train, {"a": 1}, mutations=6, refactors=3, seed=0)
    assert again == records


def _passes(program):
    names = {}
    exec(program, names)
    try:
        return names["count"]([1, 2, 4, 8], 8) == 2 and names["count"]([], 3) == 0
    except Exception:
        return False


def test_a_division_of_the_problems_changes_nothing(path):
    task = load_task("code", train=str(path), eval_fraction=0.0)
    number = next(i for i, problem in enumerate(task.train) if problem.id == "1")
    whole, _ = mutation_records(task, task.train, {}, mutations=4, refactors=1, seed=3)
    part, _ = mutation_records(task, [task.train[number]], {}, mutations=4, refactors=1, seed=3, first_problem=number)
    assert [record.steps for record in part] == [record.steps for record in whole]


def test_from_the_command_line(path, tmp_path, capsys):
    out = tmp_path / "steps.jsonl"
    words = [
        str(out),
        "--task",
        "code",
        "--task-options",
        "train",
        str(path),
        "eval_fraction",
        "0",
        "--method",
        "mutate",
    ]
    assert cli.main(["label", "none", *words]) == 0
    told = capsys.readouterr().out
    assert "programs" in told and "1 of 2 problems are left out: they have no solution" in told
    records = read_step_data(out)
    assert len(records) > 5 and records[0].provenance["method"] == "mutate"
    out.unlink()
    assert cli.main(["label", "smollm2", *words]) == 2
    assert "give none as the policy" in capsys.readouterr().err
    assert cli.main(["label", "none", *words[:-1], "omega"]) == 2
    assert "needs a policy" in capsys.readouterr().err
    failing = tmp_path / "failing.jsonl"
    failing.write_text(json.dumps({**ROWS[0], "code": "def count(items, limit):\n    return 7\n"}) + "\n")
    words[words.index(str(path))] = str(failing)
    assert cli.main(["label", "none", *words]) == 2
    assert "none has a solution that passes its own tests" in capsys.readouterr().err


def test_problems_without_solutions_are_refused():
    task = load_task("carry", num_eval=4)
    with pytest.raises(UserError, match="has a solution to edit"):
        mutation_records(task, [_without_solution(task)], {}, mutations=1, refactors=0, seed=0)


def _without_solution(task):
    import dataclasses

    return dataclasses.replace(task.train[0], metadata={})
