"""What every long job shares: run directories, checkpoints, metrics, progress, plots, signals.

Names are resolved on first use (PEP 562), so that importing this package imports neither jax nor matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prm_jax.runs.checkpoint import Checkpointer, CheckpointError, Restored
    from prm_jax.runs.console import Console
    from prm_jax.runs.integrity import fingerprint
    from prm_jax.runs.interrupts import Interrupts
    from prm_jax.runs.metrics_log import MetricsLog, read_metrics
    from prm_jax.runs.run_dir import RunDir, Sample, open_run, unique_run_path
    from prm_jax.runs.stopping import DivergedRun, InterruptedRun

_HOMES = {
    "CheckpointError": "checkpoint",
    "Checkpointer": "checkpoint",
    "Console": "console",
    "DivergedRun": "stopping",
    "InterruptedRun": "stopping",
    "Interrupts": "interrupts",
    "MetricsLog": "metrics_log",
    "Restored": "checkpoint",
    "RunDir": "run_dir",
    "Sample": "run_dir",
    "fingerprint": "integrity",
    "open_run": "run_dir",
    "read_metrics": "metrics_log",
    "unique_run_path": "run_dir",
}

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Console",
    "DivergedRun",
    "InterruptedRun",
    "Interrupts",
    "MetricsLog",
    "Restored",
    "RunDir",
    "Sample",
    "fingerprint",
    "open_run",
    "read_metrics",
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
