"""A small training job of several processes, written against `prm_jax.runs` alone: what the drills kill.

A two-layer network is fitted to fixed random data. Its weights are split over the devices of all processes, so that
every step communicates; checkpoints are written every few steps.

    prm-jax launch --nproc 2 --devices-per-process 2 -- experiments/reliability/job.py --run-dir /tmp/job --steps 200
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax import runs
from prm_jax.models.sharding import make_mesh
from prm_jax.runs import processes


@dataclasses.dataclass(frozen=True)
class Options:
    """The whole configuration of the job."""

    steps: int = 200
    save_every: int = 5
    width: int = 64
    pause: float = 0.05


def main() -> None:
    """Trains, and writes the SHA-256 of the final parameters to result.json in the run directory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=pathlib.Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--watchdog-exit", type=float, default=0.0)
    parser.add_argument("--heartbeat", type=int, default=10)
    parser.add_argument("--fault", choices=("", "kill", "hang"), default="", help="of process 1, once, half way")
    parser.add_argument("--compare", action="store_true", help="train once more without faults, and compare")
    for field in dataclasses.fields(Options):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    words = vars(parser.parse_args())
    options = Options(**{field.name: words[field.name] for field in dataclasses.fields(Options)})
    runs.initialize(runs.DistributedOptions(heartbeat=words["heartbeat"]))
    path = words["run_dir"]
    with runs.failing_together():
        faults = Faults(words["fault"], path.with_name(f"{path.name}.fault"), options.steps // 2)
        found = train(options, path, words["resume"], words["watchdog_exit"], faults)
        result = {"sha256": found}
        if words["compare"]:
            other = path.with_name(f"{path.name}.undisturbed")
            if processes.is_first():
                shutil.rmtree(other, ignore_errors=True)  # of an attempt that was killed in it
            processes.barrier("room for the undisturbed run")
            result["undisturbed"] = train(options, other, False, 0.0, Faults())
        if processes.is_first():
            (path / "result.json").write_text(json.dumps(result) + "\n")


@dataclasses.dataclass(frozen=True)
class Faults:
    """What happens to process 1 at a step: it is killed, or hangs while it stays alive; once, which a file records."""

    kind: str = ""
    done: pathlib.Path | None = None
    step: int = 0

    def __call__(self, number: int) -> None:
        """Called before the batch of each step."""
        if not self.kind or self.done is None or number != self.step or processes.index() != 1 or self.done.exists():
            return
        self.done.touch()
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)


def train(options: Options, path: pathlib.Path, resume: bool, watchdog_exit: float, faults: Faults) -> str:
    """One run, from its newest checkpoint with `resume`; the SHA-256 of the final parameters."""
    mesh = make_mesh()
    rows, columns = NamedSharding(mesh, P("data")), NamedSharding(mesh, P(None, "data"))
    optimizer = runs.make_optimizer(3e-3, total_steps=options.steps)

    def initial():
        keys = jax.random.split(jax.random.key(0))
        params = {
            "in": jax.random.normal(keys[0], (16, options.width)) / 4,
            "out": jax.random.normal(keys[1], (options.width, 4)) / 8,
        }
        return {"params": params, "moments": optimizer.init(params), "key": jax.random.key(1)}

    shape = jax.eval_shape(initial)
    place = jax.tree.map(
        lambda leaf: columns if leaf.ndim == 2 and leaf.shape[1] == options.width else NamedSharding(mesh, P()), shape
    )
    target = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shape, place
    )

    def step(state, batch):
        key, noise = jax.random.split(state["key"])

        def loss(params):
            hidden = jnp.tanh(batch["x"] @ params["in"]) + 0.01 * jax.random.normal(noise, (options.width,))
            return jnp.square(hidden @ params["out"] - batch["y"]).mean()

        value, gradient = jax.value_and_grad(loss)(state["params"])
        params, moments, health = runs.guarded_update(optimizer, gradient, state["moments"], state["params"])
        return {"params": params, "moments": moments, "key": key}, {"loss": value, "train/skipped": health["skipped"]}

    compiled = jax.jit(step, donate_argnums=0, out_shardings=(place, None))

    def batch_of(number):
        faults(number)
        time.sleep(options.pause)  # in place of rollouts
        generator = np.random.default_rng(number)
        x = generator.normal(size=(32, 16)).astype(np.float32)
        return processes.to_global({"x": x, "y": np.sin(x[:, :4])}, rows)

    with (
        runs.open_run(path, options, resume=resume) as run,
        runs.Interrupts() as interrupts,
    ):
        fitted = runs.fit(
            jax.jit(initial, out_shardings=place), compiled, batch_of, run=run, target=target,
            options=runs.FitOptions(steps=options.steps, save_every=options.save_every),
            frontend=runs.Frontend(interrupts=interrupts, title="job", watchdog_exit=watchdog_exit),
        )  # fmt: skip
    params = processes.to_host(fitted.state["params"])
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))).hexdigest()


if __name__ == "__main__":
    main()
