"""The supervisor with workers of a few lines: deaths, restarts, signals, output, and nothing left behind."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from prm_jax import cli
from prm_jax.commands import launch
from prm_jax.errors import UserError
from prm_jax.runs.jobs import Job, option_value
from prm_jax.runs.local_devices import device_environments
from prm_jax.runs.supervisor import Layout

pytestmark = pytest.mark.heavy

WORKER = """
import json, os, pathlib, signal, sys, time
rank = int(os.environ.get("PRM_JAX_PROCESS_ID", "0"))
here = pathlib.Path(os.environ["WHERE"])
(here / f"pid{rank}").write_text(str(os.getpid()))
attempt = len(list(here.glob(f"ran{rank}.*")))
(here / f"ran{rank}.{attempt}").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))

def checkpoint(step):
    run = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
    (run / "checkpoints" / str(step) / "state").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints" / str(step) / "meta").mkdir(exist_ok=True)
    (run / "config.yaml").touch()
    (run / "run.json").write_text('{"claimed": true}')

def save_on_signal(code=75):
    def stop(*_):
        print("saving", flush=True)
        sys.exit(code)
    signal.signal(signal.SIGTERM, stop)
    (here / f"ready{rank}").touch()
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the launcher on a worker with the given last lines; kills what is left at the end."""
    started = []

    def begin(body, *options, run_dir=True):
        script = tmp_path / "worker.py"
        script.write_text(WORKER + body)
        words = ["--run-dir", str(tmp_path / "run")] if run_dir else []
        command = [sys.executable, "-m", "prm_jax", "launch", "--delay", "0.05", *options, "--", str(script), *words]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "WHERE": str(tmp_path)},
            # Under nohup and in the background of a script SIGINT is ignored, and would stay so.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
    for path in tmp_path.glob("pid*"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def finish(process, seconds=30):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def runs_of(where: pathlib.Path, rank: int) -> list:
    """(words, environment) of every attempt."""
    return [json.loads((where / f"ran{rank}.{i}").read_text()) for i in range(len(list(where.glob(f"ran{rank}.*"))))]


def wait_for(*paths, seconds=20):
    end = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, f"no {paths}"
        time.sleep(0.02)


def alive(where: pathlib.Path) -> list[int]:
    """The workers that exist, zombies not counted."""
    found = []
    for path in where.glob("pid*"):
        pid = int(path.read_text())
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def gone(where: pathlib.Path, seconds=5) -> bool:
    end = time.monotonic() + seconds
    while alive(where) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(where)


def test_output_is_prefixed_and_processes_know_their_place(start, tmp_path):
    body = "print(f'hello from {rank}'); print('bad', file=sys.stderr); sys.stdout.write('no newline')"
    code, out, err = finish(start(body, "--nproc", "2", run_dir=False))
    assert code == 0
    assert sorted(out.splitlines()) == ["[0] hello from 0", "[0] no newline", "[1] hello from 1", "[1] no newline"]
    assert "[0] bad\n" in err and "[1] bad\n" in err and "launch: finished" in err
    environments = [runs_of(tmp_path, rank)[0][1] for rank in (0, 1)]
    assert [e["PRM_JAX_PROCESS_ID"] for e in environments] == ["0", "1"]
    assert {e["PRM_JAX_PROCESSES"] for e in environments} == {"2"}
    (coordinator,) = {e["PRM_JAX_COORDINATOR"] for e in environments}
    assert coordinator.startswith("127.0.0.1:")


def test_a_single_process_is_supervised_without_a_coordinator(start, tmp_path):
    assert finish(start("sys.exit(0 if attempt else 1)"))[0] == 0
    assert not [name for name in runs_of(tmp_path, 0)[1][1] if name.startswith("PRM_JAX_PROC")]


def test_one_death_ends_all_and_the_run_is_resumed(start, tmp_path):
    body = """
if attempt == 0:
    if rank == 1:
        checkpoint(3)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
"""
    begun = time.monotonic()
    code, _, err = finish(start(body, "--nproc", "3"))
    assert code == 0 and time.monotonic() - begun < 20, "the survivors must not be waited for"
    assert "process 1 was killed by SIGKILL" in err and "ending process 0, process 2" in err
    for rank in range(3):
        (first, _), (second, _) = runs_of(tmp_path, rank)
        assert "--resume" not in first and second[-1] == "--resume"
    log = (tmp_path / "run" / "launch.log").read_text()
    assert "attempt 1: processes 0 to 2 of 3" in log and "attempt 2: processes 0 to 2 of 3; checkpoints at 3" in log
    assert log.rstrip().endswith("finished")


def test_a_run_that_never_completed_a_step_is_started_again_from_the_beginning(start, tmp_path):
    body = """
if attempt == 0:
    run = pathlib.Path(sys.argv[2]); run.mkdir(); (run / "config.yaml").touch()
    (run / "run.json").write_text('{"claimed": false}')
    sys.exit(1)
"""
    assert finish(start(body))[0] == 0
    assert [words[2:] for words, _ in runs_of(tmp_path, 0)] == [[], []]


def test_restarts_without_progress_end(start, tmp_path):
    code, _, err = finish(start("sys.exit(76)", "--nproc", "2", "--max-stalled", "2"))
    assert code == 78 and len(runs_of(tmp_path, 0)) == 3
    assert "2 restarts in a row (--max-stalled) ended without a new checkpoint" in err


def test_bad_input_and_divergence_are_not_repeated(start, tmp_path):
    assert finish(start("sys.exit(2)", "--nproc", "2"))[0] == 2 and len(runs_of(tmp_path, 1)) <= 1
    assert finish(start("checkpoint(attempt); sys.exit(77)"))[0] == 77


def test_sigterm_reaches_all_processes_and_is_no_reason_for_a_restart(start, tmp_path):
    process = start("save_on_signal()", "--nproc", "2")
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 75 and sorted(out.splitlines()) == ["[0] saving", "[1] saving"]
    assert "all processes finish their step and save" in err and len(runs_of(tmp_path, 0)) == 1


def test_a_second_signal_kills(start, tmp_path):
    process = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(here / 'ready').touch()\ntime.sleep(60)")
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # at once: counts as the same
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process, seconds=5)
    assert code == 130 and "SIGINT again" in err and gone(tmp_path)


def test_a_signal_during_the_wait_for_a_restart_ends_the_job(start, tmp_path):
    process = start("checkpoint(attempt)\n(here / 'ready').touch()\nsys.exit(1)", "--delay", "60")
    wait_for(tmp_path / "ready")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert finish(process, seconds=5)[0] == 75


def test_a_stopped_process_is_ended_with_the_others(start, tmp_path):
    body = """
if attempt == 0:
    checkpoint(0)
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.5)
    sys.exit(76)
"""
    code, _, err = finish(start(body, "--nproc", "2"))
    assert code == 0 and "process 1 exited with 76 (stuck, ended by the watchdog)" in err


def test_a_process_that_goes_on_after_the_others_have_finished_counts_as_stuck(start, tmp_path):
    body = "time.sleep(60 if rank and not attempt else 0)"
    code, _, err = finish(start(body, "--nproc", "2", "--finish-seconds", "0.5"))
    assert code == 0 and "exited with 76" in err and len(runs_of(tmp_path, 0)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_nothing_survives_a_launcher_that_is_killed(start, tmp_path):
    process = start("(here / f'ready{rank}').touch()\ntime.sleep(60)", "--nproc", "2")
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    process.kill()
    process.wait()
    assert gone(tmp_path)


def test_what_a_process_has_started_ends_with_it(start, tmp_path):
    body = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(here / f"pid{rank}child").write_text(str(child.pid))
sys.exit(0)
"""
    assert finish(start(body, "--nproc", "2"))[0] == 0
    assert gone(tmp_path)


def test_a_reader_that_goes_away_does_not_end_the_run(start, tmp_path):
    process = start("for i in range(50):\n    print('x' * 100, flush=True)\n(here / 'done').touch()")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=20) == 0 and (tmp_path / "done").exists()


# ------------------------------------------------------------------------ jobs, layouts, options


def test_progress_is_read_as_checkpoints_are(tmp_path):
    import jax.numpy as jnp

    from prm_jax.runs.checkpoint import Checkpointer

    job = Job(("python",), (), run_dir=tmp_path)
    assert job.progress() == {} and not job.begun()
    with Checkpointer(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, {"x": jnp.ones(2)}, wait=True)
        checkpoints.save(7, {"x": jnp.ones(2)}, wait=True)
        (tmp_path / "checkpoints" / "9").mkdir()
        assert checkpoints.latest_step() == 7
    (tmp_path / "phases" / "warm_start" / "checkpoints" / "5" / "state").mkdir(parents=True)
    assert job.progress() == {str(tmp_path / "checkpoints"): 7}


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0


def test_a_run_is_resumed_from_its_first_step_on(tmp_path):
    from prm_jax.runs.run_dir import open_run

    job = Job(("python",), ("--run-dir", "x"), run_dir=tmp_path / "run")
    with open_run(tmp_path / "run", Config()) as run:
        assert job.command() == ["python", "--run-dir", "x"], "this start must be repeated, not resumed"
        run.claim()
        assert job.command() == ["python", "--run-dir", "x", "--resume"]
    assert Job(("python",), ("--resume",), run_dir=tmp_path / "run").command() == ["python", "--resume"]


@pytest.mark.parametrize("words", [["--run-dir", "a"], ["--run-dir=a"], ["--run_dir", "a"], ["-x", "--run_dir=a", "b"]])
def test_options_are_found_however_they_are_spelled(words):
    assert option_value(words, "run-dir") == "a"
    assert option_value(words, "out") is None and option_value(["--out"], "out") is None


def test_commands_that_write_results_are_resumed(tmp_path):
    job = launch._job(["search", "model", "--out", str(tmp_path / "a.jsonl")], several_hosts=False)
    assert job.command()[-1] == "--resume" and job.progress() == {}
    (tmp_path / "a.jsonl").write_text("line\n")
    assert job.progress() == {str(tmp_path / "a.jsonl"): 5}
    assert launch._job(["generate", "model"], several_hosts=False).command()[-1] == "model"


def test_a_training_run_without_a_directory_gets_one():
    command = launch._job(["train", "--preset", "tiny"], several_hosts=False).command()
    assert command[command.index("--run-dir") + 1].startswith("runs/tiny-")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "nothing to launch"),
        (["--nproc", "2"], "nothing to launch"),
        (["--nproc", "0", "--", "train"], "--nproc is 0; it must be at least 1"),
        (["--nproc", "2", "--", "trian"], "unknown command 'trian': did you mean train"),
        (["--", "launch"], "unknown command 'launch'"),
        (["--", "absent.py"], "there is no such file"),
        (["--processes", "4", "--", "train"], "needs --coordinator HOST:PORT"),
        (["--coordinator", "here", "--", "train"], "expected HOST:PORT"),
        (["--coordinator", "here:99999", "--", "train"], "expected HOST:PORT"),
        (
            ["--coordinator", "a:1", "--first-process", "3", "--nproc", "2", "--processes", "4", "--", "train"],
            "up to 4",
        ),
        (["--coordinator", "a:1", "--processes", "2", "--", "train"], "needs --run-dir"),
        (["--max-restart", "1", "--", "train"], "did you mean --max-restarts"),
    ],
)
def test_impossible_layouts_and_commands_are_refused(words, part, capsys):
    assert cli.main(["launch", *words]) == 2
    assert part in capsys.readouterr().err


def test_the_options_of_the_command_are_not_those_of_the_launcher(monkeypatch):
    seen = {}
    monkeypatch.setattr(launch, "supervise", lambda job, layout, limits, **_: seen.update(job=job, limits=limits) or 0)
    words = ["launch", "--max-restarts", "3", "--", "train", "--preset", "smoke", "--run-dir", "x", "--help", "--debug"]
    assert cli.main(words) == 0
    assert seen["job"].words[-2:] == ("--help", "--debug") and seen["limits"].max_restarts == 3


def test_a_job_on_several_hosts():
    layout = Layout(2, first=4, total=8, coordinator="node0:1234")
    found = layout.whole_environments()
    assert list(found) == [4, 5] and found[5]["PRM_JAX_PROCESS_ID"] == "5"
    assert found[4]["PRM_JAX_COORDINATOR"] == "node0:1234" and found[4]["PRM_JAX_PROCESSES"] == "8"


def test_devices_are_divided(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_x=1")
    virtual = device_environments(2, 4)[1]
    assert virtual["JAX_NUM_CPU_DEVICES"] == "4" and virtual["XLA_FLAGS"] == "--xla_x=1"
    assert device_environments(2, 0) == ({}, {})
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4,5")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in device_environments(2, 2)] == ["0,1", "4,5"]
    with pytest.raises(UserError, match="needs 6 GPUs, but this host has 4: 0, 1, 4, 5"):
        device_environments(3, 2)
