"""Arithmetic prompts: their text, their judging, and a split that turning a sum round does not cross."""

import numpy as np
import pytest

from prm_jax.data import ArithmeticTask, Problem, problem_hash
from prm_jax.errors import UserError


def test_few_shot_prompt():
    task = ArithmeticTask("mul", digits=1, shots=2)
    lines = task.train[0].prompt.split("\n")
    assert len(lines) == 3
    for line in lines[:2]:
        left, right = line.split(" = ")
        a, b = left.split(" \u00d7 ")
        assert int(a) * int(b) == int(right)
    a, b = lines[2].removesuffix(" =").split(" \u00d7 ")
    assert task.train[0].answer == str(int(a) * int(b))
    assert task.stop == ("\n",)


def test_question_and_chat_prompts():
    question = ArithmeticTask(style="question", shots=1).train[0].prompt
    assert question.startswith("Q: What is ") and question.endswith("?\nA:")
    (message,) = ArithmeticTask(style="chat").train[0].prompt
    assert message["role"] == "user" and message["content"].startswith("What is ")
    assert ArithmeticTask(style="chat").stop == ()


@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
@pytest.mark.parametrize("digits", [1, 2])
def test_split_is_by_unordered_operands_and_spares_the_examples(operation, digits):
    task = ArithmeticTask(operation, digits=digits, num_eval=64)

    def identity(problem):
        row = problem.metadata["operands"]
        return tuple(row) if operation == "sub" else tuple(sorted(row))

    train = {identity(task.train[i]) for i in range(1500)}
    held_out = {identity(p) for p in task.eval}
    assert not train & held_out
    assert not {problem_hash(task.train[i]) for i in range(1500)} & {problem_hash(p) for p in task.eval}
    shots = {tuple(row) if operation == "sub" else tuple(sorted(row)) for row in task._shots}
    assert len(shots) == 4 and not shots & (train | held_out)
    assert len({p.prompt for p in task.eval}) == len(task.eval)
    low, high = 10 ** (digits - 1), 10**digits
    assert all(low <= x < high for row in train for x in row)


def test_difference_of_two_is_not_negative():
    task = ArithmeticTask("sub")
    assert all(int(task.train[i].answer) >= 0 for i in range(300))


@pytest.mark.parametrize(
    ("options", "response", "score"),
    [
        ({}, " 63\n", 1.0),
        ({}, "63", 1.0),
        ({}, " 64\n", 0.0),
        ({}, " 63\n12 + 3 = 15", 1.0),  # the next line is another question
        ({}, " 6 63", 0.0),
        ({}, " 63 or 64", 0.0),
        ({}, "", 0.0),
        ({"style": "chat"}, "24 + 39 = 63.", 1.0),
        ({"style": "chat"}, "63 is 24 + 39", 0.0),  # the last number counts
        ({"steps": True}, " 24 + 39 = 63 #### 63\n", 1.0),
        ({"steps": True}, " 24 + 39 = 63\n", 0.0),
    ],
)
def test_verify(options, response, score):
    task = ArithmeticTask(**options)
    assert task.verify(Problem("24 + 39 =", "63", "p", {"operands": [24, 39]}), response) == score


def test_step_labels():
    task = ArithmeticTask(terms=3, steps=True)
    problem = Problem("2 + 3 + 4:", "9", "p", {"operands": [2, 3, 4]})
    labels = {
        " 2 + 3 = 5; 5 + 4 = 9 #### 9\n": [1, 1, 1],
        " 2 + 3 = 6; 6 + 4 = 10 #### 10\n": [0, 0, 0],
        " 2 + 3 = 6; 5 + 4 = 9 #### 9\n": [0, 1, 1],
        " 2 + 3 = 5; 5 + 4 = 9 #### 8\n": [1, 1, 0],
        " 2 + 3 = 5 #### 9\n": [1, 0],
        " 2 + 3 = 5; 5 + 4 = 9; 9 + 1 = 10 #### 10": [1, 1, 0, 0],
        "": [],
    }
    for response, expected in labels.items():
        assert task.step_labels(problem, response) == [bool(x) for x in expected], response
        assert task.first_error(problem, response) == (expected.index(0) if 0 in expected else -1)
        assert len(task.splitter(response)) == len(expected)
    assert ArithmeticTask().step_labels(problem, "9") is None and ArithmeticTask().first_error(problem, "9") is None


@pytest.mark.parametrize("style", ["equation", "question", "chat"])
@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_demonstrations_are_right(operation, style, steps):
    task = ArithmeticTask(operation, terms=3, digits=1, style=style, steps=steps, num_eval=16)
    by_prompt = {}
    pairs = task.demonstrations(np.random.default_rng(0), 20)
    for index in np.random.default_rng(0).integers(len(task.train), size=20):
        problem = task.train[int(index)]
        by_prompt[problem_hash(problem)] = problem
    for prompt, response in pairs:
        problem = by_prompt[problem_hash(prompt)]
        assert task.verify(problem, response) == 1.0
        assert not steps or all(task.step_labels(problem, response))


def test_seed_and_options_are_in_the_fingerprint():
    prints = {ArithmeticTask(**o).fingerprint for o in ({}, {"seed": 1}, {"digits": 3}, {"shots": 3}, {"steps": True})}
    assert len(prints) == 5 and ArithmeticTask().fingerprint in prints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operation": "div"}, "add, sub, mul"),
        ({"style": "poem"}, "equation, question and chat"),
        ({"digits": 0}, "1 <= digits <= 6, found 0"),
        ({"terms": 1}, "2 <= terms"),
        ({"digits": 1, "shots": 60}, "worked examples"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        ArithmeticTask(**options)
