"""The watchdog: names and stacks, the first phase of a kind, compilation, and the end of a stuck process."""

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from prm_jax.runs import watchdog
from prm_jax.runs.watchdog import Watchdog


def test_the_first_phase_of_a_kind_may_take_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "FIRST", 4.0)
    with (tmp_path / "out").open("w+") as file:
        dog = Watchdog(0.1, file=file)
        for number in (1, 2):
            with dog.phase(f"phase {number}", "kind"):
                time.sleep(0.3)
        with pytest.raises(KeyError), dog.phase("failed", "other"):
            raise KeyError
        with dog.phase("after a failure", "other"):  # what failed has compiled nothing
            time.sleep(0.3)
        file.seek(0)
        text = file.read()
    assert "watchdog: phase 2 has taken more than 0.1 s; stacks of all threads:" in text and "Thread 0x" in text
    assert "phase 1" not in text and "after a failure" not in text


def test_nothing_is_watched_without_limits(tmp_path):
    with (tmp_path / "out").open("w+") as file:
        with Watchdog(0.0, file=file).phase("x"):
            time.sleep(0.01)
        file.seek(0)
        assert not file.read()


_STUCK = """
import sys, time
from prm_jax.runs import watchdog
watchdog.FIRST = 1.0
def hang():
    time.sleep(30)
dog = watchdog.Watchdog(float(sys.argv[1]), exit_seconds=0.3)
with dog.phase("a quick phase"):
    pass
print("before", end="")
with dog.phase("waiting for nothing"):
    hang()
"""


@pytest.mark.parametrize("seconds", ["0", "0.1"])
def test_a_stuck_phase_ends_the_process_with_its_own_exit_code(seconds):
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _STUCK, seconds], capture_output=True, text=True, timeout=30)
    assert done.returncode == 76 and time.monotonic() - begun < 20
    assert "watchdog: waiting for nothing has taken more than 0.3 s (compilation not counted)" in done.stderr
    assert "in hang" in done.stderr and "exit code 76" in done.stderr and done.stdout == "before"
    assert ("has taken more than 0.1 s; stacks" in done.stderr) == (seconds == "0.1")


def test_compilation_is_measured():
    clock = watchdog._compilation()
    before = clock.begin()
    assert clock.seconds() == before
    jax.jit(lambda x: jnp.cos(x) * 3.25 + 17)(jnp.ones(3))
    spent = clock.seconds() - before
    assert 0 < spent < 60 and clock.seconds() - before == spent, "no compilation is going on"


def test_a_phase_that_compiles_is_not_ended(monkeypatch):
    ended = []
    monkeypatch.setattr(watchdog, "_end_process", lambda why, file: ended.append(why))
    clock = watchdog._compilation()
    dog = Watchdog(0, exit_seconds=0.2)
    with dog.phase("x"):
        pass
    with dog.phase("compiles", "x"):
        clock.hear(watchdog._LOWERED, 0.0)
        time.sleep(0.5)
        clock.hear(watchdog._COMPILED, 0.5)
        time.sleep(0.1)
    assert not ended
    with dog.phase("hangs", "x"):
        clock.hear(watchdog._LOWERED, 0.0)
        clock.hear(watchdog._COMPILED, 0.0)
        time.sleep(0.5)
    assert len(ended) == 1 and ended[0].startswith("hangs has taken more than 0.2 s")
