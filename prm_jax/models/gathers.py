"""Gathers of weights that "fsdp" splits, in one step or in two.

On a TPU a gather over one long mesh axis that is laid over several dimensions of the torus becomes an all-reduce of
twice the bytes (seen in compiled programs for v5p 4x4x4, v5e 4x4 and v6e 8x8); in two steps it does not.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

OUTER = "fsdp_outer"
_FLAT = ("v5 lite", "v5e", "v6 lite", "v6e")
"""Kinds of TPUs whose slices are two-dimensional."""


class Gathers:
    """The mesh as blocks under ``shard_map`` see it: "fsdp" is split in two where a gather takes two steps.

    Attributes:
      mesh: for ``shard_map``.
      size: devices that share a weight.
    """

    def __init__(self, mesh: AbstractMesh, outer: int | None = None) -> None:
        """Args: mesh: of the arrays.  outer: devices in the second step; None chooses by the kind of device."""
        self.size = mesh.shape.get("fsdp", 1)
        self._outer = outer_size(mesh) if outer is None else outer
        self.mesh = mesh if self._outer == 1 else _divided(mesh, self._outer)
        self._idle = tuple(axis for axis, size in self.mesh.shape.items() if size == 1)

    @property
    def axes(self) -> tuple[str, ...]:
        """What "fsdp" is called in ``mesh``, outermost first."""
        return ("fsdp",) if self._outer == 1 else (OUTER, "fsdp")

    def spec(self, spec: P) -> P:
        """A spec of the arrays' mesh as one of ``mesh``.

        Axes of size 1 are named as well: a cotangent is summed over those that a spec leaves out, and such sums would
        remain in the program as copies.
        """
        entries = [self._entry(entry) for entry in spec] or [()]
        named = {axis for entry in entries for axis in entry}
        entries[0] = (*entries[0], *(axis for axis in self._idle if axis not in named))
        return P(*entries)

    def names(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """Axes of the arrays' mesh as those of ``mesh``."""
        return tuple(new for axis in axes for new in (self.axes if axis == "fsdp" else (axis,)))

    def weights(self, w: jax.Array, spec: P, dtype: Any) -> jax.Array:
        """A weight with the dimension whole that "fsdp" splits, in ``dtype``; others are returned as they are.

        The gradient is reduced in ``dtype`` and scattered.
        """
        for dimension, entry in enumerate(spec):
            if "fsdp" in ((entry,) if isinstance(entry, str) else entry or ()):
                # The split dimension goes to the front: on TPUs, a reduce-scatter over the minor dimension becomes an
                # all-reduce of twice the bytes.
                w = jnp.moveaxis(w.astype(dtype), dimension, 0)
                for axis in reversed(self.axes):
                    w = jax.lax.all_gather(w, axis, axis=0, tiled=True)
                w = jnp.moveaxis(w, 0, dimension)
        return w

    def _entry(self, entry: Any) -> tuple[str, ...]:
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        return self.names(names)


def outer_size(mesh: AbstractMesh) -> int:
    """Devices in the second step of a gather over "fsdp"; 1 for one step.

    A guess at the torus dimension that comes first in the mesh: the sides of TPU slices are powers of two and as equal
    as possible, and the smallest one comes first.
    """
    device = mesh.abstract_device
    size = mesh.shape.get("fsdp", 1)
    if device is None or device.platform != "tpu" or size < 16 or size & (size - 1):
        return 1
    flat = any(kind in device.device_kind.lower() for kind in _FLAT) or size != math.prod(mesh.shape.values())
    return 1 << (size.bit_length() - 1) // (2 if flat else 3)


@functools.cache
def _divided(mesh: AbstractMesh, outer: int) -> AbstractMesh:
    sizes, names = [], []
    for axis, size in mesh.shape.items():
        sizes += [outer, size // outer] if axis == "fsdp" else [size]
        names += [OUTER, axis] if axis == "fsdp" else [axis]
    types = (mesh.axis_types[0],) * len(names)
    return AbstractMesh(tuple(sizes), tuple(names), axis_types=types, abstract_device=mesh.abstract_device)
