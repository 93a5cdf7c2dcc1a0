"""Two processes: one checkpoint, one decision to stop, and a restore by a single process."""

import os
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from prm_jax.runs.checkpoint import Checkpointer

_WORKER = """
import os, signal, sys
import jax
rank, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
import jax.numpy as jnp
import numpy as np
from prm_jax.runs.checkpoint import Checkpointer, CheckpointError
from prm_jax.runs.interrupts import Interrupts
from prm_jax.models.sharding import make_mesh, shard_batch, shard_params

mesh = make_mesh()
assert mesh.shape["data"] == 4
rows = shard_batch({"w": np.arange(8, dtype=np.float32)}, mesh)
state = {**rows, **shard_params({"key": jax.random.key(3), "whole": np.arange(3)}, mesh)}
step = jax.jit(lambda s: {**s, "w": s["w"] + 1}, donate_argnums=0)
with Interrupts() as interrupts, Checkpointer(directory, max_to_keep=2) as checkpointer:
    done = 0
    while True:
        state, done = step(state), done + 1
        if rank == 1 and done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        stop = interrupts.should_stop()
        checkpointer.save(done, state, {"done": done})
        if stop:
            break
    assert done == 3, done
    checkpointer.wait()
    restored = checkpointer.restore(state)
    assert restored.step == 3 and restored.metadata == {"done": 3}
    # A step damaged in the middle is left by both, for the same older one.
    if rank == 0:
        for path in __import__("pathlib").Path(directory, "3", "state").rglob("*"):
            if path.is_file():
                path.write_bytes(b"garbage")
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices("damaged")
    assert checkpointer.restore(state).step == 2
    assert checkpointer.save(3, state, {"done": 3}, wait=True)
print("ok", flush=True)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_processes_save_stop_and_walk_back_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(rank), str(port), str(tmp_path / "c")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    try:
        ended = [worker.communicate(timeout=400) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, (out, err) in zip(workers, ended, strict=True):
        assert worker.returncode == 0 and out.endswith("ok\n"), out + err[-3000:]
    with Checkpointer(tmp_path / "c", read_only=True) as checkpointer:
        restored = checkpointer.restore({"w": jnp.zeros(8)}, partial=True)
    assert restored.step == 3
    np.testing.assert_array_equal(restored.state["w"], np.arange(8.0) + 3)
