"""How arrays are laid out over devices, as options; imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MeshOptions:
    """How arrays lie over devices."""

    data: int = 1
    """Devices that split the batch; -1: all that the other axes leave."""
    fsdp: int = 1
    """Devices that split parameters and the batch."""
    tensor: int = 1
    """Devices that split heads and MLP widths."""
