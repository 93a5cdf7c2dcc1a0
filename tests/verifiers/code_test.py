"""Programs as answers: finding them, scores, references, a sandbox that fails."""

import gzip
import json

import pytest

from prm_jax.errors import UserError
from prm_jax.verifiers import CodeVerifier, call_reference, find_program, io_reference
from prm_jax.verifiers.sandbox import CallTests, IOTests, TestResult, available_levels

needs_sandbox = pytest.mark.skipif(all(available_levels().values()), reason="no sandbox on this machine")
SQUARE = call_reference(CallTests(("assert square(3) == 9", "assert square(5) == 25", "assert square(0) == 0")))


@pytest.fixture(scope="module")
def verifier():
    made = CodeVerifier(workers=2, cpu_seconds=1, wall_seconds=6)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```\n```js\nlet y\n```", "x = 1\n"),
        ("```python\ndef f(): pass\n```\nFor example\n```python\nprint(f())\n```", "def f(): pass\n"),
        ("```python\ndef f(): return 0\n```\nBetter:\n```python\ndef f(): return 1\n```", "def f(): return 1\n"),
        ("<think>```python\ndef f(): return 0\n```</think>```python\ndef f(): return 1\n```", "def f(): return 1\n"),
        ("~~~python\nx = 1\n~~~", "x = 1\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("def f(): return 1", "def f(): return 1"),
        ("```python\nx = 1", None),
        ("```bash\nls\n```", None),
        ("I think it is four.", None),
        ("", None),
    ],
)
def test_find_program(response, program):
    assert find_program(response, names=("f",)) == program


def test_a_response_may_continue_the_prompt():
    prefix = "import math\ndef helper(x): return x + 1\ndef f(x):\n    '''Doc.'''\n"
    assert find_program("    return helper(x)\n", names=("f",), prefix=prefix) == prefix + "    return helper(x)\n"
    whole = find_program("```python\ndef f(x): return math.pi\n```", names=("f",), prefix=prefix)
    assert "import math" in whole and "def helper" in whole and whole.count("def f") == 1
    assert find_program("The answer is 4.", names=("f",), prefix=prefix) is None


@needs_sandbox
def test_equal_programs_run_once(verifier, monkeypatch):
    runs = []
    check_many = verifier.sandbox.check_many
    monkeypatch.setattr(
        verifier.sandbox, "check_many", lambda jobs, **kw: runs.append(len(jobs)) or check_many(jobs, **kw)
    )
    right, wrong = "def square(x): return x * x", "def square(x): return x + x"
    cube = call_reference(CallTests(("assert square(2) == 8",)))
    responses, golds = [right, wrong, right, "no code", right], [SQUARE, SQUARE, SQUARE, SQUARE, cube]
    verdicts = verifier.verify_many(responses, golds)
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0, 0.0] and runs == [3]


@needs_sandbox
def test_scores(verifier):
    half = "```python\ndef square(x): return 9 if x == 3 else 0\n```"
    verdict = verifier.verify(half, SQUARE)
    assert (verdict.score, verdict.status) == (0.0, "fail") and verdict.detail.startswith("1 of 3 tests (.F)")
    fraction = CodeVerifier(score="fraction", workers=1)
    verdict = fraction.verify(half, SQUARE)
    assert verdict.score == pytest.approx(2 / 3) and verdict.detail.startswith("2 of 3 tests (.F.)")
    fraction.close()
    assert verifier.verify("def square(x): return x * x", SQUARE).status == "pass"
    assert verifier.verify("def square(x):\n    while True: pass", SQUARE).status == "timeout"
    assert verifier.verify("no code", SQUARE).no_answer


@needs_sandbox
def test_input_and_output(verifier):
    gold = io_reference(IOTests(("2 3\n", "4 5\n"), ("5\n", "9\n")))
    good, bad = "print(sum(map(int, input().split())))", "print(5)"
    assert [v.status for v in verifier.verify_many([good, bad], [gold, gold])] == ["pass", "fail"]


@needs_sandbox
def test_bad_references_are_errors_and_never_zero_rewards(verifier):
    for gold, message in (
        ("not json", "not JSON"),
        ("{}", "fields"),
        ('{"tests": []}', "empty"),
        ('{"tests": ["assert f( == 1"]}', "not valid Python"),
        ('{"tests": "assert f()"}', "list of texts"),
        ('{"tests": ["assert f()"], "timeout": 3}', "unknown field 'timeout'"),
        ('{"inputs": ["1"], "outputs": []}', "1 inputs and 0 outputs"),
    ):
        verdict = verifier.verify("def f(): return 1", gold)
        assert (verdict.status, verdict.usable) == ("error", False) and message in verdict.detail, gold
    assert [bool(problem) for problem in verifier.check_references(["{}", SQUARE])] == [True, False]


class _Broken:
    """A sandbox that fails."""

    def __init__(self, results):
        self.results = results

    def check(self, code, tests, *, stop_at_failure=False):
        return [TestResult("pass")]

    def check_many(self, jobs, *, stop_at_failure=False):
        return [self.results for _ in jobs]


@needs_sandbox
def test_a_failing_sandbox_masks_the_sample_and_a_lying_one_stops_the_run():
    verifier = CodeVerifier(workers=1)
    verifier.sandbox = _Broken([TestResult("pass"), TestResult("infra_error", "no memory for it")])
    with pytest.raises(UserError, match="cannot be trusted: a wrong function must give 'fail' and gave pass"):
        verifier.verify("def square(x): return 0", SQUARE)
    verifier._until_canary = 10
    verdict = verifier.verify("def square(x): return 0", SQUARE)
    assert (verdict.status, verdict.detail) == ("error", "no memory for it")


def test_options_are_checked():
    with pytest.raises(UserError, match="all, fraction"):
        CodeVerifier(score="most")
    with pytest.raises(UserError, match="cpu_seconds"):
        CodeVerifier(cpu_seconds=0)


BUGS = (
    ("return ", "return not "), (" + ", " - "), (" == ", " != "), (" < ", " >= "), (" > ", " <= "), ("1", "2"),
    ("0", "1"), ("True", "False"), ("append", "extend"), ("sorted", "list"),
)  # fmt: skip


@needs_sandbox
@pytest.mark.slow
def test_humaneval_solutions_pass_and_solutions_with_a_bug_fail(data_dir, verifier):
    """Every solution passes; of each, the first of a list of changes that its tests can see fails."""
    from prm_jax.data import load_task

    path = data_dir / "humaneval" / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip("HumanEval is absent")
    task = load_task("code", train=str(path), eval_fraction=0.0)
    rows = {row["task_id"]: row for row in map(json.loads, gzip.open(path))}
    problems = task.train
    assert len(problems) == 164
    solutions = [problem.metadata["solution"] for problem in problems]
    golds = [problem.answer for problem in problems]
    assert {verdict.status for verdict in verifier.verify_many(solutions, golds)} == {"pass"}
    caught = 0
    for problem, gold in zip(problems, golds, strict=True):
        body = rows[problem.id]["canonical_solution"]
        planted = [body.replace(a, b, 1) for a, b in BUGS if a in body] + ["    return None\n"]
        verdicts = verifier.verify_many([problem.prompt + text for text in planted], [gold] * len(planted))
        assert verdicts[-1].status == "fail"
        caught += any(verdict.status != "pass" for verdict in verdicts[:-1]) or len(planted) == 1
    assert caught >= 160  # a change may leave a function as it was
