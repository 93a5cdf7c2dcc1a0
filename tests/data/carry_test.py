"""The carry task: the teacher's rule, exact truth about steps, and a split that nothing crosses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax.data import CarryTask, Problem, is_eval, problem_hash
from prm_jax.data.carry import ALPHABET, operands
from prm_jax.errors import UserError

PROBLEM = Problem("7+5+9=", "21", "p")


@pytest.fixture(scope="module")
def task() -> CarryTask:
    return CarryTask()


def test_solution_is_written_out(task):
    assert task.solve(PROBLEM) == "7+5=12;12+9=21#21"
    assert task.splitter(task.solve(PROBLEM)) == [(0, 7), (7, 14), (14, 17)]


def test_teacher_who_always_slips_drops_every_carry(task):
    # 7+5: the units overflow, 12 -> 2.  2+9: they overflow again, 11 -> 1.
    slips = CarryTask(drop_carry=1.0, num_eval=8)
    assert slips.demonstration(PROBLEM, np.random.default_rng(0)) == "7+5=2;2+9=1#1"
    # 8+1 does not overflow; 99+1 (tens and units) loses ten, not a hundred.
    assert slips.demonstration(Problem("8+1+1=", "10", "q"), np.random.default_rng(0)) == "8+1=9;9+1=0#0"
    careful = CarryTask(drop_carry=0.0, num_eval=8)
    assert careful.demonstration(PROBLEM, np.random.default_rng(0)) == task.solve(PROBLEM)


def test_rate_of_dropped_carries(task):
    rng = np.random.default_rng(1)
    problem = Problem("9+9=", "18", "r")
    dropped = [task.demonstration(problem, rng) == "9+9=8#8" for _ in range(4000)]
    assert abs(np.mean(dropped) - 0.6) < 4 * np.sqrt(0.24 / 4000)


@pytest.mark.parametrize(
    ("response", "absolute", "local"),
    [
        ("7+5=12;12+9=21#21", [1, 1, 1], [1, 1, 1]),
        ("7+5=2;2+9=11#11", [0, 0, 0], [0, 1, 1]),  # one slip, propagated
        ("7+5=2;2+9=1#1", [0, 0, 0], [0, 0, 1]),  # two slips
        ("7+5=2;12+9=21#21", [0, 1, 1], [0, 0, 1]),  # wrong, then from the true total all the same
        ("7+5=12;12+9=11#11", [1, 0, 0], [1, 0, 1]),
        ("7+5=12;12+9=21#11", [1, 1, 0], [1, 1, 0]),
        ("7+9=16;16+5=21#21", [0, 0, 1], [0, 0, 1]),  # operands out of order
        ("7+5=12#12", [1, 0], [1, 0]),  # an operand left out
        ("7+5=12;12+9=21", [1, 1], [1, 1]),  # cut off
        ("7+5=12;12+", [1, 0], [1, 0]),
        ("7+5=12;12+9=21#21#21", [1, 1, 1, 0], [1, 1, 1, 0]),
        ("7+5=12;12+9=21;21+0=21#21", [1, 1, 0, 0], [1, 1, 0, 0]),
        ("07+5=12;12+9=21#021", [0, 1, 0], [0, 0, 0]),  # numbers are written in one way
        ("garbage\n;#", [0, 0], [0, 0]),
        ("", [], []),
    ],
)
def test_step_labels(task, response, absolute, local):
    assert task.step_labels(PROBLEM, response) == [bool(x) for x in absolute]
    assert task.step_labels(PROBLEM, response, truth="local") == [bool(x) for x in local]
    first = absolute.index(0) if 0 in absolute else -1
    assert task.first_error(PROBLEM, response) == first


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("7+5=12;12+9=21#21", 1.0),
        ("#21", 1.0),  # the outcome looks at the answer alone
        ("7+5=2;2+9=11#11", 0.0),
        ("#21#22", 0.0),
        ("#21#21", 0.0),
        ("21", 0.0),
        ("#", 0.0),
        ("#2 1", 0.0),
        ("", 0.0),
    ],
)
def test_verify(task, response, score):
    assert task.verify(PROBLEM, response) == score
    (verdict,) = task.verify_many([PROBLEM], [response])
    assert (verdict.score, verdict.status) == (score, "pass" if score else "fail")


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=ALPHABET, max_size=40) | st.text(max_size=20), st.integers(0, 500))
def test_labels_match_the_splitter_on_any_text(text, index):
    task = CarryTask(num_eval=8)
    problem = task.train[index]
    labels = task.step_labels(problem, text)
    assert len(labels) == len(task.splitter(text))
    task.verify(problem, text)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_absolute_and_local_agree_on_the_first_error(index, seed):
    task = CarryTask(3, 9, num_eval=8)
    problem = task.train[index]
    response = task.demonstration(problem, np.random.default_rng(seed))
    absolute, local = task.step_labels(problem, response), task.step_labels(problem, response, truth="local")
    first = task.first_error(problem, response)
    assert (local.index(False) if False in local else -1) == first
    # The teacher writes every step, and slips cannot cancel (each lowers the total by ten), so his answer is
    # right exactly when no step is wrong.
    assert (first == -1) == (task.verify(problem, response) == 1.0) == all(absolute)


def test_train_and_eval_are_disjoint_for_every_seed_and_length():
    held_out = {problem_hash(p) for seed in (0, 1) for p in CarryTask(seed=seed).eval}
    task = CarryTask(seed=2)
    train = {problem_hash(task.train[i]) for i in range(4000)}
    assert not train & held_out
    lengths = {len(operands(p)) for p in task.eval}
    assert lengths == {3, 4, 5}
    assert all(is_eval(p) for p in task.eval)
    assert len({p.prompt for p in task.eval}) == len(task.eval) == 512


def test_training_problems_are_a_function_of_seed_and_index():
    a, b = CarryTask(seed=5), CarryTask(seed=5)
    assert [a.train[i] for i in (0, 77, -1)] == [b.train[i] for i in (0, 77, len(b.train) - 1)]
    assert a.train[3:5] == [a.train[3], a.train[4]]
    assert a.fingerprint == b.fingerprint != CarryTask(seed=6).fingerprint
    with pytest.raises(IndexError):
        a.train[len(a.train)]


def test_operands_are_uniform():
    task = CarryTask(num_eval=8)
    rows = [operands(task.train[i]) for i in range(3000)]
    lengths = np.bincount([len(row) for row in rows])[3:]
    np.testing.assert_allclose(lengths / 3000, 1 / 3, atol=0.04)
    digits = np.bincount(np.concatenate(rows), minlength=10)
    np.testing.assert_allclose(digits / digits.sum(), 0.1, atol=0.02)


def test_demonstrations_come_from_training_and_are_right_a_third_of_the_time(task):
    pairs = task.demonstrations(np.random.default_rng(0), 2000)
    assert pairs == task.demonstrations(np.random.default_rng(0), 2000)
    problems = [Problem(prompt, str(sum(map(int, prompt[:-1].split("+")))), "") for prompt, _ in pairs]
    assert not any(is_eval(p) for p in problems)
    right = np.mean([task.verify(p, r) for p, (_, r) in zip(problems, pairs, strict=True)])
    assert 0.3 < right < 0.42
    assert set("".join(p + r for p, r in pairs)) <= set(ALPHABET)


@pytest.mark.parametrize("operand_count", [12, 16])
def test_long_horizon(operand_count):
    task = CarryTask(operand_count, operand_count, num_eval=16)
    problem = task.eval[0]
    response = task.solve(problem)
    assert len(task.splitter(response)) == operand_count
    assert all(task.step_labels(problem, response))
    assert task.max_prompt_tokens == len(problem.prompt)
    longest = max(len(task.demonstrations(np.random.default_rng(s), 1)[0][1]) for s in range(50))
    assert longest < task.max_response_tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_operands": 1}, "2 <= min_operands"),
        ({"min_operands": 5, "max_operands": 4}, "found 5 and 4"),
        ({"drop_carry": 1.5}, "probability"),
        ({"num_eval": 0}, "at least 1"),
        ({"min_operands": 2, "max_operands": 2}, "too few evaluation problems"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        CarryTask(**options)


def test_operands_refuses_other_prompts():
    with pytest.raises(UserError, match="is not a problem of the carry task"):
        operands(Problem("1 + 2 =", "3", ""))


def test_tokenizer_is_one_token_a_character(task):
    tokenizer = task.tokenizer()
    response = task.solve(PROBLEM)
    ids = tokenizer.encode(PROBLEM.prompt + response)
    assert len(ids) == len(PROBLEM.prompt + response)
    assert tokenizer.decode(ids) == PROBLEM.prompt + response
    assert tokenizer.vocab_size == len(ALPHABET) + 3 == 17
