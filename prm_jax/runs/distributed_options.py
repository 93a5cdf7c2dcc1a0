"""Options of a run of several processes; imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated

from prm_jax.option_ranges import above, at_least

COORDINATOR, PROCESSES, PROCESS_ID = "PRM_JAX_COORDINATOR", "PRM_JAX_PROCESSES", "PRM_JAX_PROCESS_ID"
"""Environment variables used in place of the options of the same names; ``prm-jax launch`` sets them."""
LAUNCHED = "PRM_JAX_LAUNCHED"
"""Set by ``prm-jax launch``, which adds ``--resume`` where the run directory holds a run."""


@dataclass(frozen=True)
class DistributedOptions:
    """How the processes of one run find each other; not needed for one process, or where JAX finds them itself."""

    coordinator: str = ""
    """HOST:PORT of process 0, a free port that all processes can reach. Empty: $PRM_JAX_COORDINATOR, or what JAX finds
    under SLURM, Open MPI, GKE and on Cloud TPUs."""
    processes: Annotated[int | None, at_least(1)] = None
    """Number of processes; none: $PRM_JAX_PROCESSES, or found; 1: do not look for others."""
    process_id: Annotated[int | None, at_least(0)] = None
    """Number of this process, from 0; none: $PRM_JAX_PROCESS_ID, or found."""
    timeout: Annotated[float, above(0)] = 300.0
    """Seconds within which all processes must have started."""
    patience: Annotated[float, above(0)] = 3600.0
    """Seconds that a process waits for the others between two steps, for instance while they verify answers."""
    heartbeat: Annotated[int, at_least(2)] = 30
    """Seconds without a sign of life after which a process counts as dead, and all others end."""
