"""Tasks made in Python, by a name from outside, and their description."""

import textwrap

import numpy as np
import pytest

from prm_jax.data import Problem, Task, describe_task, load_task, make_task
from prm_jax.errors import UserError
from prm_jax.verifiers import NumberVerifier

_PAIRS = [(f"{a}*{b}=", str(a * b)) for a in range(2, 10) for b in range(2, 10)]


def _reward(problem, response):
    return response.strip() == problem.answer


def test_a_task_from_pairs_and_a_function():
    task = make_task(_PAIRS, _reward, name="products", alphabet="auto", eval_fraction=0.25)
    assert isinstance(task, Task) and len(task.train) + len(task.eval) == len(_PAIRS) and task.eval
    assert not {p.prompt for p in task.train} & {p.prompt for p in task.eval}
    problem = task.train[0]
    assert problem.id.startswith("products/") and task.verify(problem, f" {problem.answer}") == 1.0
    assert task.verify(problem, "no") == 0.0 and task.step_labels(problem, "x") is None
    assert task.alphabet == "*0123456789=" and task.tokenizer().encode("2*3=6")
    assert task.fingerprint == make_task(_PAIRS, _reward, name="products", eval_fraction=0.25).fingerprint


def test_problems_in_other_forms():
    forms = [
        Problem("a", "1", "mine"),
        {"prompt": [{"role": "user", "content": "b"}], "answer": 2, "solution": "2", "level": 5},
        ["c", 3.5],
    ]
    task = make_task(forms, "exact", eval=[("c", 3.5), ("d", "4")])
    assert [p.id for p in task.train] == ["mine", "task/1"] and [p.answer for p in task.eval] == ["3.5", "4"]
    assert task.train[1].metadata == {"solution": "2", "level": 5} and "1 evaluation prompts" in task.notes[0]
    assert task.demonstrations(np.random.default_rng(0), 1)[0][1] == "2"
    for item, message in [
        ("text", "task/0: expected a Problem, a pair"),
        ({"prompt": "x"}, "found a mapping with prompt"),
        (("a", True), "expected an answer"),
    ]:
        with pytest.raises(UserError, match=message):
            make_task([item], "exact")


def test_step_checkers():
    def checker(problem, response):
        return None if "?" in response else [line.strip() == "ok" for line in response.splitlines()]

    task = make_task(_PAIRS, _reward, step_checker=checker)
    assert task.step_labels(task.train[0], "ok\nbad") == [True, False]
    assert task.step_labels(task.train[0], "?") is None
    whole = make_task(_PAIRS, _reward, step_checker=checker, splitter="whole")
    with pytest.raises(UserError, match="returned 2 labels for 1 steps"):
        whole.step_labels(whole.train[0], "ok\nbad")


def test_what_cannot_work_is_refused_at_once():
    for arguments, message in [
        (([], _reward), "has no problems"),
        ((_PAIRS, lambda problem: 1.0), r"called as <lambda>\(problem, response\)"),
        ((_PAIRS, lambda problem, response: 2.0), "failed on the first problem, task/.*returned 2.0"),
        ((_PAIRS, lambda problem, response: 1 / 0), "ZeroDivisionError"),
        ((_PAIRS, "nmber"), "did you mean 'number'"),
    ]:
        with pytest.raises(UserError, match=message):
            make_task(*arguments)
    with pytest.raises(UserError, match="all 64 problems of the task 'task' went to evaluation"):
        make_task(_PAIRS, _reward, eval_fraction=0.9999999)


_MODULE = """
    from prm_jax.data import make_task

    def make(size: int = 3, *, hard: bool = False, splitter_options=None):
        assert isinstance(size, int) and isinstance(hard, bool)
        pairs = [(f"{n}+{n}=", str(2 * n)) for n in range(size)]
        return make_task(pairs, reward, eval_fraction=0.0, name=f"doubles-{size}-{hard}-{splitter_options}")

    def reward(problem, response):
        return response == problem.answer

    def nothing():
        return 5

    def fails():
        raise RuntimeError("no licence")

    class Bare:
        name = "bare"
        train = ["x"]
        eval = []
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_task.py").write_text(textwrap.dedent(_MODULE))
    monkeypatch.chdir(tmp_path)


def test_a_task_from_outside(module):
    task = load_task("my_task.py:make", size="5", hard="true", **{"splitter.a": "1"})
    assert task.name == "doubles-5-True-{'a': '1'}" and len(task.train) == 5
    assert load_task({"name": "my_task:make", "size": 2}).name == "doubles-2-False-None"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("my_task.py:mak", {}, r"the task 'my_task.py:mak' \(--task.name\).*did you mean 'make'"),
        ("absent.py:make", {}, "the file does not exist"),
        ("my_task.py:make", {"sise": 3}, "has no option 'sise'; did you mean 'size'"),
        ("my_task.py:make", {"size": "many"}, "expected a whole number, found 'many'"),
        ("my_task.py:nothing", {}, "is not a task: it returned int, which has no name, train"),
        ("my_task.py:fails", {}, "could not be made: RuntimeError: no licence"),
        ("my_task.py:Bare", {}, "returned Bare, which has no splitter, stop"),
        ("my_task.py", {}, "unknown task 'my_task.py'"),
        ("sys:exit", {}, "could not be made: "),
        ("", {}, "a task needs a name"),
        ("carry", {".": "x"}, "has no option '.'"),
    ],
)
def test_what_is_not_a_task_is_refused(module, name, options, message):
    with pytest.raises(UserError, match=message):
        load_task(name, **options)


def test_descriptions():
    task = make_task(_PAIRS, NumberVerifier(), name="products", splitter="sentence")
    text = describe_task(task)
    problem = task.train[0]
    assert "products: " in text and "<answer>...</answer> or what follows '####' or" in text
    assert f"#### {problem.answer}" in text and problem.prompt in text and "cut by sentence" in text
    assert "'I do not know.' gets 0 (fail: no answer)" in text
    odd = make_task(_PAIRS, lambda problem, response: 0.5)
    assert "none of the usual ways" in describe_task(odd) and "the function <lambda>" in describe_task(odd)
    both = make_task(_PAIRS, "0.5*number,0.5*exact")
    assert "0.5 * (number, lenient, reading" in describe_task(both)
    assert "passes     #" in describe_task(load_task("carry", num_eval=8))
    assert describe_task(load_task("arithmetic", digits=1, num_eval=8)).count("\n") >= 5
