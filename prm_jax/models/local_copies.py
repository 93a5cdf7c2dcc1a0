"""Parameters of a mesh that spans processes, copied to the devices of each process, which then samples on its own."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from prm_jax.models.sharding import RULES, AnyMesh, partition_spec
from prm_jax.pytree_paths import named_leaves

PyTree = Any


def local_mesh(mesh: Mesh) -> Mesh:
    """A mesh of this process's devices in `mesh`, laid out alike.

    Axes that split parameters ("tensor", then "expert", then "fsdp") keep as many of their devices as the process has,
    and the rest are copies along "data", so that whatever the large mesh divides the small one divides, too.
    Collective: all processes of the mesh must have equally many devices in it.
    """
    return _layouts(mesh)[0]


def own_sizes(mesh: AnyMesh, each: int) -> dict[str, int]:
    """The axes of `local_mesh` with their sizes, for `each` devices per process."""
    sizes, left = {}, each
    for axis in ("tensor", "expert", "fsdp"):
        sizes[axis] = math.gcd(mesh.shape.get(axis, 1), left)
        left //= sizes[axis]
    return {axis: sizes.get(axis, left) for axis in mesh.axis_names}


def local_copy(params: PyTree, mesh: Mesh) -> PyTree:
    """The same arrays on `local_mesh`.

    Collective. Each device receives only its own part, so that a process with eight devices never holds more than an
    eighth of a split array per device, and the arrays are not copied through the host.

    Args:
      params: pytree of arrays on `mesh`; those on devices of this process alone are returned as they are.
      mesh: of the run, which may span processes.
    """
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(params)):
        return params
    own, wide = _layouts(mesh)
    leaves = [_local(name, leaf, own, wide) for name, leaf in named_leaves(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _local(name: str, leaf: jax.Array, own: Mesh, wide: Mesh) -> jax.Array:
    spec = partition_spec(name, leaf.shape, own, [dataclasses.replace(rule, strict=False) for rule in RULES])
    spread = jax.device_put(leaf, NamedSharding(wide, spec))  # one copy per process
    parts = {shard.device: shard.data for shard in spread.addressable_shards}
    return jax.make_array_from_single_device_arrays(
        leaf.shape, NamedSharding(own, spec), [parts[device] for device in own.devices.flat]
    )


def _layouts(mesh: Mesh) -> tuple[Mesh, Mesh]:
    """(the mesh of this process's devices, that of all devices with an axis of processes before the same three)."""
    by_process: dict[int, list[Any]] = {}
    for device in mesh.devices.flat:
        by_process.setdefault(device.process_index, []).append(device)
    each = len(by_process[jax.process_index()])
    axes, shape = mesh.axis_names, tuple(own_sizes(mesh, each).values())
    grid = np.array([by_process[process] for process in sorted(by_process)], dtype=object).reshape(-1, *shape)
    place = sorted(by_process).index(jax.process_index())
    wide = Mesh(grid, ("process", *axes), axis_types=(AxisType.Auto,) * (len(axes) + 1))
    return Mesh(grid[place], axes, axis_types=(AxisType.Auto,) * len(axes)), wide
