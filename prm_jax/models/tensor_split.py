"""A layer's heads and MLP columns split over a mesh axis (arXiv:1909.08053), its rows' tokens too where they divide.

Splitting tokens outside of attention and MLP (arXiv:2205.05198) costs the same communication as sums over the axis,
half of it before and half of it after each of the two, and no device keeps whole residual streams.
"""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class TensorSplit:
    """How a layer's arrays are split over one axis, under ``shard_map``.

    Attributes:
      axis: of the mesh.
      tokens: the residual stream is split by tokens, [B, T / n, D]; otherwise it is the same on all devices.
    """

    axis: str
    tokens: bool

    def enter(self, x: jax.Array) -> jax.Array:
        """The input of attention, MLP or experts: [B, T / n or T, D] -> [B, T, D]."""
        return jax.lax.all_gather(x, self.axis, axis=1, tiled=True) if self.tokens else x

    def leave(self, y: jax.Array) -> jax.Array:
        """Their output, summed over the devices' heads or columns: [B, T, D] -> [B, T / n or T, D]."""
        if self.tokens:
            return jax.lax.psum_scatter(y, self.axis, scatter_dimension=1, tiled=True)
        return jax.lax.psum(y, self.axis)
