"""Shared by all long jobs: the training loop, run directories, checkpoints, metrics, progress, plots and signals.

Names are resolved on first use (PEP 562), so that importing this package imports neither jax nor matplotlib.
"""

from typing import TYPE_CHECKING, Any

from prm_jax.lazy_names import lazy_attribute

if TYPE_CHECKING:
    from prm_jax.runs.batches import Batches
    from prm_jax.runs.callbacks import Callback, Event
    from prm_jax.runs.checkpoint import Checkpointer, CheckpointError, Restored
    from prm_jax.runs.console import Console
    from prm_jax.runs.distributed import failing_together, initialize
    from prm_jax.runs.distributed_options import DistributedOptions
    from prm_jax.runs.eight_bit_adam import scale_by_adam_8bit
    from prm_jax.runs.fitting import FitOptions, Fitted, Frontend, fit, load_best
    from prm_jax.runs.integrity import fingerprint
    from prm_jax.runs.interrupts import Interrupts
    from prm_jax.runs.jobs import Job
    from prm_jax.runs.learner import Learner, accumulate_gradients, guarded_update, make_optimizer, make_schedule
    from prm_jax.runs.metrics_log import MetricsLog, read_metrics
    from prm_jax.runs.restarts import RestartLimits
    from prm_jax.runs.run_dir import RunDir, Sample, open_run, unique_run_path
    from prm_jax.runs.stopping import DivergedRun, InterruptedRun
    from prm_jax.runs.supervisor import Layout, supervise

_HOMES = {
    "Batches": "batches",
    "Callback": "callbacks",
    "CheckpointError": "checkpoint",
    "Checkpointer": "checkpoint",
    "Console": "console",
    "DistributedOptions": "distributed_options",
    "DivergedRun": "stopping",
    "Event": "callbacks",
    "FitOptions": "fitting",
    "Fitted": "fitting",
    "Frontend": "fitting",
    "InterruptedRun": "stopping",
    "Interrupts": "interrupts",
    "Job": "jobs",
    "Layout": "supervisor",
    "Learner": "learner",
    "MetricsLog": "metrics_log",
    "RestartLimits": "restarts",
    "Restored": "checkpoint",
    "RunDir": "run_dir",
    "Sample": "run_dir",
    "accumulate_gradients": "learner",
    "failing_together": "distributed",
    "fingerprint": "integrity",
    "fit": "fitting",
    "guarded_update": "learner",
    "initialize": "distributed",
    "load_best": "fitting",
    "make_optimizer": "learner",
    "make_schedule": "learner",
    "open_run": "run_dir",
    "read_metrics": "metrics_log",
    "scale_by_adam_8bit": "eight_bit_adam",
    "supervise": "supervisor",
    "unique_run_path": "run_dir",
}

__all__ = [
    "Batches",
    "Callback",
    "CheckpointError",
    "Checkpointer",
    "Console",
    "DistributedOptions",
    "DivergedRun",
    "Event",
    "FitOptions",
    "Fitted",
    "Frontend",
    "InterruptedRun",
    "Interrupts",
    "Job",
    "Layout",
    "Learner",
    "MetricsLog",
    "RestartLimits",
    "Restored",
    "RunDir",
    "Sample",
    "accumulate_gradients",
    "failing_together",
    "fingerprint",
    "fit",
    "guarded_update",
    "initialize",
    "load_best",
    "make_optimizer",
    "make_schedule",
    "open_run",
    "read_metrics",
    "scale_by_adam_8bit",
    "supervise",
    "unique_run_path",
]


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
