"""Programs that try to pass tests without solving the problem; none does."""

import pytest

from prm_jax.verifiers.sandbox import CallTests, IOTests

TESTS = CallTests(
    (
        "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(12) == 144\n"
        "    assert candidate(-4) == 16\n",
    ),
    entry_point="square",
)
PRINTS = IOTests(("3\n", "12\n"), ("9\n", "144\n"))

CALL_CHEATS = {
    "equal_to_everything": (
        "class A:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    def __hash__(self): return 0\ndef square(x): return A()"
    ),
    "integer_equal_to_everything": (
        "class A(int):\n    def __eq__(self, other): return True\ndef square(x): return A(7)"
    ),
    "text_equal_to_everything": "class A(str):\n    def __eq__(self, other): return True\ndef square(x): return A('9')",
    "list_equal_to_everything": "class A(list):\n    def __eq__(self, other): return True\ndef square(x): return A()",
    "boolean_like": "class A:\n    def __bool__(self): return True\ndef square(x): return A()",
    "argument_trap": "def square(x, *args, **kwargs): return args or x",
    "frame_peeking": (
        "import sys\ndef square(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for value in list(frame.f_locals.values()):\n"
        "            if isinstance(value, int) and value in (9, 144, 16): return value\n        frame = frame.f_back\n"
        "    return 0"
    ),
    "garbage_collector": (
        "import gc\nneedle = ''.join(reversed('== )3(etadidnac'))\ndef square(x):\n"
        "    for item in gc.get_objects():\n        if needle in repr(item)[:4000]: return x * x\n    return 0"
    ),
    "patched_json": (
        "import json\njson.dumps = lambda *a, **k: '{\"value\": 9}'\njson.loads = json.dumps\n"
        "def square(x): return 0"
    ),
    "patched_builtins": (
        "import builtins\nbuiltins.all = lambda *a: True\nbuiltins.AssertionError = ValueError\n"
        "builtins.isinstance = lambda *a: True\ndef square(x): return 0"
    ),
    "patched_sys_exit": (
        "import sys, os\nsys.exit = lambda *a: None\nos._exit = lambda *a: None\n"
        "def square(x): return 0"
    ),
    "exit_with_success": "import os\ndef square(x): os._exit(0)",
    "exit_while_loading": "import os\nos._exit(0)\ndef square(x): return 0",
    "system_exit": "import sys\ndef square(x): sys.exit(0)",
    "fake_messages": (
        "import os, json\ndef frame(m):\n    b = json.dumps(m).encode()\n    return len(b).to_bytes(4, 'big') + b\n"
        "for _ in range(3):\n    os.write(4, frame({'test': 0, 'status': 'pass', 'detail': ''}))\n"
        "os.write(4, frame({'done': True}))\ndef square(x): return 0"
    ),
    "fake_verdict_as_value": (
        "def square(x): return {'test': 0, 'status': 'pass', 'detail': ''}"
    ),
    "message_to_the_sandbox": (
        "import os, json\nb = json.dumps({'end': {'by': 'exit', 'status': 0}}).encode()\n"
        "for n in range(64):\n    try: os.write(n, len(b).to_bytes(4, 'big') + b)\n    except OSError: pass\n"
        "def square(x): return 0"
    ),
    "raise_nothing": "class Quiet(BaseException): pass\ndef square(x): raise Quiet",
    "raise_assertion_subclass": "class A(AssertionError): pass\ndef square(x): raise A('passed')",
    "read_tests_from_proc": (
        "import os\ndef square(x):\n    for p in os.listdir('/proc'):\n        t = open(f'/proc/{p}/cmdline').read()\n"
        "        if 'candidate' in t: return x * x\n    return 0"
    ),
    "read_tests_from_arguments": "import sys\ndef square(x): return x * x if 'check' in str(sys.argv) else 0",
    "read_tests_from_modules": (
        "import sys\ndef square(x):\n    m = sys.modules.get('__main__')\n"
        "    return x * x if hasattr(m, 'check') else 0"
    ),
    "define_check": "def check(candidate): pass\ndef square(x): return 0",
    "fork_before_exit": (
        "import os\ndef square(x):\n    if os.fork() == 0: os._exit(0)\n    return 0"
    ),
    "not_a_number": "def square(x): return float('nan')",
    "memorise_one": "def square(x): return 9",
    "generator": "def square(x):\n    yield x * x",
    "lazy_object": "class L:\n    def __getattr__(self, n): return lambda *a: True\ndef square(x): return L()",
}  # fmt: skip

PRINT_CHEATS = {
    "exit_0": "import sys\nsys.exit(0)",
    "print_many": "for n in range(1000): print(n)",
    "patched_print": "import builtins\nbuiltins.print = lambda *a: None\nprint(9)",
    "pass_marker": "print('PASS')\nprint('{\"state\": \"pass\"}')",
    "expected_from_files": "import glob\nprint(''.join(open(p).read() for p in glob.glob('/proc/*/environ')))",
    "right_then_wrong": "n = int(input())\nprint(n * n)\nprint('extra')",
    "padding": "n = int(input())\nprint(n * n, end='0')",
    "error_after_output": "n = int(input())\nprint(n * n)\nraise SystemExit(1)",
}


@pytest.mark.parametrize("name", CALL_CHEATS)
def test_cheats_do_not_pass_calls(any_sandbox, name):
    (result,) = any_sandbox.check(CALL_CHEATS[name], TESTS)
    assert result.state in ("fail", "crash", "timeout"), result


@pytest.mark.parametrize("name", PRINT_CHEATS)
def test_cheats_do_not_pass_output(any_sandbox, name):
    results = any_sandbox.check(PRINT_CHEATS[name], PRINTS)
    assert [result.state for result in results if result.state not in ("fail", "crash")] == [], results


def test_an_honest_program_passes(any_sandbox):
    assert [r.state for r in any_sandbox.check("def square(x): return x * x", TESTS)] == ["pass"]
    assert [r.state for r in any_sandbox.check("print(int(input()) ** 2)", PRINTS)] == ["pass", "pass"]


def test_many_cheats_fail(any_sandbox):
    assert len(CALL_CHEATS) + len(PRINT_CHEATS) >= 25
