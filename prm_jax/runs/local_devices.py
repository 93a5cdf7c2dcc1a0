"""Which devices of this host each of its processes may use, as environment variables that JAX reads."""

import os
import pathlib
from collections.abc import Mapping

from prm_jax.errors import UserError

_THREADS = 16
"""XLA's pool for CPU devices: collectives of more devices than threads can wait for each other for ever."""


def device_environments(processes: int, devices_per_process: int) -> tuple[Mapping[str, str], ...]:
    """The variables of each process.

    Args:
      processes: on this host.
      devices_per_process: virtual CPU devices, or NVIDIA GPUs of its own; 0: JAX decides.

    Raises:
      UserError: there are fewer GPUs than that.
    """
    if not devices_per_process:
        return tuple({} for _ in range(processes))
    gpus = [] if os.environ.get("JAX_PLATFORMS", "") == "cpu" else _gpus()
    if not gpus:
        threads = os.environ.get("NPROC", str(max(_THREADS, 2 * devices_per_process)))
        virtual = {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices_per_process),
            "XLA_FLAGS": _without_device_count(os.environ.get("XLA_FLAGS", "")),
            "NPROC": threads,
        }
        return tuple(virtual for _ in range(processes))
    wanted = processes * devices_per_process
    if wanted > len(gpus):
        raise UserError(
            f"--nproc {processes} x --devices-per-process {devices_per_process} needs {wanted} GPUs, but this host has "
            f"{len(gpus)}: {', '.join(gpus)}. Use fewer, or JAX_PLATFORMS=cpu for virtual CPU devices"
        )
    shares = [gpus[i * devices_per_process : (i + 1) * devices_per_process] for i in range(processes)]
    return tuple({"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares)


def _gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    numbers = (path.name.removeprefix("nvidia") for path in pathlib.Path("/dev").glob("nvidia[0-9]*"))
    return sorted(numbers, key=int)


def _without_device_count(flags: str) -> str:
    """XLA's flags without the older way to ask for virtual devices, which contradicts the newer one."""
    kept = [flag for flag in flags.split() if not flag.startswith("--xla_force_host_platform_device_count")]
    return " ".join(kept)
