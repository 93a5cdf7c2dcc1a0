"""Progress of commands over many problems, as a pipe and as a terminal show it."""

import io
import re

from prm_jax.commands.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_where_there_is_no_terminal():
    file = io.StringIO()
    with Progress(10, 2, file=file) as progress:
        progress.wrote(8, 100)
        assert file.getvalue() == ""  # the next line is not due
        progress.update(6, "accuracy 0.500")
        progress.update(10, "accuracy 0.600")
    first, last = file.getvalue().splitlines()
    assert re.fullmatch(r"6/10 problems, accuracy 0.500, 8 samples, 100 tokens, 0 s, about 0 s left", first)
    assert re.fullmatch(r"10/10 problems, accuracy 0.600, 8 samples, 100 tokens, 0 s", last)


def test_what_is_left_is_told_from_this_runs_problems(monkeypatch):
    now = iter([100.0, 130.0, 130.0])  # begun, told, and asked for the text
    monkeypatch.setattr("prm_jax.commands.progress.time.monotonic", lambda: next(now))
    file = io.StringIO()
    with Progress(10, 4, file=file) as progress:
        progress.update(6, "")
    assert file.getvalue() == "6/10 problems, 30 s, about 1 min 00 s left\n"


def test_a_chunk_that_takes_long_says_that_it_lives():
    file = io.StringIO()
    with Progress(10, file=file, every=0.0) as progress:
        progress.wrote(4, 0)
        progress.wrote(4, 0)
    assert file.getvalue() == "0/10 problems, 4 samples, 0 s\n0/10 problems, 8 samples, 0 s\n"


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    with Progress(10, file=file) as progress:
        progress.wrote(4, 12)
        progress.update(10, "accuracy [1.000]")  # brackets are no mark-up
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert "10/10 problems, accuracy [1.000], 4 samples, 12 tokens, 0 s" in shown and "━" in shown


def test_a_broken_pipe_ends_nothing():
    file = io.StringIO()
    progress = Progress(2, file=file)
    file.close()
    with progress:
        progress.update(2, "accuracy 1.000")
