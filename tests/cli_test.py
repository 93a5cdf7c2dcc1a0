"""The command line: exit codes, errors without tracebacks, layered options, and no jax before it is needed."""

import contextlib
import importlib
import io
import os
import pathlib
import re
import subprocess
import sys
import types
from dataclasses import dataclass

import pytest

from prm_jax import cli, command_line, terminal
from prm_jax.commands import train
from prm_jax.errors import StorageError, UnavailableError, UserError
from prm_jax.prime import PRESETS, Options
from prm_jax.runs.stopping import DivergedRun


def _run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "prm_jax", *words], capture_output=True, text=True, env={**os.environ, **environment}
    )


def _call(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(words))
    return code, out.getvalue(), err.getvalue()


_PROBE = """
import sys
from prm_jax import cli
for line in sys.argv[1:]:
    try:
        cli.main(line.split())
    except SystemExit:
        pass
    heavy = [name for name in ("jax", "numpy", "flax", "orbax", "matplotlib", "tokenizers") if name in sys.modules]
    print(f"\\n|{line}|{','.join(heavy)}|")
"""
_LIGHT = (
    "--help", "", "--version", "train --help", "doctor --help", "plot --help", "generate --help", "convert --help",
    "train --preset tiny --prm.lerning-rate 1", "train --config absent.yaml", "nonsense",
)  # fmt: skip


def test_help_and_usage_errors_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", _PROBE, *_LIGHT], capture_output=True, text=True)
    imported = [line.split("|")[1:3] for line in done.stdout.splitlines() if re.fullmatch(r"\|.*\|[a-z,]*\|", line)]
    assert imported == [[line, ""] for line in _LIGHT], done.stdout[-200:]
    assert "Traceback" not in done.stderr + done.stdout


def test_general_help_and_version():
    for words in ((), ("-h",), ("--help",), ("help",)):
        code, out, _ = _call(*words)
        assert code == 0 and all(name in out for name in cli.COMMANDS)
    code, out, _ = _call("--version")
    assert code == 0 and out.startswith("prm-jax ")


def test_every_command_has_its_module():
    for name in cli.COMMANDS:
        code, out, _ = _call(name, "--help")
        assert code == 0 and f"usage: prm-jax {name}" in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["trian"], "unknown command 'trian': did you mean train"),
        (["xyz"], "there are train"),
        (["train", "--preset", "tinny"], "unknown preset 'tinny': did you mean tiny"),
        (["train", "--prm.lerning-rate", "1"], "did you mean --prm.learning-rate"),
        (["train", "--beta", "1"], "unknown option --beta; did you mean --reward.beta or --prm.beta?"),
        (["train", "--prm.lr", "1"], "--prm.learning-rate"),
        (["train", "stray", "words"], "unexpected arguments: stray words"),
        (["train", "--resume"], "--resume needs --run-dir"),
        (["train", "--config", "no/such.yaml"], "cannot read the configuration no/such.yaml"),
        (["plot"], "no run given"),
        (["plot", "no/such/run"], "no/such/run"),
    ],
)
def test_bad_input_gives_one_paragraph_and_status_2(words, part):
    code, _, err = _call(*words)
    assert code == 2 and err.startswith("error:") and part in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--prm.loss", "cx"], "Expected one of"),
        (["--prm.beta", "fast"], "expected a number, found 'fast'"),
        (["--steps", "1.5"], "expected a whole number, found '1.5'"),
        (["--steps"], "--steps"),
        (["--task.options", "odd"], "name and value"),
    ],
)
def test_wrong_values_are_explained(words, part):
    code, out, err = _call("train", *words)
    assert code == 2 and part in out + err and "Traceback" not in err


def test_debug_shows_the_traceback():
    code, _, err = _call("train", "--preset", "tinny", "--debug")
    assert code == 2 and "Traceback" in err and "error: unknown preset" in err


def _parse(*words: str) -> train.Options:
    return command_line.parse(train.Options, words, prog="prm-jax train", default=train.defaults(words))


def test_preset_then_file_then_command_line(tmp_path):
    file = tmp_path / "my config.yaml"
    file.write_text("prm: {learning_rate: 1e-5, beta: 0.5}\nsteps: 7\n")
    options = _parse("--preset", "tiny", "--config", str(file), "--prm.beta", "0.25", "--seed=3")
    assert options.training.prm.learning_rate == 1e-5
    assert options.training.prm.beta == 0.25
    assert options.training.steps == 7 and options.training.seed == 3
    assert options.training.sft == PRESETS["tiny"].sft
    assert _parse().training == Options()
    assert _parse("--preset=tiny").training == PRESETS["tiny"]


def test_mappings_and_none_on_the_command_line():
    options = _parse("--preset", "tiny", "--task.options", "min_operands", "4", "--policy.dual-clip", "3")
    assert options.training.task.options == {**PRESETS["tiny"].task.options, "min_operands": "4"}
    assert options.training.policy.dual_clip == 3.0
    assert _parse("--task.options", "a=1", "b=x").training.task.options == {"a": "1", "b": "x"}
    assert _parse("--policy.dual-clip", "none").training.policy.dual_clip is None
    assert _parse("--prm.learning_rate", "1e-3").training.prm.learning_rate == 1e-3


def test_flags_take_truth_values_too():
    for words in (["--no-plots"], ["--plots", "false"], ["--plots=no"], ["--eval.no-greedy", "--plots", "off"]):
        assert _parse(*words).training.plots is False
    assert _parse("--eval.greedy=false").training.eval.greedy is False
    assert _parse("--baseline", "true", "--seed", "3").training.baseline is True
    assert _parse("--baseline").training.baseline is True
    from prm_jax.commands import generate

    options = command_line.parse(generate.Options, ["model", "--json", "yes"], prog="prm-jax generate")
    assert options.json and options.prompt == ("yes",), "a prompt is not the value of a flag"
    options = command_line.parse(generate.Options, ["model", "yes", "--json=false"], prog="prm-jax generate")
    assert not options.json


def test_names_of_thousands_of_characters_are_bad_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "A" * 5000
    for words in (["--config", name], ["--task.name", name], ["--task.name", f"{name}.jsonl"]):
        code, _, err = _call("train", *words)
        assert code == 2 and len(err) < 600 and "AAA..." in err


def test_options_of_the_presets_task_are_dropped_for_another_task():
    other = ("--preset", "tiny", "--task.name", "arithmetic")
    assert _parse(*other).training.task.options == {}
    assert _parse(*other, "--task.options", "digits", "1").training.task.options == {"digits": "1"}
    same = _parse("--preset", "tiny", "--task.name", "carry", "--task.options", "verbose", "true")
    assert same.training.task.options == {**PRESETS["tiny"].task.options, "verbose": "true"}
    from prm_jax.commands import search

    found = command_line.parse(search.Options, ["model", "--task-options", "a", "1"], prog="prm-jax search")
    assert found.task_options == {"a": "1"} and type(found.task_options) is dict


def test_help_shows_common_options_and_help_all_the_rest():
    code, common, _ = _call("train", "--help", "--preset", "tiny")
    assert code == 0 and "--help-all lists" in common and common.count(" --") < 40
    assert "--policy.learning-rate" in common and "--policy.beta2" not in common
    assert "min_operands 3" in common, "defaults are the preset's"
    code, every, _ = _call("train", "--help-all")
    assert code == 0 and all(f"--{name}" in every for name in command_line.option_names(train.Options))
    assert "(at least 0; default: 5e-7)" in every and "default: none" in every and "default: empty" in every
    for command in ("train", "train_prm", "search", "label"):
        module = importlib.import_module(f"prm_jax.commands.{command}")
        assert set(module.COMMON_OPTIONS) <= set(command_line.option_names(module.Options)), command
        assert len(module.COMMON_OPTIONS) == 20
    assert _call("train", "--help", "--preset", "absent")[0] == 0


def test_a_resumed_run_brings_its_own_configuration(tmp_path):
    from prm_jax.config_io import to_yaml

    (tmp_path / "config.yaml").write_text(to_yaml(PRESETS["smoke"]))
    options = _parse("--run-dir", str(tmp_path), "--resume", "--steps", "9")
    assert options.training.rollout == PRESETS["smoke"].rollout and options.training.steps == 9
    assert options.resume and options.run_dir == tmp_path
    # Named otherwise, the run directory's own configuration is compared and not taken.
    assert _parse("--run_dir", str(tmp_path), "--resume", "--preset", "tiny").training == PRESETS["tiny"]


@dataclass(frozen=True)
class _Options:
    """A command."""

    count: int = 1


def _command(body) -> types.SimpleNamespace:
    return types.SimpleNamespace(Options=_Options, run=body)


def _with_command(monkeypatch, body) -> tuple[int, str, str]:
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: _command(body))
    return _call("doctor", "--count", "2")


def test_exit_codes(monkeypatch, tmp_path):
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    assert _with_command(monkeypatch, lambda options: None)[0] == 0
    assert _with_command(monkeypatch, lambda options: 75)[0] == 75

    def fail(error):
        def body(options):
            assert options.count == 2
            raise error

        return body

    code, _, err = _with_command(monkeypatch, fail(UserError("found x\nexpected y")))
    assert (code, err) == (2, "error: found x\nexpected y\n")
    assert _with_command(monkeypatch, fail(StorageError("disk full")))[:2] == (74, "")
    assert _with_command(monkeypatch, fail(UnavailableError("no answer")))[0] == 69
    assert _with_command(monkeypatch, fail(DivergedRun("NaN")))[0] == 77
    assert _with_command(monkeypatch, fail(KeyboardInterrupt()))[0] == 130
    code, _, err = _with_command(monkeypatch, fail(ZeroDivisionError("oops")))
    assert code == 1 and "ZeroDivisionError: oops" in err and "Traceback" not in err
    (kept,) = tmp_path.glob("prm-jax-*.txt")
    assert str(kept) in err and "Traceback" in kept.read_text()
    code, _, err = _with_command(monkeypatch, fail(RuntimeError("RESOURCE_EXHAUSTED: 9 GB")))
    assert code == 1 and "out of memory" in err and "microbatches" in err
    code, _, err = _with_command(monkeypatch, fail(FileNotFoundError(2, "No such file", "thing")))
    assert code == 1 and "thing" in err


@pytest.mark.parametrize(
    "command", ["train --help-all | head -n 1", "train --help-all 2>&1 | head -n 1", "--help | true"]
)
def test_a_reader_that_goes_away_is_not_an_error(command):
    words, _, reader = command.partition("|")
    shell = f"{sys.executable} -m prm_jax {words} | {reader}; echo status ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert not done.stderr
    assert done.stdout.splitlines()[-1] in ("status 0", "status 141")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help >&-", 0),
        ("train --help >&- 2>&-", 0),
        ("train --preset tinny 2>&-", 2),
        ("train --preset tinny >&- 2>&-", 2),
        ("--help >/dev/full", 1),
        ("train --help >/dev/full", 1),
    ],
)
def test_closed_and_full_streams(command, code):
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m prm_jax {command}"], capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if "full" in command:
        assert done.stderr == (
            "error: cannot write the output: No space left on device. Free some space, or write to another device\n"
        )


def test_an_ascii_terminal_gets_escapes(tmp_path):
    program = "from prm_jax import terminal; terminal.prepare_streams(); print(chr(0x2014), chr(0xdce9))"
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
        )
        assert done.returncode == 0 and b"\\udce9" in done.stdout


def test_pipes_and_devices_are_not_configurations(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device"), (tmp_path, "a directory")):
        for command in ("train", "train-prm"):
            code, _, err = _call(command, "--config", str(path))
            assert code == 2 and err == f"error: cannot read the configuration {path}: expected a file, found {kind}\n"


def test_odd_surroundings(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "HOME"}
    there = tmp_path / "a b ü"
    there.mkdir()
    for words, code in ((["--help"], 0), (["train", "--preset", "x"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "prm_jax", *words],
            capture_output=True,
            cwd=there,
            env={**environment, "COLUMNS": "40", "NO_COLOR": "1", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        )
        assert done.returncode == code and b"Traceback" not in done.stderr and b"\x1b" not in done.stdout + done.stderr


def test_errors_are_red_on_a_terminal_only(monkeypatch, capsys):
    terminal.print_error("a\x1b[2Jb")
    assert capsys.readouterr().err == "error: a\\x1b[2Jb\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal.print_error("bad")
    assert capsys.readouterr().err == "\x1b[31;1merror:\x1b[0m bad\n"
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.print_warning("odd")
    assert capsys.readouterr().err == "warning: odd\n"


def test_peek_and_option_names():
    assert command_line.peek(
        ["--preset", "a", "--run_dir=b", "--x", "1", "--resume"], ("preset", "run_dir", "resume")
    ) == {
        "preset": "a",
        "run_dir": "b",
        "resume": "",
    }
    names = command_line.option_names(train.Options)
    assert {"preset", "run-dir", "prm.learning-rate", "steps", "task.options"} <= set(names)
    from prm_jax.commands import plot

    assert "runs" not in command_line.option_names(plot.Options)


def test_defaults_of_a_bad_file_name_it(tmp_path):
    file = pathlib.Path(tmp_path / "c.yaml")
    file.write_text("prm:\n  lerning_rate: 1\n")
    with pytest.raises(UserError, match=r"c.yaml:2: unknown option prm.lerning_rate; did you mean prm.learning_rate"):
        train.defaults(["--config", str(file)])
