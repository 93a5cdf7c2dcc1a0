"""What the processes of tests/runs/processes_test.py run."""

import dataclasses
import json
import os
import pathlib
import sys
import time

import numpy as np

from prm_jax.errors import UserError
from prm_jax.runs import distributed, processes, shared_files
from prm_jax.runs.distributed import failing_together, initialize
from prm_jax.runs.distributed_options import DistributedOptions
from prm_jax.runs.run_dir import open_run
from prm_jax.runs.versions import library_versions


def exchange() -> dict[str, object]:
    initialize()
    initialize()  # again: nothing
    here, many = processes.index(), processes.count()
    found: dict[str, object] = {"count": many, "first": processes.is_first()}
    rows = np.arange(4 * (here + 1), dtype=np.int32).reshape(-1, 4)
    parts = processes.gather({"rows": rows, "text": f"é{here}", "pair": (here, None)}, name="parts")
    found["rows"] = [part["rows"].tolist() for part in parts]
    found["texts"] = [part["text"] for part in parts]
    found["pair"] = list(parts[1]["pair"])
    big = processes.gather(np.full(3_000_000, here, np.int32), name="big")
    found["big"] = [int(part.sum()) for part in big]
    found["sent"] = processes.broadcast_from_first({"from": here}, name="sent")
    found["any"] = [processes.any_true(here == 1), processes.any_true(False)]
    processes.barrier("everybody", 60)
    processes.agree("options", {"steps": 3})
    try:
        processes.agree("options", {"steps": 3, "seed": min(here, 1), "beta": 0.1})
    except UserError as error:
        found["disagree"] = str(error)
    try:
        processes.gather(1, name="one place" if here else "another place")
    except UserError as error:
        found["places"] = str(error)
    return found


def arrays() -> dict[str, object]:
    initialize()
    import jax
    from jax.sharding import PartitionSpec

    from prm_jax.models.sharding import make_mesh

    mesh = make_mesh(1, -1)
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp"))
    whole = np.arange(32, dtype=np.float32).reshape(8, 4)
    tree = processes.to_global({"x": whole, "key": jax.random.key(3)}, {"x": sharding, "key": sharding.update(spec=())})
    own = sorted(shard.index[0].start or 0 for shard in tree["x"].addressable_shards)
    doubled = jax.jit(lambda x: 2 * x)(tree["x"])
    back = processes.to_host({"x": doubled, "n": np.int32(1)})
    return {
        "own": own,
        "back": back["x"].tolist(),
        "key": processes.to_host(jax.random.key_data(tree["key"])).tolist(),
        "spans": not tree["x"].is_fully_addressable,
    }


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0


def run_directory() -> dict[str, object]:
    """In a directory of its own, and then in one that all processes see."""
    initialize()
    shared_files.SEEN_WITHIN = 1.0
    here, found = pathlib.Path(sys.argv[2]), {}
    own = here / str(processes.index())
    own.mkdir()
    os.chdir(own)  # relative: the same name, but another directory in each process
    found["unseen"] = _error(lambda: open_run("run", Config()))
    found["left"] = [path.name for path in own.iterdir()]
    os.chdir(here)
    found["options"] = _error(lambda: open_run("run", Config(seed=processes.index())))
    with open_run("run", Config()) as run:
        run.claim()
        found["writer"] = run.writer
        run.log(1, {"loss": 0.5})
        with run.phase("first") as phase:
            phase.log(1, {"loss": 1.0 + processes.index()})
        found["again"] = _error(lambda: open_run("run", Config()))
    found["failed"] = _error(lambda: shared_files.by_first(lambda: (here / "no" / "file").touch(), what="touch it"))
    processes.barrier("everything is written")
    found["metrics"] = [len(path.read_text().splitlines()) for path in sorted(here.rglob("metrics.jsonl"))]
    with open_run("run", Config(), resume=True) as run:
        found["resumed"] = run.resumed and run.phase("first").resumed
    return found


def versions() -> dict[str, object]:
    """Process 1 has another version of JAX."""
    if os.environ["PRM_JAX_PROCESS_ID"] == "1":
        distributed.library_versions = lambda: library_versions() | {"jax": "0.0.1"}
    return {"error": _error(initialize)}


def _error(call) -> str:
    try:
        call()
    except (UserError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fail() -> dict[str, object]:
    """Process 1 fails while process 0 waits in an exchange, process 2 in a collective, and process 3 sleeps."""
    initialize()
    import jax
    from jax.experimental import multihost_utils

    jax.device_count()
    processes.barrier("ready")
    with failing_together():
        if processes.index() == 1:
            raise UserError("the problem of process 1")
        if processes.index() == 0:
            processes.gather(0, name="something")
        elif processes.index() == 2:
            multihost_utils.process_allgather(np.zeros(2))
        time.sleep(60)
    return {}


if __name__ == "__main__":
    mode = sys.argv[1]
    if mode == "slow":
        initialize(DistributedOptions(patience=1.0))
        if processes.index() == 1:
            time.sleep(3)
        try:
            processes.gather(0, name="the rollouts")
        except UserError as error:
            print(json.dumps({"late": str(error)}), flush=True)
        time.sleep(3 if processes.index() == 0 else 0)
    else:
        modes = {
            "exchange": exchange, "arrays": arrays, "fail": fail, "run_directory": run_directory, "versions": versions
        }  # fmt: skip
        print(json.dumps(modes[mode]()), flush=True)
