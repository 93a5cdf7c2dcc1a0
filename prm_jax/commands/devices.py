"""The devices that the options of a command name."""

from typing import TYPE_CHECKING

from prm_jax.models.mesh_options import MeshOptions

if TYPE_CHECKING:
    from jax.sharding import Mesh


def mesh_of(sizes: MeshOptions) -> "Mesh | None":
    """The devices of this process that the options name; None for one.

    Of several processes each works on its own share of the data, with its own devices.

    Raises:
      UserError: there are not so many.
    """
    if sizes.one_device:
        return None
    import jax

    from prm_jax.models.sharding import make_mesh

    return make_mesh(sizes.data, sizes.fsdp, sizes.tensor, expert=sizes.expert, devices=jax.local_devices())
