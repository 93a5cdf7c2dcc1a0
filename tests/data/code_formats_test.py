"""Programming problems in published formats: what is read, and what is refused with its place."""

import base64
import json
import pickle
import zlib

import pytest

from prm_jax.data import load_task
from prm_jax.data.code_formats import READERS, find_format
from prm_jax.errors import UserError
from prm_jax.verifiers.code import read_reference
from prm_jax.verifiers.sandbox import CallTests, IOTests, available_levels

needs_sandbox = pytest.mark.skipif(all(available_levels().values()), reason="no sandbox on this machine")

HUMANEVAL = {
    "task_id": "H/0",
    "prompt": "import math\n\ndef area(r: float) -> float:\n    '''Area of a circle.'''\n",
    "entry_point": "area",
    "canonical_solution": "    return math.pi * r * r\n",
    "test": "def check(candidate):\n    assert math.fabs(candidate(1.0) - math.pi) < 1e-9\n",
}
MBPP = {
    "task_id": 7,
    "text": "Write a function that adds one.",
    "code": "def inc(x):\n    return x + 1",
    "test_list": ["assert inc(1) == 2", "assert inc(-1) == 0"],
    "test_setup_code": "",
}
APPS = {
    "problem_id": 3,
    "question": "Read a number and print its double.",
    "input_output": json.dumps({"inputs": ["2\n", "5\n"], "outputs": ["4\n", "10\n"]}),
    "solutions": json.dumps(["print(2 * int(input()))"]),
    "starter_code": "",
}
APPS_CALL = {
    "problem_id": 4,
    "question": "Return the pair in order.",
    "input_output": json.dumps({"fn_name": "order", "inputs": [[2, 1], [3, 4]], "outputs": [[[1, 2]], [3, 4]]}),
    "solutions": json.dumps(["class Solution:\n    def order(self, a, b):\n        return (min(a, b), max(a, b))"]),
    "starter_code": "class Solution:\n    def order(self, a, b):\n",
}
CONTESTS = {
    "name": "double",
    "description": "Print twice the number.",
    "public_tests": {"input": ["1\n"], "output": ["2\n"]},
    "private_tests": {"input": ["4\n"], "output": ["8\n"]},
    "generated_tests": {"input": [], "output": []},
    "solutions": {"language": [2, 3], "solution": ["int main() {}", "print(2 * int(input()))"]},
}


def packed(cases):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


LIVE = {
    "question_id": "q1",
    "question_content": "Add two numbers.",
    "starter_code": "class Solution:\n    def add(self, a, b):\n",
    "metadata": json.dumps({"func_name": "add"}),
    "public_test_cases": json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]),
    "private_test_cases": packed([{"input": "5\n7", "output": "12", "testtype": "functional"}]),
}
PRIME_MATH = {
    "data_source": "numina",
    "prompt": [{"role": "user", "content": "What is 2 + 2?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"index": 0, "split": "dummy"},
}
PRIME_CODE = {
    "data_source": "apps",
    "prompt": [{"role": "user", "content": "Print twice the number."}],
    "ability": "code",
    "reward_model": {"style": "rule", "ground_truth": json.dumps({"inputs": ["2\n"], "outputs": ["4\n"]})},
    "extra_info": {"index": 1, "split": "dummy"},
}


@pytest.mark.parametrize(
    ("name", "row", "tests", "solution"),
    [
        ("humaneval", HUMANEVAL, CallTests, "def area(r):\n    return math.pi * r ** 2"),
        ("mbpp", MBPP, CallTests, MBPP["code"]),
        ("apps", APPS, IOTests, "print(2 * int(input()))"),
        ("apps", APPS_CALL, CallTests, "def order(a, b): return sorted([a, b])"),
        ("code_contests", CONTESTS, IOTests, "print(2 * int(input()))"),
        ("livecodebench", LIVE, CallTests, "class Solution:\n    def add(self, a, b): return a + b"),
        ("prime", PRIME_CODE, IOTests, "print(2 * int(input()))"),
    ],
)
@needs_sandbox
def test_reads_a_problem_that_its_solution_passes(any_verifier, name, row, tests, solution):
    assert find_format(row, "x:1") == name
    problem = READERS[name](row, "x:1")
    assert isinstance(read_reference(problem.answer)[1], tests)
    assert any_verifier.verify(f"```python\n{solution}\n```", problem.answer).status == "pass"
    wrong = any_verifier.verify("```python\ndef area(r): return 0\ndef inc(x): return x\nprint(1)\n```", problem.answer)
    assert wrong.status == "fail"


@pytest.fixture(scope="module")
def any_verifier():
    from prm_jax.verifiers import CodeVerifier

    made = CodeVerifier(workers=1)
    yield made
    made.close()


def test_helpers_of_the_prompt_belong_to_the_tests_and_not_to_the_program():
    problem = READERS["humaneval"](HUMANEVAL, "x:1")
    prefix, tests = read_reference(problem.answer)
    assert tests.setup == "import math" and tests.names() == ["area"] and prefix == HUMANEVAL["prompt"]


@pytest.mark.parametrize(
    ("name", "row", "change", "message"),
    [
        ("humaneval", HUMANEVAL, {"test": "def check(candidate:"}, "not valid Python"),
        ("humaneval", HUMANEVAL, {"entry_point": 3}, "entry_point"),
        ("mbpp", MBPP, {"test_list": []}, "empty"),
        ("mbpp", MBPP, {"test_list": ["print(inc(1))"]}, "x:1: the tests assert nothing, .* 'print"),
        ("mbpp", MBPP, {"test_list": "assert inc(1) == 2"}, "list of texts"),
        ("apps", APPS, {"input_output": "{"}, "input_output: not JSON"),
        ("apps", APPS, {"input_output": json.dumps({"inputs": ["1"], "outputs": []})}, "1 inputs and 0 outputs"),
        ("apps", APPS_CALL, {"input_output": json.dumps({"fn_name": "a b", "inputs": [[1]], "outputs": [1]})}, "name"),
        ("apps", APPS_CALL, {"input_output": json.dumps({"fn_name": "f", "inputs": [1], "outputs": [1]})}, "arguments"),
        ("livecodebench", LIVE, {"private_test_cases": "no base 64"}, "private_test_cases"),
        ("prime", PRIME_CODE, {"ability": "poetry"}, "math' or 'code', found 'poetry"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_with_their_place(name, row, change, message):
    with pytest.raises(UserError, match=message):
        READERS[name]({**row, **change}, "x:1")


def test_a_pickle_that_names_a_function_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    row = {**LIVE, "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()}
    with pytest.raises(UserError, match="refers to"):
        READERS["livecodebench"](row, "x:1")
    assert not (tmp_path / "made").exists()


def test_an_unknown_format_is_named():
    with pytest.raises(UserError, match="x:1: the format .* fields a; give format, one of humaneval"):
        find_format({"a": 1}, "x:1")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@needs_sandbox
def test_task_of_mathematics_and_code(tmp_path):
    pytest.importorskip("mpmath")
    task = load_task("code", train=write(tmp_path / "mixed.jsonl", [PRIME_MATH, PRIME_CODE]), eval_fraction=0.0)
    verdicts = task.verify_many(
        [task.train[0], task.train[1], task.train[0]],
        [r"\boxed{4}", "```python\nprint(2 * int(input()))\n```", "```python\nprint(4)\n```"],
    )
    assert [verdict.status for verdict in verdicts] == ["pass", "pass", "fail"]
    assert any("1 problems are judged by tests and 1 by mathematics" in note for note in task.notes)


@needs_sandbox
def test_solutions_that_fail_their_own_tests_are_named_or_left_out(tmp_path):
    wrong = {**MBPP, "task_id": 8, "text": "Another.", "code": "def inc(x):\n    return x"}
    path = write(tmp_path / "mbpp.jsonl", [MBPP, wrong])
    with pytest.raises(UserError, match=r"1 of 2 problems fail their own tests; the first, 8: 0 of 2 tests"):
        load_task("code", train=path, check_solutions=True)
    task = load_task("code", train=path, check_solutions=True, skip_bad=True, eval_fraction=0.0)
    assert [problem.id for problem in task.train] == ["7"]
    assert any("its own solution fails" in note for note in task.notes)


@needs_sandbox
def test_fractions_survive_and_options_reach_the_verifier(tmp_path):
    path = write(tmp_path / "mbpp.jsonl", [MBPP])
    task = load_task(
        "code", train=path, score="fraction", eval_fraction=0.0, chat="true", **{"verifier.cpu_seconds": "1"}
    )
    assert task.verifier.sandbox.limits.cpu_seconds == 1.0
    assert task.verify(task.train[0], "def inc(x): return 2") == 0.5
    assert task.train[0].prompt[0]["role"] == "user"
    with pytest.raises(UserError, match="cpu_second"):
        load_task("code", train=path, **{"verifier.cpu_second": "1"})


@needs_sandbox
def test_compressed_files_and_fewer_tests(tmp_path):
    import gzip

    path = tmp_path / "problems.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(MBPP) + "\n").encode()))
    task = load_task("code", train=str(path), max_tests=1, eval_fraction=0.0)
    assert json.loads(task.train[0].answer)["tests"] == MBPP["test_list"][:1]
