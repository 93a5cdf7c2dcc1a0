"""Run directories: made once, owned by one job, resumed with their own configuration."""

import contextlib
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import pytest

from prm_jax import config_io
from prm_jax.errors import UserError
from prm_jax.runs import locks, processes
from prm_jax.runs.metrics_log import read_metrics
from prm_jax.runs.run_dir import RunDir, Sample, git_state, open_run, unique_run_path


@dataclass(frozen=True)
class _Inner:
    rate: float = 1e-5
    name: str = "on"


@dataclass(frozen=True)
class _Config:
    inner: _Inner = field(default_factory=_Inner)
    steps: int = 10
    tags: dict[str, str] = field(default_factory=dict)


def _samples() -> list[Sample]:
    steps = [("1+1=2\n", 0.25), ("so 2\nindeed", -1.5)]
    return [Sample("1+1?", "1+1=2\nso 2", 1.0, steps, {"answer": "2"}), Sample("ü?", "plain", 0.0)]


def test_a_new_run_records_its_origin(tmp_path):
    path = tmp_path / "with space ü" / "run"
    with open_run(path, _Config(), command=["prm-jax", "train", "--x", "a b"]) as run:
        assert isinstance(run, RunDir) and not run.resumed
        assert run.log(1, {"v": jnp.float32(2)}) == {"v": 2.0}
        run.log_samples(1, _samples())
        run.note(finished=True, accuracy=jnp.float32(0.5))
    assert config_io.load_yaml(path / "config.yaml", _Config()) == _Config()
    document = json.loads((path / "run.json").read_text())
    (launch,) = document["launches"]
    assert launch["command"] == "prm-jax train --x 'a b'" and launch["versions"]["jax"]
    assert launch["finished"] is True and launch["accuracy"] == 0.5 and launch["host"] and launch["pid"]
    text = (path / "samples.txt").read_text()
    assert "  +0.2500 | 1+1=2" in text and "  -1.5000 | so 2\n          | indeed" in text and "plain" in text
    assert "--- answer: 2" in text


def test_under_launchers_the_first_process_says_whether_to_resume(tmp_path, monkeypatch):
    with open_run(tmp_path / "run", _Config()) as run:
        run.claim()
    monkeypatch.setattr(processes, "broadcast_from_first", lambda value, name: True)
    with pytest.raises(UserError, match="already holds a run"):
        open_run(tmp_path / "run", _Config())
    monkeypatch.setenv("PRM_JAX_LAUNCHED", "1")
    with open_run(tmp_path / "run", _Config()) as run:
        assert run.resumed


def test_existing_directories_are_not_overwritten(tmp_path):
    with open_run(tmp_path / "run", _Config()) as run:
        run.claim()
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        open_run(tmp_path / "run", _Config())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        open_run(tmp_path / "other", _Config())
    with pytest.raises(UserError, match="is a file"):
        open_run(tmp_path / "other" / "thesis.tex", _Config())
    for path in (tmp_path / "other", tmp_path / "absent"):
        with pytest.raises(UserError, match="nothing to resume"):
            open_run(path, _Config(), resume=True)
    with open_run(tmp_path / "empty", _Config()):
        pass


def test_resuming_rewinds_and_keeps_one_record_per_step(tmp_path):
    path = tmp_path / "run"
    with open_run(path, _Config()) as run:
        for step in range(1, 6):
            run.log(step, {"v": step})
            run.log_samples(step, _samples())
    with open_run(path, _Config(), resume=True) as run:
        assert run.resumed
        run.rewind(3)
        run.log(4, {"v": 44})
    assert [r["v"] for r in read_metrics(path)] == [1, 2, 3, 44]
    samples = [json.loads(line)["step"] for line in (path / "samples.jsonl").read_text().splitlines()]
    assert samples == [1, 1, 2, 2, 3, 3]
    assert (path / "samples.txt").read_text().count("=== step") == 6
    launches = json.loads((path / "run.json").read_text())["launches"]
    assert len(launches) == 2 and launches[1]["resumed_step"] == 3 and launches[1]["config_changes"] == {}


def test_resuming_with_a_different_configuration(tmp_path):
    path = tmp_path / "run"
    config = _Config(tags={"a": "1"})
    with open_run(path, config):
        pass
    before = (path / "config.yaml").read_text()
    changed = replace(config, inner=_Inner(rate=1e-4), steps=20, tags={"a": "2"})
    with pytest.raises(UserError) as caught:
        open_run(path, changed, resume=True, soft=["steps"])
    message = str(caught.value)
    assert "inner.rate" in message and "1e-05 -> 0.0001" in message and "tags.a" in message
    assert "steps  " not in message and "may change: steps" in message
    assert (path / "config.yaml").read_text() == before
    with open_run(path, replace(config, steps=20), resume=True, soft=["steps", "log.*"]):
        pass
    assert "steps: 20" in (path / "config.yaml").read_text()
    launch = json.loads((path / "run.json").read_text())["launches"][-1]
    assert launch["config_changes"] == {"steps": ["10", "20"]}


def test_a_field_added_by_a_later_version_with_its_default_is_not_a_difference(tmp_path):
    @dataclass(frozen=True)
    class Later(_Config):
        novel: bool = False

    path = tmp_path / "run"
    with open_run(path, _Config()):
        pass
    with open_run(path, Later(), resume=True):
        pass
    with pytest.raises(UserError, match="novel"):
        open_run(path, Later(novel=True), resume=True)
    with pytest.raises(UserError, match="novel  False -> .absent."):
        open_run(path, _Config(), resume=True)


def test_changed_library_versions_warn_and_are_recorded(tmp_path, caplog):
    path = tmp_path / "run"
    with open_run(path, _Config()):
        pass
    document = json.loads((path / "run.json").read_text())
    document["launches"][0]["versions"]["jax"] = "0.0.1"
    (path / "run.json").write_text(json.dumps(document))
    with caplog.at_level(logging.WARNING), open_run(path, _Config(), resume=True):
        pass
    assert "jax 0.0.1 ->" in caplog.text
    assert "jax" in json.loads((path / "run.json").read_text())["launches"][-1]["version_changes"]


_HOLDER = """
import sys, time
from prm_jax.runs.locks import Lock
lock = Lock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_one_job_at_a_time_and_no_stale_locks(tmp_path):
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on "):
        locks.Lock(path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads(path.read_text())["pid"] == holder.pid  # a stale entry does not block
    lock = locks.Lock(path)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        locks.Lock(path)
    lock.release()
    locks.Lock(path).release()


def test_host_and_process_decide_where_there_are_no_system_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_try_lock", lambda file: None)
    path = tmp_path / "lock"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = locks.platform.node()
    for owner, free in (
        ({"host": host, "pid": gone.pid}, True),
        ({"host": host, "pid": os.getppid()}, False),
        ({"host": "elsewhere", "pid": 1}, False),
        ({"host": host, "pid": "?"}, False),
        ({}, True),
    ):
        path.write_text(json.dumps(owner))
        if free:
            locks.Lock(path).release()
        else:
            with pytest.raises(UserError, match="in use by"):
                locks.Lock(path)


def test_a_refused_start_leaves_the_owner_running(tmp_path):
    with open_run(tmp_path / "run", _Config()) as run:
        with pytest.raises(UserError, match="in use by process"):
            open_run(tmp_path / "run", _Config(), resume=True)
        run.log(1, {"v": 1})
    with open_run(tmp_path / "run", _Config(), resume=True):
        pass


def test_only_the_writer_writes(tmp_path):
    with RunDir(tmp_path / "run", resumed=False, writer=False) as run:
        assert run.log(1, {"v": jnp.int32(3)}) == {"v": 3}
        run.log_samples(1, _samples())
        run.rewind(0)
        run.note(x=1)
        run.sync()
    assert not (tmp_path / "run").exists()


def test_unique_names_and_git_state(tmp_path):
    first = unique_run_path(tmp_path, "tiny")
    first.mkdir()
    second = unique_run_path(tmp_path, "tiny")
    assert not second.exists() and second.name.startswith("tiny-")
    assert git_state(tmp_path) is None
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert git_state(tmp_path) is None  # no commit yet


_NEW, _OLD = ".policy.new.0123456789ab", ".prm.old.0123456789ab"


@pytest.mark.parametrize("resume", [False, True])
def test_leftovers_of_a_killed_run_are_removed_at_the_next_start(tmp_path, resume):
    path = tmp_path / "run"
    with open_run(path, _Config()) as run:
        if resume:
            run.claim()
    for name in (_NEW, _OLD):
        (path / name).mkdir()
        (path / name / "config.json").write_text(name)
    (path / ".run.json.4711.tmp").write_text("{")
    if resume:
        (path / ".mine.txt").write_text("mine")
    with open_run(path, _Config(), resume=resume):
        left = {entry.name for entry in path.iterdir() if entry.name.startswith(".")}
        assert left == ({".mine.txt"} if resume else set())
        # A model that was about to be replaced is put back.
        assert (path / "prm" / "config.json").is_file() == resume


def test_paths_that_cannot_be_used_are_refused(tmp_path):
    for name, part in (("a\0b", "null"), ("x" * 300, "name too long"), ("\udcff", "not valid UTF-8")):
        with pytest.raises(UserError, match=f"(?i)run directory.*{part}"):
            open_run(tmp_path / name, _Config())
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A directory with 64 KiB of space."""
    mount = tmp_path / "disk"
    mount.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small tmpfs here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def _fill(mount: pathlib.Path) -> None:
    with contextlib.suppress(OSError), (mount / "filler").open("wb", buffering=0) as file:
        for _ in range(1 << 20):
            file.write(b"x" * 512)


def test_a_disk_that_fills_up_during_a_run_is_reported(small_disk):
    with pytest.raises(UserError, match="cannot write .*metrics.jsonl: No space left.* --resume"):
        with open_run(small_disk / "run", _Config()) as run:
            run.log(1, {"v": 1})
            run.claim()
            _fill(small_disk)
            for step in range(2, 1000):
                run.log(step, {"v": step})
    (small_disk / "filler").unlink()
    with open_run(small_disk / "run", _Config(), resume=True) as run:
        run.rewind(1)
        run.log(2, {"v": 2})
    assert [record["step"] for record in read_metrics(small_disk / "run")] == [1, 2]


def test_a_full_or_read_only_disk_is_refused_at_the_start(small_disk):
    _fill(small_disk)
    with pytest.raises(UserError, match="cannot write .*No space left"):
        open_run(small_disk / "run", _Config())
    assert [entry.name for entry in small_disk.iterdir()] == ["filler"]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="cannot write to the run directory .*: Read-only file system"):
        open_run(small_disk / "run", _Config())


def test_damaged_documents_are_named(tmp_path):
    with open_run(tmp_path / "run", _Config()):
        pass
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json cannot be read"):
        open_run(tmp_path / "run", _Config(), resume=True)


def test_a_directory_that_is_not_utf_8_is_refused_at_the_start(tmp_path):
    with pytest.raises(UserError, match="is not valid UTF-8, which checkpoints need"):
        open_run(tmp_path / "r\udcff", _Config())
    assert not list(tmp_path.iterdir())
