"""Checkpoints: exact restores, async capture, damage, strays, mismatches, kill -9."""

import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax.errors import UserError
from prm_jax.runs import checkpoint_document
from prm_jax.runs.checkpoint import Checkpointer, CheckpointError
from prm_jax.runs.integrity import fingerprint

# Futures that orbax abandons when a file is damaged raise warnings when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def _state(seed: int = 0) -> dict:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "policy": {
            "w": jax.random.normal(keys[0], (8, 16)),
            "half": jax.random.normal(keys[1], (8, 3)).astype(jnp.bfloat16),
            "nothing": jnp.zeros((0, 4)),
        },
        "optimizer": (jnp.int32(7 + seed), {"mu": jnp.arange(5.0)}, None),
        "key": keys[2],
        "flags": jnp.array([True, False]),
    }


def _abstract(state: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _assert_same(a: dict, b: dict) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert fingerprint(a) == fingerprint(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape


def _data_files(step: pathlib.Path) -> list[pathlib.Path]:
    return [p for p in step.rglob("*") if p.is_file() and p.stat().st_size > 0]


def _flip(path: pathlib.Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def test_round_trip_is_exact(tmp_path):
    state, metadata = _state(), {"cursor": 12, "rates": [0.1, 1e-30], "nested": {"a": None}}
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest_step() is None
        assert checkpointer.restore(state) is None
        assert checkpointer.save(3, state, metadata)
        assert not checkpointer.save(3, state, metadata)  # still being written, or there already
    with Checkpointer(tmp_path, read_only=True) as checkpointer:
        for target in (state, _abstract(state)):
            restored = checkpointer.restore(target)
            assert restored.step == 3 and restored.metadata == metadata
            assert restored.versions["jax"] == jax.__version__
            _assert_same(restored.state, state)
        assert checkpointer.read_metadata() == metadata
    # The restored key gives the same numbers as the saved one.
    np.testing.assert_array_equal(
        jax.random.normal(restored.state["key"], (4,)), jax.random.normal(state["key"], (4,))
    )


def test_save_copies_the_state_before_it_returns(tmp_path):
    """Training donates the state right after save; the checkpoint must hold the values at the time of the call."""
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    with Checkpointer(tmp_path, max_to_keep=10) as checkpointer:
        for number in range(4):
            state = {"w": jnp.arange(2_000_000.0) + number, "b": jnp.full((3,), float(number))}
            expected = jax.tree.map(np.array, state)
            metadata = {"list": [number]}
            checkpointer.save(number, state, metadata)
            metadata["list"].append("later")
            for _ in range(5):
                state = step(state)
            jax.block_until_ready(state)
            checkpointer.wait()
            restored = checkpointer.restore(_abstract(state))
            jax.tree.map(np.testing.assert_array_equal, restored.state, expected)
            assert restored.metadata == {"list": [number]}


def test_only_the_newest_steps_are_kept_and_the_trash_is_emptied(tmp_path):
    with Checkpointer(tmp_path, max_to_keep=2) as checkpointer:
        for step in range(5):
            assert checkpointer.save(step, _state(step), {}, wait=True)
        assert checkpointer.steps() == [3, 4]
        assert not checkpointer.save(4, _state(4))
        with pytest.raises(CheckpointError, match="step 2 is not after step 4"):
            checkpointer.save(2, _state(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]


def test_a_flipped_byte_is_detected_and_the_previous_step_restored(tmp_path, caplog):
    state = {"layer": {"kernel": jax.random.normal(jax.random.key(0), (64, 64))}}
    with Checkpointer(tmp_path, max_to_keep=3) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state, {"step": step}, wait=True)
    files = sorted(_data_files(tmp_path / "2" / "state"), key=lambda p: p.stat().st_size)
    kernel = files[-1]  # the array's own file is by far the largest
    assert kernel.stat().st_size > 10_000
    _flip(kernel, kernel.stat().st_size // 2)
    with Checkpointer(tmp_path, read_only=True) as checkpointer, caplog.at_level(logging.WARNING):
        assert checkpointer.restore(state).step == 1
        assert "step 2 is damaged" in caplog.text and len(caplog.text) < 2_000
    with Checkpointer(tmp_path) as checkpointer:
        restored = checkpointer.restore(state)
        assert restored.metadata == {"step": 1}
        _assert_same(restored.state, state)
        # The damaged step is set aside, so the resumed run can write its own step 2.
        assert checkpointer.save(2, state, {"step": "again"}, wait=True)
        assert checkpointer.restore(state).metadata == {"step": "again"}
    assert (tmp_path / "set_aside" / "2-damaged").is_dir()


def test_a_changed_bit_names_the_leaf(tmp_path, monkeypatch):
    # Damage by storage is simulated: the restore by orbax returns one changed bit.
    state = _state()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, wait=True)
        original = checkpointer._orbax_restore

        def damaged(step, **items):
            result = original(step, **items)
            if "state" in items:
                bits = jax.lax.bitcast_convert_type(result["state"]["policy/w"], jnp.uint32)
                bits = bits.at[3, 4].set(bits[3, 4] ^ 1)
                arrays = {**result["state"], "policy/w": jax.lax.bitcast_convert_type(bits, jnp.float32)}
                return {"state": arrays}
            return result

        monkeypatch.setattr(checkpointer, "_orbax_restore", damaged)
        with pytest.raises(CheckpointError, match="leaf 'policy/w'"):
            checkpointer.restore(state)


@pytest.mark.parametrize("how", ["truncate", "delete"])
def test_no_truncated_or_deleted_file_gives_wrong_values(tmp_path, how):
    state = {"a": jnp.arange(100.0), "b": jnp.ones((3,), jnp.bfloat16)}
    with Checkpointer(tmp_path / "good") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, jax.tree.map(lambda x, s=step: x + s, state), {"step": step}, wait=True)
    names = [p.relative_to(tmp_path / "good" / "2") for p in _data_files(tmp_path / "good" / "2")]
    assert len(names) > 5
    for number, name in enumerate(names):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "good", copy)
        victim = copy / "2" / name
        victim.unlink() if how == "delete" else os.truncate(victim, 0)
        with Checkpointer(copy, read_only=True) as checkpointer:
            restored = checkpointer.restore(state)
        # Some files are not needed to restore; but there must be no crash and no wrong value.
        _assert_same(restored.state, jax.tree.map(lambda x, s=restored.step: x + s, state))
        assert restored.metadata == {"step": restored.step}


def test_a_folder_copied_under_another_number_is_not_that_step(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, _state(1), {"step": 1}, wait=True)
        checkpointer.save(2, _state(2), {"step": 2}, wait=True)
    shutil.copytree(tmp_path / "1", tmp_path / "7")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(CheckpointError, match="step 7 .* it holds step 1: the folder was copied or renamed"):
            checkpointer.read_metadata()
        restored = checkpointer.restore(_state())
        assert restored.step == 2 and restored.metadata == {"step": 2}
        _assert_same(restored.state, _state(2))
        assert checkpointer.steps() == [1, 2]


def test_a_failed_background_write_is_attributed_to_its_own_step(tmp_path, monkeypatch):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, _state(1), wait=True)
        checkpointer.save(2, _state(2))
        wait = checkpointer._manager.wait_until_finished

        def failing():
            wait()
            monkeypatch.undo()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpointer._manager, "wait_until_finished", failing)
        with pytest.raises(CheckpointError, match="checkpoint of step 2 could not be written .* no space left"):
            checkpointer.save(3, _state(3))


def test_an_error_without_changes_when_every_step_is_damaged(tmp_path):
    state = {"a": jnp.arange(1000.0)}
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state, wait=True)
    for step in (1, 2):
        for path in _data_files(tmp_path / str(step) / "state"):
            path.write_bytes(b"garbage")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(CheckpointError, match="no usable checkpoint") as caught:
            checkpointer.restore(state)
    message = str(caught.value)
    assert "step 1" in message and "step 2" in message and len(message) < 1_000
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


def test_stray_files_and_directories_are_ignored_with_a_warning(tmp_path, caplog):
    state = _state()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, wait=True)
    (tmp_path / "7").mkdir()
    (tmp_path / "latest").mkdir()
    (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "007").mkdir()
    (tmp_path / "note.txt").write_text("mine")
    with Checkpointer(tmp_path, read_only=True) as checkpointer:
        assert checkpointer.latest_step() == 1
        assert checkpointer.restore(state).step == 1
    with caplog.at_level(logging.WARNING), Checkpointer(tmp_path) as checkpointer:
        assert "step 7" in caplog.text and "incomplete" in caplog.text
        assert checkpointer.restore(state).step == 1
        assert checkpointer.save(7, state, wait=True)
        assert checkpointer.steps() == [1, 7]
    assert (tmp_path / "note.txt").read_text() == "mine"
    assert (tmp_path / "set_aside" / "7-incomplete").is_dir()


def test_mismatched_leaves_are_refused_and_listed(tmp_path):
    state = {f"w{i}": jnp.zeros((2, i + 1)) for i in range(8)}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, wait=True)
        with pytest.raises(CheckpointError, match=r"w0: dtype float32 in the checkpoint, bfloat16 expected"):
            checkpointer.restore({**state, "w0": state["w0"].astype(jnp.bfloat16)})
        with pytest.raises(CheckpointError, match=r"w1: shape \(2, 2\) in the checkpoint, \(2, 9\) expected"):
            checkpointer.restore({**state, "w1": jnp.zeros((2, 9))})
        with pytest.raises(CheckpointError, match="extra: not in the checkpoint"):
            checkpointer.restore({**state, "extra": jnp.zeros(())})
        with pytest.raises(CheckpointError, match="w0: only in the checkpoint") as caught:
            checkpointer.restore({"w7": state["w7"]})
        assert "and 2 more" in str(caught.value)
        assert isinstance(caught.value, UserError)
        restored = checkpointer.restore({"w7": state["w7"]}, partial=True)
        assert list(restored.state) == ["w7"]
        assert checkpointer.restore(state).step == 1  # none of these counts as damage


def test_a_checkpoint_in_another_format_is_refused(tmp_path, monkeypatch):
    state = {"w": jnp.ones(2)}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, wait=True)
        newer = checkpoint_document.FORMAT + 1
        monkeypatch.setattr(checkpoint_document, "FORMAT", newer)
        with pytest.raises(CheckpointError, match=f"has format {newer - 1}; this version .* reads format {newer}"):
            checkpointer.restore(state)
        assert checkpointer.steps() == [1], "nothing is set aside"


def test_restoring_a_given_step_sets_later_ones_aside(tmp_path):
    with Checkpointer(tmp_path, max_to_keep=5) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, _state(step), wait=True)
        with pytest.raises(CheckpointError, match="no checkpoint of step 9"):
            checkpointer.restore(_state(), step=9)
        _assert_same(checkpointer.restore(_state(), step=2).state, _state(2))
        assert checkpointer.steps() == [1, 2]
        assert checkpointer.save(3, _state(33), wait=True)
        _assert_same(checkpointer.restore(_state()).state, _state(33))


def test_leaves_and_metadata_are_checked_at_save(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(TypeError, match="leaf 'n' is a int"):
            checkpointer.save(1, {"n": 3})
        with pytest.raises(TypeError, match="float64"):
            checkpointer.save(1, {"n": np.zeros(3)})
        with pytest.raises(TypeError):
            checkpointer.save(1, {"n": jnp.zeros(3)}, {"set": {1, 2}})
        with pytest.raises(ValueError, match="both called 'a/b'"):
            checkpointer.save(1, {"a/b": jnp.zeros(3), "a": {"b": jnp.zeros(3)}})
        assert checkpointer.save(1, {"host": np.arange(4, dtype=np.int32)}, wait=True)
        assert checkpointer.save(2, {}, {"only": "metadata"}, wait=True)
        assert checkpointer.restore({}).metadata == {"only": "metadata"}


def test_restores_to_other_device_counts_and_under_an_active_mesh(tmp_path):
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("needs 8 devices")

    def placed(count: int) -> dict:
        mesh = jax.sharding.Mesh(np.array(devices[:count]), ("data",), axis_types=(AxisType.Auto,))
        rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        return {
            "w": jax.device_put(jnp.arange(64.0).reshape(16, 4), rows),
            "keys": jax.device_put(jax.random.split(jax.random.key(1), 8), rows),
            "n": jax.device_put(jnp.int32(3), whole),
        }

    saved = placed(4)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, saved, wait=True)
        for count in (1, 2, 8):
            target = placed(count)
            restored = checkpointer.restore(_abstract(target))
            _assert_same(restored.state, saved)
            assert restored.state["w"].sharding == target["w"].sharding
        with jax.set_mesh(saved["w"].sharding.mesh):
            _assert_same(checkpointer.restore(_abstract(saved)).state, saved)


def test_unusable_directories_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a directory"):
        Checkpointer(tmp_path / "absent", read_only=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write checkpoints"):
        Checkpointer(tmp_path / "file")
    with pytest.raises(CheckpointError, match="max_to_keep is 0"):
        Checkpointer(tmp_path / "c", max_to_keep=0)


def test_a_full_disk_is_reported_and_older_steps_are_kept(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        small = {"w": jnp.zeros(10)}
        random = {"w": jax.random.normal(jax.random.key(0), (4_000_000,))}
        checkpointer = Checkpointer(mount / "checkpoints")
        checkpointer.save(1, small, wait=True)
        with pytest.raises(CheckpointError, match="step 2 could not be written.*no space left") as caught:
            checkpointer.save(2, random)
            checkpointer.wait()
        assert caught.value.exit_code == 74
        assert "Complete checkpoints there: 1" in str(caught.value) and len(str(caught.value)) < 500
        assert checkpointer.restore(small).step == 1
        assert checkpointer.save(3, small, wait=True)  # works again once there is space
        checkpointer.close()
    finally:
        subprocess.run(["umount", str(mount)], check=False)


_WRITER = """
import itertools, sys
import jax, jax.numpy as jnp
from prm_jax.runs.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1], max_to_keep=2)
state = {"w": jnp.zeros((600_000,))}
restored = checkpointer.restore(state)
step = restored.step if restored else 0
state = restored.state if restored else state
for step in itertools.count(step + 1):
    state = {"w": state["w"] + 1}
    checkpointer.save(step, state, {"step": step})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_an_intact_checkpoint(tmp_path):
    rng, last = np.random.default_rng(0), 0
    environment = {**os.environ, "XLA_FLAGS": ""}
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, env=environment, text=True
        )
        for _ in range(3):
            assert writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with Checkpointer(tmp_path, read_only=True) as checkpointer:
            restored = checkpointer.restore({"w": jnp.zeros((600_000,))})
        assert restored.step == restored.metadata["step"] > last
        np.testing.assert_array_equal(restored.state["w"], restored.step)
        last = restored.step
