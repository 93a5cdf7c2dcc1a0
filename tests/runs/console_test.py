"""The console: plain lines, live tables, narrow terminals, broken pipes."""

import io
import math
import time

import pytest
import rich.console

from prm_jax.runs import console as console_module
from prm_jax.runs.console import Console, duration, sparkline


def _drive(console: Console) -> None:
    with console:
        console.phase("warm start", 3)
        for step in (1, 2, 3):
            console.update(step, {"sft/loss": 1.0 / step})
        console.message("a [bracketed] note")
        console.phase("training", 40, start=20)
        for step in range(21, 41):
            metrics = {"rollout/solve_rate": step / 100, "policy/kl": math.nan if step == 30 else 1e-5}
            if step % 10 == 0:
                metrics["eval/greedy_accuracy"] = 0.5
            console.update(step, metrics)


def test_plain_lines_when_the_output_is_not_a_terminal():
    file = io.StringIO()
    _drive(Console("runs/one", file=file, every=5))
    lines = file.getvalue().splitlines()
    assert "\x1b" not in file.getvalue()
    assert lines[0] == "warm start: 3 steps"
    assert lines[1].startswith("warm start 1/3  loss 1")
    assert "a [bracketed] note" in lines
    steps = [line.split()[1] for line in lines if line.startswith("training ")]
    assert steps == ["21/40", "25/40", "30/40", "35/40", "40/40"]
    assert "solve rate 30.0%" in lines[-3] and "KL to reference nan" in lines[-3]
    assert "done in" in lines[-1] and "greedy accuracy 50.0%" in lines[-1]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_live_table_fits_the_width(width, monkeypatch):
    file = io.StringIO()
    console = Console("runs/" + "long" * 30, file=file, live=True)
    monkeypatch.setattr(
        console, "_console", rich.console.Console(file=file, force_terminal=True, width=width, height=24)
    )
    _drive(console)
    assert console._live is None
    plain = rich.console.Console(file=io.StringIO(), width=width, height=24)
    plain.print(console._render())
    shown = plain.file.getvalue()
    assert all(len(line) <= width for line in shown.splitlines())
    assert "40.0%" in shown
    assert ("▁" in shown) == (width >= 64)


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    file = io.StringIO()
    console = Console(file=file, live=False)
    console._console = rich.console.Console(file=file, force_terminal=True)
    console.message("attention", style="red")
    assert "\x1b[31m" not in file.getvalue()


def test_a_broken_output_does_not_end_the_run():
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    for live in (False, True):
        _drive(Console(file=Broken(), live=live))


def test_time_left_ignores_the_compilation(monkeypatch):
    now = 100.0
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now)
    console = Console(file=io.StringIO())
    console.phase("training", 10)
    console.update(0, {"eval/greedy_accuracy": 0.0})  # an evaluation before the first step
    assert console.seconds_left() is None
    now += 60.0
    console.update(1, {})
    assert console.seconds_left() is None
    for step in (2, 3):
        now += 2.0
        console.update(step, {})
    assert console.seconds_left() == pytest.approx(7 * 2.0)


def test_numbers_and_durations():
    assert duration(3.4) == "3 s" and duration(185) == "3 min 05 s" and duration(7800) == "2 h 10 min"
    assert sparkline([0, 1, 2, 3], 10) == "▁▃▆█" and sparkline([], 5) == "" and sparkline([math.nan], 5) == ""
    assert sparkline([1, math.nan, 1], 5) == "▁ ▁"
    assert len(sparkline(list(range(1000)), 12)) == 12
    assert console_module._number(0.123456, False) == "0.1235"
    assert console_module._number(1.5e-7, False) == "1.50e-07"
    assert console_module._number(math.inf, True) == "inf"
    assert console_module._change([1.0], False) == "" and console_module._change([1.0, 1.5], True) == "+50.0"


def test_live_display_runs_its_own_clock():
    file = io.StringIO()
    console = Console(file=file, live=True)
    console._console = rich.console.Console(file=file, force_terminal=True, width=80, height=24)
    with console:
        console.phase("training", 10)
        before = len(file.getvalue())
        time.sleep(1.2)
        assert len(file.getvalue()) > before
