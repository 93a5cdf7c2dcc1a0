"""Runs of several processes on this machine: starts them, waits, and returns their exit codes and output."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

REPO = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Ended:
    """A process that has ended: exit code, standard output and error, and seconds since all were started."""

    code: int
    out: str
    err: str
    seconds: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """That of a process with this many CPU devices; without the variables of launchers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PRM_JAX_", "SLURM_", "OMPI_"))}
    flags = [word for word in kept.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in word]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    paths = os.pathsep.join(filter(None, [str(REPO), kept.get("PYTHONPATH", "")]))
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags), "PYTHONPATH": paths, "NPROC": "16"} | more


def start(words: Sequence[str], env: dict[str, str], cwd: pathlib.Path = REPO) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *words], env=env, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run_together(
    commands: Sequence[Sequence[str]], *, devices: int = 1, seconds: float = 300, cwd: pathlib.Path = REPO,
    coordinates: bool = True, ids: Sequence[int] | None = None, number: int | None = None, **more: str,
) -> list[Ended]:  # fmt: skip
    """Runs one Python command per process as processes 0, 1, ... of one run; kills them after `seconds`."""
    port, running = free_port(), []
    for place, words in enumerate(commands):
        env = environment(devices, **more)
        if coordinates:
            env |= {
                "PRM_JAX_COORDINATOR": f"127.0.0.1:{port}",
                "PRM_JAX_PROCESSES": str(number or len(commands)),
                "PRM_JAX_PROCESS_ID": str(place if ids is None else ids[place]),
            }
        running.append(start(words, env, cwd))
    begun, ended = time.monotonic(), []
    for process in running:
        try:
            out, err = process.communicate(timeout=max(1.0, seconds - (time.monotonic() - begun)))
        except subprocess.TimeoutExpired:
            for other in running:
                other.kill()
            out, err = process.communicate()
            err += f"\n(killed after {seconds:g} s)"
        ended.append(Ended(process.returncode, out, err, time.monotonic() - begun))
    return ended
