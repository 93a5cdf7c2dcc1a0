"""Options for the mesh of devices; imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated

from prm_jax.option_ranges import at_least


@dataclass(frozen=True)
class MeshOptions:
    """How arrays are laid out over devices."""

    data: Annotated[int, at_least(-1)] = 1
    """Devices that split the batch; -1: all that remain."""
    fsdp: Annotated[int, at_least(-1)] = 1
    """Devices that split parameters and the batch."""
    tensor: Annotated[int, at_least(-1)] = 1
    """Devices that split heads and MLP widths."""
