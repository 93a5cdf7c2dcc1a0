"""Data sets of reasoning-gym: full scores only, and nothing that a model wrote is evaluated unless it is harmless."""

import numpy as np
import pytest

from prm_jax.data import GymTask, load_task, problem_hash
from prm_jax.data.gym import MAX_EXPRESSION, dataset_names, is_harmless
from prm_jax.errors import UserError

HARMLESS = [
    "3", "3.5", "-3 + 4*(5 - 6)/2", "(25 + 7) * 3 - 100/4", "x**2 + 3*x", "x^2", "(x + 1)**3/3 + C", "sin(x)",
    "exp(2*x)/2", "x*sin(x) + cos(x)", "log(x)", "2*pi", "[[0, 1], [1, 2]]", "['A', 'B']", '["a"]', "99**99", "",
]  # fmt: skip

HARMFUL = [
    "__import__('os').system('x')", "open('x')", "exit()", "().__class__", "x.__class__", "[c for c in [1]]",
    "lambda: 0", "eval('1')", "print(1)", "(1)(2)", "x(1)", "[1](0)", "'a'(0)", "9**9**9", "9**999", "(9**9)**99",
    "9**(9**9)", "x**x", "2**-1", "((x+1)**9)**9*(x+2)**9", "'a'*999999999", "999999999*'a'", "[0]*99999", "9*[0]",
    "sin(sin(x))", "5!", "'\\x41'", "f'{x}'", "1e999", "x if y else z", "a; b", "a\nimport os", "_" * 2, "1_000",
    "\uff15", "@", "~1", "1 << 99", "{'a': 1}", "'" + "a" * 50 + "'", "1" * 16, "1 + " * MAX_EXPRESSION,
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_plain_expressions_are_harmless(text):
    assert is_harmless(text)


@pytest.mark.parametrize("text", HARMFUL)
def test_anything_else_is_not(text):
    assert not is_harmless(text)


@pytest.fixture(scope="module")
def gym():
    return pytest.importorskip("reasoning_gym", reason="needs the extra 'tasks'")


@pytest.mark.optional
def test_train_and_eval_are_disjoint_and_reproducible(gym):
    options = {"min_terms": "2", "max_terms": 2, "min_digits": 1, "max_digits": 2}
    task = load_task("chain_sum", **options, num_eval=64)
    again = load_task("gym:chain_sum", **options, num_eval=64)
    assert [p.prompt for p in task.eval] == [p.prompt for p in again.eval]
    assert task.fingerprint == again.fingerprint != load_task("chain_sum", num_eval=64).fingerprint
    train = [task.train[i] for i in range(300)]
    assert not {problem_hash(p) for p in train} & {problem_hash(p) for p in task.eval}
    assert len({p.prompt for p in task.eval}) == 64
    assert all(task.verify(p, p.answer) == 1.0 for p in train)


@pytest.mark.optional
def test_partial_credit_is_no_credit(gym):
    task = GymTask("chain_sum", num_eval=4)
    problem = task.eval[0]
    for response in (f"The answer is {problem.answer}", f"1{problem.answer}", f"{problem.answer} {problem.answer}", ""):
        assert task.verify(problem, response) == 0.0
    marked = GymTask("chain_sum", num_eval=4, extract="marker")
    assert marked.verify(problem, f"It is so.\nThe answer is {problem.answer}.") == 1.0


@pytest.mark.optional
@pytest.mark.parametrize("name", ["countdown", "spiral_matrix", "simple_integration", "n_queens"])
def test_scorers_that_evaluate_see_only_harmless_text(gym, name, tmp_path):
    probe = tmp_path / "probe"
    task = GymTask(name, num_eval=2)
    assert task._evaluates
    problem = task.eval[0]
    assert task.verify(problem, problem.answer) == 1.0
    for attack in (
        f"open({str(probe)!r}, 'w')",
        f"[open({str(probe)!r}, 'w')]",
        f"__import__('os').mkdir({str(probe)!r})",
    ):
        verdict = task.verify_many([problem], [attack])[0]
        assert verdict.status == "fail" and not probe.exists()


@pytest.mark.optional
def test_other_right_answers_pass(gym):
    task = GymTask("countdown", options={"min_numbers": 3, "max_numbers": 3}, num_eval=2)
    problem = task.eval[0]
    assert task.verify(problem, f"({problem.answer})") == 1.0
    assert task.verify(problem, f"{problem.answer} + 1") == 0.0


@pytest.mark.optional
def test_demonstrations_and_presentation(gym):
    task = GymTask("chain_sum", num_eval=2, instruction="Give the number only.", chat=True, extract="marker")
    (prompt, response), *_ = task.demonstrations(np.random.default_rng(0), 2)
    assert prompt[0]["content"].endswith("\n\nGive the number only.") and response.startswith("#### ")


@pytest.mark.optional
def test_messages(gym):
    assert "chain_sum" in dataset_names()
    with pytest.raises(UserError, match=r"no data set 'chain_sums'; did you mean 'chain_sum'\?"):
        GymTask("chain_sums")
    with pytest.raises(UserError, match=r"'chain_sum' has no option 'min_term'; did you mean 'min_terms'\?"):
        load_task("chain_sum", min_term=2)
    with pytest.raises(UserError, match="'min_terms' of the data set 'chain_sum': expected a whole number"):
        load_task("chain_sum", min_terms="two")
    with pytest.raises(UserError, match=r"refuses the options .*max_terms must be >= min_terms"):
        load_task("chain_sum", min_terms=5, max_terms=2)
    with pytest.raises(UserError, match=r"unknown task 'chainsum'; did you mean 'chain_sum'\?"):
        load_task("chainsum")


def test_absent_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym.factory", None)
    with pytest.raises(UserError, match=r"prm-jax\[tasks\]"):
        GymTask("chain_sum")
