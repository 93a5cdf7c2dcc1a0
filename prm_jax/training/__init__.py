"""Training: the PRIME step and loop, meshes and shardings, checkpoints, run directories, metrics and plots.

Names are resolved on first use (PEP 562), so that the plain dataclasses of ``prm_jax.training.options`` and
the command line import neither jax nor matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prm_jax.training.checkpoint import Checkpointer, CheckpointError, Restored
    from prm_jax.training.console import Console
    from prm_jax.training.integrity import fingerprint
    from prm_jax.training.interrupts import Interrupts
    from prm_jax.training.mesh import batch_sharding, make_mesh, shard_params, shardings_for
    from prm_jax.training.metrics_log import MetricsLog, read_metrics
    from prm_jax.training.run_dir import RunDir, Sample, open_run, unique_run_path

_HOMES = {
    "CheckpointError": "checkpoint",
    "Checkpointer": "checkpoint",
    "Console": "console",
    "Interrupts": "interrupts",
    "MetricsLog": "metrics_log",
    "Restored": "checkpoint",
    "RunDir": "run_dir",
    "Sample": "run_dir",
    "batch_sharding": "mesh",
    "fingerprint": "integrity",
    "make_mesh": "mesh",
    "open_run": "run_dir",
    "read_metrics": "metrics_log",
    "shard_params": "mesh",
    "shardings_for": "mesh",
    "unique_run_path": "run_dir",
}

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Console",
    "Interrupts",
    "MetricsLog",
    "Restored",
    "RunDir",
    "Sample",
    "batch_sharding",
    "fingerprint",
    "make_mesh",
    "open_run",
    "read_metrics",
    "shard_params",
    "shardings_for",
    "unique_run_path",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
