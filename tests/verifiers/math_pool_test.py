"""The processes that compare answers: attacks neither run, nor hang, nor leave anything behind."""

import os
import pathlib
import re
import subprocess
import sys
import textwrap
import threading
import time

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prm_jax.verifiers import MathPool, MathVerifier

pytest.importorskip("mpmath", reason="needs the extra 'math'")


@pytest.fixture(scope="module")
def verifier():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("A_SECRET", "s3cret")
        pool = MathPool(workers=2, timeout=10.0, memory_bytes=700 << 20)
        verifier = MathVerifier(extract="whole", pool=pool)
        yield verifier
        verifier.close()


BEYOND_LIMITS = {
    "a power tower": "9^{9^{9^9}}",
    "many digits": "9" * 100_000,
    "a huge exponent": "10^{100000000}",
    "three thousand terms": "+".join(f"x^{i}" for i in range(3000)),
    "nested fractions": r"\frac{1}{" * 200 + "1" + "}" * 200,
    "nested parentheses": "(" * 60 + "1" + ")" * 60,
}


@pytest.mark.parametrize("answer", BEYOND_LIMITS.values(), ids=BEYOND_LIMITS)
def test_answers_beyond_the_limits_fail_before_any_parser_sees_them(verifier, answer, monkeypatch):
    monkeypatch.setattr(verifier.pool, "compare_many", None)
    assert verifier.verify(answer, "x+1").status == "fail"


SLOW = {"a factorial": "(9999!)!", "a sine": r"\sin(e^{e^{27}})", "factorials": "((9999!)!)!"}


@pytest.mark.parametrize("answer", SLOW.values(), ids=SLOW)
def test_slow_answers_are_killed_at_the_deadline(verifier, answer):
    verifier.verify("1+x", "x+1")  # started
    worker = verifier.pool.pids()
    verdict = verifier.verify(answer, "x+1", 0.4)
    assert verdict.status == "timeout" and verdict.score == 0.0 and verdict.usable
    assert verdict.detail.startswith("the check took longer than")
    assert verifier.verify("1+x", "x+1").status == "pass"  # at once, by a fresh child of the same process
    assert verifier.pool.pids() == worker
    assert _zombies(os.getpid()) == 0 and all(_zombies(pid) == 0 for pid in worker)


def test_slow_reference_is_the_references_fault(verifier):
    assert verifier.verify("x+1", "(9999!)!", 0.4).status == "error"


PROGRAMS = [
    "__import__('os').system('touch {probe}')",
    "open('{probe}','w').write('x\\pi')",
    "[open('{probe}','w')]",
    r"\begin{{pmatrix}}open('{probe}','w')\end{{pmatrix}}",
    "eval(open('{probe}','w'))+\\pi",
    "().__class__.__base__.__subclasses__()",
    "x if open('{probe}','w') else y",
    r"\text{{open('{probe}','w')}}",
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_are_never_run(verifier, program, tmp_path):
    probe = tmp_path / "p"
    assert verifier.verify(program.format(probe=probe), r"2\pi").status in ("fail", "timeout")
    assert verifier.verify(r"3\pi", program.format(probe=probe)).status in ("fail", "timeout", "error")
    assert not probe.exists()


def test_children_are_confined_and_have_neither_secrets_nor_accelerators(verifier):
    assert verifier.verify("x+1", "1+x").status == "pass"
    pid = verifier.pool.pids()[-1]
    environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    assert b"s3cret" not in environment and b"JAX_PLATFORMS=cpu" in environment
    (child,) = _children(pid)
    limits = pathlib.Path(f"/proc/{child}/limits").read_text()
    assert re.search(r"Max file size +0 ", limits) and re.search(r"Max address space +734003200 ", limits)
    for process in (pid, child):
        assert "libjax" not in pathlib.Path(f"/proc/{process}/maps").read_text()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=r"0123456789xyi+-*/^_=(){}[]\,. $&|<>!%:'fracsqtlenpidob", max_size=40) | st.text(max_size=20))
def test_any_answer_gets_a_verdict(verifier, text):
    verdict = verifier.verify(text, "x+1", 1.0)
    assert verdict.status in ("pass", "fail", "timeout")


def test_from_threads_of_a_process_that_runs_jax(verifier):
    jax.numpy.zeros(2).block_until_ready()
    statuses: list[str] = []

    def check(k):
        verdicts = verifier.verify_many([f"{k}+y+{i}" for i in range(4)], [f"{i}+y+{k}" for i in range(4)])
        statuses.extend(v.status for v in verdicts)

    threads = [threading.Thread(target=check, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == ["pass"] * 20


def test_child_is_recycled_and_the_pool_closes():
    pool = MathPool(workers=1, recycle_after=3)
    seen = set()
    for k in range(7):
        assert pool.compare_many([(f"x+{k}", f"{k}+x")])[0].status == "pass"
        seen.update(_children(pool.pids()[0]))
    assert len(seen) == 3
    (worker,) = pool.pids()
    children = _children(worker)
    pool.close()
    _wait_until(lambda: not any(_running(pid) for pid in (worker, *children)))
    with pytest.raises(RuntimeError):
        pool.compare_many([("x", "x+0")])


def test_killed_worker_is_replaced(verifier):
    before = verifier.pool.pids()
    for pid in before:
        os.kill(pid, 9)
    assert verifier.verify("x+y", "y+x").status == "pass"
    assert set(verifier.pool.pids()) != set(before)


def test_worker_that_cannot_start_says_why(monkeypatch, tmp_path):
    broken_worker = tmp_path / "worker.py"
    broken_worker.write_text('print(\'{"ready": false, "detail": "no mpmath"}\', flush=True); input()')
    monkeypatch.setattr("prm_jax.verifiers.math_pool._WORKER", broken_worker)
    pool = MathPool(workers=1)
    with pytest.raises(RuntimeError, match="no mpmath"):
        pool.compare_many([("x", "x+0")])
    pool.close()


def test_no_process_outlives_its_owner(tmp_path):
    """Not even when the owner is killed while a check is under way."""
    script = textwrap.dedent(
        """
        import threading, time
        from prm_jax.verifiers import MathPool
        pool = MathPool(workers=1, timeout=1.0)
        pool.compare_many([("x+1", "1+x")])
        threading.Thread(target=pool.compare_many, args=([("(9999!)!", "x+1")],), daemon=True).start()
        time.sleep(0.3)
        print(pool.pids()[0], flush=True)
        time.sleep(60)
        """
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    worker = int(owner.stdout.readline())
    children = _children(worker)
    owner.kill()
    owner.wait()
    _wait_until(lambda: not any(_running(pid) for pid in (worker, *children)), seconds=60)


def _children(pid: int) -> list[int]:
    text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _state(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def _running(pid: int) -> bool:
    return _state(pid) not in ("gone", "Z")


def _zombies(pid: int) -> int:
    return sum(_state(child) == "Z" for child in _children(pid))


def _wait_until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "still not"
        time.sleep(0.05)
