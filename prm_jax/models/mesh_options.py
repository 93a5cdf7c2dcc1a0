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
    expert: Annotated[int, at_least(-1)] = 1
    """Devices that divide the experts of sparse models, and the batch: tokens are sent to their experts instead of all
    experts being gathered."""

    @property
    def one_device(self) -> bool:
        """Whether no axis has several devices, or as many as remain."""
        return (self.data, self.fsdp, self.tensor, self.expert) == (1, 1, 1, 1)
