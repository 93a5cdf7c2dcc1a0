"""The sandbox of this machine: results of programs and tests, limits, failures, choice of the level."""

import os
import signal
import threading
import time

import pytest

from prm_jax.errors import UserError
from prm_jax.verifiers.sandbox import (
    CallTests,
    IOTests,
    Limits,
    LocalSandbox,
    check_canaries,
    choose_level,
    same_output,
)
from prm_jax.verifiers.sandbox.levels import start_of
from prm_jax.verifiers.sandbox.outcome import TestResult


def states(results):
    return "".join(
        {"pass": ".", "fail": "F", "timeout": "T", "crash": "C", "infra_error": "?"}[r.state] for r in results
    )


def test_canaries_pass_on_every_level(sandbox):
    check_canaries(sandbox)


def test_script_gets_its_input_and_returns_what_it_prints(sandbox):
    run = sandbox.run("import sys\nprint(sys.stdin.read().upper(), end='')\nprint('e', file=sys.stderr)", "añ\nb")
    assert (run.state, run.stdout, run.stderr, run.status) == ("ok", "AÑ\nB", "e\n", 0)
    assert run.cpu_seconds > 0 and run.wall_seconds > 0 and run.memory_bytes > 1 << 20


@pytest.mark.parametrize(
    ("code", "state", "status"),
    [
        ("import sys\nsys.exit(3)", "crash", 3),
        ("raise ValueError('no')", "crash", 1),
        ("import sys\nsys.exit('a message')", "crash", 1),
        ("import sys\nsys.exit()", "ok", 0),
        ("def f(:", "crash", 1),
        ("import os\nos.abort()", "crash", signal.SIGABRT),
        ("if __name__ == '__main__': print('main')", "ok", 0),
    ],
)
def test_end_of_a_script(any_sandbox, code, state, status):
    run = any_sandbox.run(code)
    assert (run.state, run.status) == (state, status), run
    assert bool(run.detail) == (state != "ok")


def test_the_ways_to_read_input_all_work(any_sandbox):
    for read in ("input()", "open(0).read()", "sys.stdin.buffer.readline().decode()", "os.read(0, 9).decode()"):
        assert any_sandbox.run(f"import os, sys\nprint({read}.strip())", "word\n").stdout == "word\n", read


def test_threads_and_deep_recursion_are_allowed(any_sandbox):
    code = (
        "import sys, threading\nthreading.stack_size(1 << 26)\nsys.setrecursionlimit(10 ** 6)\n"
        "def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\n"
        "t = threading.Thread(target=lambda: print(depth(20000)))\nt.start()"
    )
    assert any_sandbox.run(code).stdout == "20000\n"


def test_results_of_functions_are_plain_data(any_sandbox):
    code = (
        "import collections\ndef same(x): return x\ndef count(s): return collections.Counter(s)\n"
        "def pairs(n): return ((i, i * i) for i in range(n))\ndef change(xs):\n    xs.append(1)\n"
        "def boom(): raise KeyError('k')\nclass Own(ValueError): pass\ndef own(): raise Own('w')\n"
        "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\ndef total(p): return p.a + p.b"
    )
    tests = CallTests(
        (
            "for v in (None, True, 0, -2**70, 1.5, 1e400, 'ä', b'\\x00', [1, (2,)], {1: {2}}, {(1, 2): 'x'}, 1j):\n"
            "    assert same(v) == v and type(same(v)) is type(v), v",
            "assert same(float('nan')) != same(float('nan'))",
            "assert count('aab') == {'a': 2, 'b': 1}",
            "assert list(pairs(3)) == [(0, 0), (1, 1), (2, 4)]",
            "xs = [0]\nchange(xs)\nassert xs == [0, 1]",
            "try:\n    boom()\nexcept KeyError: pass\nelse: assert False",
            "try:\n    own()\nexcept ValueError: pass\nelse: assert False",
            "assert total(Pair(2, 3)) == 5",
            "assert same([0.1 + 0.2]) == [0.1 + 0.2]",
        )
    )
    assert any_sandbox.check(code, tests) == [TestResult("pass")] * 9


def test_each_test_has_its_own_result(any_sandbox):
    code = (
        "import os\ndef f(x):\n    if x == 1: return 1\n    if x == 2: return 0\n    if x == 3:\n"
        "        while True: pass\n"
        "    if x == 4: os._exit(0)\n    if x == 5: raise RuntimeError('five')\n    return x"
    )
    tests = CallTests(tuple(f"assert f({n}) == {n}" for n in range(1, 7)))
    results = any_sandbox.check(code, tests)
    assert states(results) == ".FTCF."
    assert "five" in results[4].detail
    assert states(any_sandbox.check(code, tests, stop_at_failure=True)) == ".F"


def test_a_program_that_does_not_load_fails_all_tests(any_sandbox):
    tests = CallTests(("assert f() == 1", "assert f() == 1"))
    assert states(any_sandbox.check("raise SystemExit(0)", tests)) == "CC"
    results = any_sandbox.check("x = 1", tests)
    assert states(results) == "FF" and "not defined" in results[0].detail


def test_methods_of_a_class_solution_are_found(any_sandbox):
    code = "class Solution:\n    def twice(self, x): return 2 * x"
    assert states(any_sandbox.check(code, CallTests(("assert twice(4) == 8",)))) == "."


def test_tests_that_loop_or_break_are_not_the_program_s_fault(any_sandbox):
    code = "def f(): return 1"
    assert states(any_sandbox.check(code, CallTests(("while True: pass",)))) == "T"
    assert states(any_sandbox.check(code, CallTests(("import os\nos._exit(0)",)))) == "?"


def test_large_arguments_pass_and_too_large_answers_do_not(any_sandbox):
    code = "def f(x): return len(x)\ndef g(n): return 'x' * n"
    assert (
        states(any_sandbox.check(code, CallTests(("assert f('y' * 300000) == 300000", "assert len(g(10)) == 10"))))
        == ".."
    )
    assert states(any_sandbox.check(code, CallTests(("assert len(g(5_000_000)) == 5_000_000",)))) == "C"


def test_a_program_that_reads_nothing_is_stopped(any_sandbox):
    code = "import os, time\nos.close(3)\ndef f(x): return x"
    assert states(any_sandbox.check(code, CallTests(("assert f('y' * 300000)",)))) in ("C", "T")


def test_output_is_compared_by_lines_then_by_words():
    assert same_output("1 2\n3\n\n", "1 2 \n3")
    assert same_output("0.3333333", "0.33333333")
    assert same_output("1.0 yes", "1.00 yes")
    for found, expected in (
        ("12", "1 2"),
        ("1\n2", "1 3"),
        ("10", "9.999"),
        ("", "0"),
        ("nan", "1.0"),
        ("1_0", "10"),
        ("YES", "yes"),
        ("3", "3.1"),
    ):
        assert not same_output(found, expected), (found, expected)


def test_an_infrastructure_failure_is_retried_then_reported():
    with LocalSandbox(workers=1, limits=Limits(wall_seconds=5)) as sandbox:
        assert sandbox.run("print(1)").state == "ok"
        os.kill(sandbox.pids()[0], signal.SIGKILL)
        time.sleep(0.1)
        assert sandbox.run("print(2)").stdout == "2\n"
        answered = threading.Event()
        killer = threading.Thread(target=_kill_repeatedly, args=(sandbox, answered))
        killer.start()
        run = sandbox.run("import time\ntime.sleep(3)")
        answered.set()
        killer.join()
        assert run.state == "infra_error" and "sandbox failed" in run.detail
        assert sandbox.failures >= 3
        assert sandbox.run("print(3)").stdout == "3\n"


def _kill_repeatedly(sandbox, answered):
    while not answered.is_set():
        for pid in sandbox.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.2)


def test_closing_ends_every_process():
    sandbox = LocalSandbox(workers=2)
    sandbox.run_many([("print(1)", "")] * 4)
    pids = sandbox.pids()
    sandbox.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_command_line_of_a_sandbox_holds_no_secret(any_sandbox):
    start = start_of(any_sandbox.level, any_sandbox.interpreter, 0)
    assert not any("assert" in word and "square" in word for word in start.command)


def test_an_unknown_level_is_refused():
    with pytest.raises(UserError, match="auto, bubblewrap, landlock, or the address of a server .*; found 'docker'"):
        choose_level("docker")


def test_a_machine_without_any_sandbox_says_what_to_install(monkeypatch):
    from prm_jax.verifiers.sandbox import levels

    monkeypatch.setattr(levels, "available_levels", lambda: {"bubblewrap": "not installed", "landlock": "old kernel"})
    with pytest.raises(UserError, match="apt install bubblewrap"):
        choose_level()
    with pytest.raises(UserError, match="old kernel"):
        choose_level("landlock")


@pytest.mark.parametrize(("field", "value"), [("cpu_seconds", 0), ("memory_bytes", 1 << 20), ("threads", -1)])
def test_limits_are_checked(field, value):
    with pytest.raises(UserError, match=field):
        Limits(**{field: value})


def test_an_interpreter_that_is_none_is_refused():
    with pytest.raises(UserError, match="no Python interpreter"):
        LocalSandbox(python="/bin/no_such_python")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CallTests(()), "empty"),
        (lambda: CallTests(("assert f( == 1",)), "not valid Python"),
        (lambda: IOTests((), ()), "empty"),
        (lambda: IOTests(("1",), ()), "1 inputs and 0 outputs"),
    ],
)
def test_bad_tests_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
