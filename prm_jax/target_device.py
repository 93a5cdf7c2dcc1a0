"""The device that a traced program is compiled for: that of its arrays' mesh, which need not be one of this machine.

A program can be compiled ahead of time for devices that are not there (``jax.experimental.topologies``), so the default
device does not say which kernels it may use.
"""

from typing import Any

import jax
from jax.sharding import AbstractMesh


def platform_and_kind(*arrays: Any) -> tuple[str, str]:
    """(platform, kind) of the device, such as ("tpu", "TPU v5e").

    Args:
      *arrays: pytrees of arrays, traced or not; the mesh of the first one on a mesh counts. Without any, and under
        ``shard_map``, the mesh of the context. Where there is none either, the default device.
    """
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arrays)]
    for mesh in (*meshes, jax.sharding.get_abstract_mesh()):
        device = None if mesh.empty else mesh.abstract_device
        if device is not None:
            return device.platform, device.device_kind
    return jax.default_backend(), jax.devices()[0].device_kind


def platform_of(shardings: Any) -> str | None:
    """The platform of the devices of a pytree of shardings, such as "tpu"; None where there is none, or no device."""
    for sharding in jax.tree.leaves(shardings):
        mesh = getattr(sharding, "mesh", None)
        if isinstance(mesh, AbstractMesh):
            return None if mesh.abstract_device is None else mesh.abstract_device.platform
        return next(iter(sharding.device_set)).platform
    return None


def nothing_to_partition(*arrays: Any) -> bool:
    """Whether a kernel can be called here, which the compiler cannot divide over devices.

    There is one device, the arrays are on a mesh of one, or they are one device's part, under ``shard_map``.

    Args:
      *arrays: pytrees of arrays, traced or not.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and all(kind == jax.sharding.AxisType.Manual for kind in mesh.axis_types):
        return True
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arrays)]
    sizes = [mesh.size for mesh in meshes if not mesh.empty] or [jax.device_count()]
    return max(sizes) == 1
