"""The devices that the options of a command name."""

from typing import TYPE_CHECKING

from prm_jax.errors import UserError
from prm_jax.models.mesh_options import MeshOptions

if TYPE_CHECKING:
    from jax.sharding import Mesh


def mesh_of(sizes: MeshOptions) -> "Mesh | None":
    """The devices that the options name; None for one.

    Raises:
      UserError: there are not so many, or several processes share them.
    """
    if (sizes.data, sizes.fsdp, sizes.tensor) == (1, 1, 1):
        return None
    import jax

    from prm_jax.models.sharding import make_mesh

    if jax.process_count() > 1:
        raise UserError(
            f"--mesh: {jax.process_count()} processes run; this command works in one, with all its devices: give each "
            "process a part of the data and devices of its own"
        )
    return make_mesh(sizes.data, sizes.fsdp, sizes.tensor)
