"""The task of programs: specifications, the careless teacher, tests in the sandbox, truth about statements."""

import dataclasses

import numpy as np
import pytest

from prm_jax.data import Problem, Task, is_eval, load_task
from prm_jax.data.programs import operations
from prm_jax.errors import UserError
from prm_jax.verifiers.sandbox import available_levels

pytestmark = pytest.mark.skipif(all(available_levels().values()), reason="no sandbox on this machine")
PROBLEM = Problem("a+b;*c;d-:", "", "p")


@pytest.fixture(scope="module")
def task():
    made = load_task("programs", num_eval=16, workers="1")
    yield made
    made.verifier.close()


def test_problems(task):
    assert isinstance(task, Task) and len(task.train) == 1 << 17
    assert all(is_eval(problem) for problem in task.eval) and not is_eval(task.train[3])
    assert task.train[3] == task.train[3] and task.train[-1] == task.train[len(task.train) - 1]
    tokenizer = task.tokenizer()
    for problem in task.eval:
        for text in (problem.prompt, task.solve(problem)):
            assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(UserError, match=r"expected one like 'a\+b;\*c;d-:'"):
        operations(Problem("a+b", "", "q"))


def test_solutions_pass_and_statements_the_wrong_way_round_do_not(task):
    assert task.solve(PROBLEM) == " x=a+b\n x=x*c\n return d-x"
    solutions = [task.solve(problem) for problem in task.eval]
    assert {verdict.status for verdict in task.verify_many(task.eval, solutions)} == {"pass"}
    answer = '{"tests": ["assert f(1, 2, 3, 4) == -5"], "prefix": "def f(a,b,c,d):"}'
    problem = dataclasses.replace(PROBLEM, answer=answer)
    scores = [
        task.verify(problem, text)
        for text in (
            " return d-c*(a+b)",
            " x=a+b\n x=x*c\n return x-d",
            " return -5 if a else",
            "",
            " import os\n os._exit(0)",
        )
    ]
    assert scores == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_teacher_writes_subtractions_from_an_operand_the_wrong_way_round():
    made = load_task("programs", careless=1.0, reversals=1.0, min_operations=2, max_operations=2, num_eval=4)
    prompt, response = made.demonstrations(np.random.default_rng(0), 1)[0]
    first, second = prompt[:-1].split(";")
    assert second.endswith("-") and response == f" x={first}\n return x-{second[0]}"
    assert made.solve(Problem(prompt, "", "r")) == f" x={first}\n return {second[0]}-x"
    careful = load_task("programs", careless=0.0, num_eval=4)
    pairs = careful.demonstrations(np.random.default_rng(0), 20)
    assert all(careful.solve(Problem(prompt, "", "s")) == response for prompt, response in pairs)


@pytest.mark.parametrize(
    ("response", "labels"),
    [
        (" x=a+b\n x=x*c\n return d-x", [1, 1, 1]),
        (" x=b+a\n x=c*x\n return d-x", [1, 1, 1]),
        (" x=a+b\n x=x*c\n return x-d", [1, 1, 0]),
        (" x=a+b\n return d-x", [1, 0]),
        (" x=a+b\n x=x*c\n x=d-x\n return x", [1, 1, 0, 0]),
        (" x=a+b;x=x*c\n return d-x", [0, 0]),
        (" y=a+b\n x=x*c\n return", [0, 1, 0]),
        ("garbage", [0]),
        ("", []),
    ],
)
def test_step_labels(task, response, labels):
    assert task.step_labels(PROBLEM, response) == [bool(label) for label in labels]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_operations": 5}, "2 <= min_operations <= max_operations <= 8, found 5 and 4"),
        ({"careless": 1.5}, r"careless is a probability in \[0, 1\], found 1.5"),
        ({"tests": 0}, "must be at least 1"),
        ({"max_operations": 2, "min_operations": 2, "num_eval": 100_000}, "evaluation problems with these options"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        load_task("programs", **options)
