"""Experts divided among the devices of a mesh axis that also splits rows (arXiv:2006.16668).

Every device gathers the tokens of the axis, processes those that its own experts take, and sends each device the sum
for its tokens: nothing is dropped, no expert leaves its device, and what is sent does not depend on the routing.
"""

import dataclasses

import jax

from prm_jax.models.expert_load import Routing


@dataclasses.dataclass(frozen=True)
class ExpertSplit:
    """How a layer's experts are divided over one axis, under ``shard_map``.

    Attributes:
      axis: of the mesh; device i has the i-th block of experts.
    """

    axis: str

    def enter(self, x: jax.Array, routing: Routing) -> tuple[jax.Array, Routing]:
        """Tokens [N, D] of this device and their routing -> those of all devices along the axis, [n N, D]."""
        return jax.tree.map(lambda y: jax.lax.all_gather(y, self.axis, axis=0, tiled=True), (x, routing))

    def first(self, count: int) -> jax.Array:
        """The number of this device's first expert, of `count` on every device."""
        return jax.lax.axis_index(self.axis) * count

    def leave(self, y: jax.Array) -> jax.Array:
        """[n N, D] from this device's experts -> [N, D] from all experts."""
        return jax.lax.psum_scatter(y, self.axis, scatter_dimension=0, tiled=True)
