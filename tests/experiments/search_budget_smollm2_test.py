"""The parts of the experiment with SmolLM2 that need no SmolLM2."""

import json

import numpy as np

from experiments.search_budget import smollm2
from experiments.search_budget.main import Outcome


def test_sums_to_learn_from_and_to_judge_on_are_different(tmp_path):
    config = smollm2.Config(problems=5, prm_problems=7)
    sides = [[json.loads(line) for line in open(path)] for path in smollm2.write_problems(tmp_path, config)]
    assert [len(side) for side in sides] == [7, 5]
    prompts = [line["prompt"] for side in sides for line in side]
    assert len(set(prompts)) == 12
    for line in sides[0] + sides[1]:
        *shots, own = line["prompt"].split("\n\n")
        assert len(shots) == 3 and own.endswith("\n") and own.removeprefix("Sum: ").count("+") == 2
        assert str(sum(map(int, own.removeprefix("Sum: ").split("+")))) == line["answer"]
        assert all(own.strip() != shot.splitlines()[0] for shot in shots)


def test_worked_sums():
    assert smollm2.worked([7, 5, 9]) == "Sum: 7 + 5 + 9\n7 + 5 = 12\n12 + 9 = 21\nAnswer: 21"


def test_what_is_done_is_not_done_again(tmp_path):
    outcome = Outcome(*(np.array([i, 0.5]) for i in range(4)))
    path = tmp_path / "log-prob, DVTS, n = 4.json"
    for make in (lambda: outcome, None):
        found = smollm2.kept(path, make)
        np.testing.assert_array_equal(found.tokens, [1, 0.5])
        np.testing.assert_array_equal(found.silent, [3, 0.5])
