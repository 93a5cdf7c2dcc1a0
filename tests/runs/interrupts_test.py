"""The interrupt latch: one signal asks, two end, other handlers come back."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from prm_jax.runs.interrupts import Interrupts


@pytest.fixture(autouse=True)
def python_handler():
    """Python's own handler of Ctrl-C: a process started in the background of a shell script inherits "ignore"."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_sets_the_flag(number, capfd):
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        assert not interrupts.requested and not interrupts.should_stop()
        os.kill(os.getpid(), number)
        assert interrupts.requested and interrupts.should_stop()
        assert interrupts.signal_name == number.name
        os.kill(os.getpid(), number)  # at once: counts as the same
        time.sleep(0.05)
    assert signal.getsignal(number) is before
    assert "finishing the step" in capfd.readouterr().err


def test_previous_handlers_are_restored_after_an_error_and_when_nested():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), Interrupts():
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before
    with Interrupts() as outer:
        with Interrupts() as inner:
            os.kill(os.getpid(), signal.SIGINT)
            assert inner.requested and not outer.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.requested
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_nothing_happens_outside_the_main_thread():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with Interrupts() as interrupts:
            seen.append(signal.getsignal(signal.SIGINT) is before)
            interrupts.request()
            seen.append(interrupts.should_stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, True]


_STUCK = """
import ctypes, sys, time
from prm_jax.runs.interrupts import Interrupts
with Interrupts(grace=0.1) as interrupts:
    print("ready", flush=True)
    # Released from Python for good, as in a long compilation: Python-level handlers never run.
    ctypes.CDLL(None).sleep(30) if sys.argv[1] == "C" else time.sleep(30)
    ctypes.CDLL(None).sleep(30)
    ctypes.CDLL(None).sleep(30)
"""


@pytest.mark.parametrize("where", ["C", "Python"])
def test_a_second_signal_exits_immediately(where):
    process = subprocess.Popen(
        [sys.executable, "-c", _STUCK, where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.4)
    assert process.poll() is None
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - start < 2
    assert "finishing the step" in err and "exiting immediately" in err
