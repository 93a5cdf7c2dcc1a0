"""State in pinned host memory between its uses, and state that is made where it stays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding

from prm_jax.errors import UserError
from prm_jax.models.sharding import shardings_for

PyTree = Any
PINNED = "pinned_host"


def check_host_memory(options: Mapping[str, str], device: jax.Device) -> None:
    """Refuses options that keep arrays in pinned host memory where the backend has none, or cannot copy them.

    Args:
      options: command-line name of each option that is set -> the moments that it keeps there ("int8"), or "".
      device: one of the run's devices.

    Raises:
      UserError: naming the options, the backend and the memories that it has.
    """
    kinds = [memory.kind for memory in device.addressable_memories()]
    small = [name for name, moments in options.items() if moments == "int8"]
    if small and device.platform == "tpu":
        raise UserError(
            f"{', '.join(small)}: the TPU compiler cannot copy 8-bit arrays to host memory; leave it out, since 8-bit "
            "moments take 2 bytes per parameter, or choose --*.moments bfloat16"
        )
    if options and PINNED not in kinds:
        raise UserError(
            f"{', '.join(options)}: keeps arrays in pinned host memory, which the backend {device.platform!r} does not "
            f"have (it has {', '.join(kinds)}): leave it out; --*.moments int8 makes optimiser states smaller"
        )


def on_device(tree: PyTree) -> PyTree:
    """The arrays, those in host memory transferred to the device; inside and outside of compiled functions."""

    def fetch(leaf: Any) -> Any:
        return jax.device_put(leaf, jax.memory.Space.Device) if in_host_memory(leaf) else leaf

    return jax.tree.map(fetch, tree)


def back_to(tree: PyTree, original: PyTree) -> PyTree:
    """Inside a compiled function: the arrays, those in host memory whose counterparts in `original` are."""

    def put(leaf: Any, before: Any) -> Any:
        return jax.device_put(leaf, jax.memory.Space.Host) if in_host_memory(before) else leaf

    return jax.tree.map(put, tree, original)


def in_host_memory(leaf: Any) -> bool:
    """Whether an array, traced or not, is in host memory."""
    return isinstance(leaf, jax.Array) and jax.typeof(leaf).memory_space == jax.memory.Space.Host


def typed(tree: PyTree) -> PyTree:
    """Arrays whose types say so if they are in host memory, as compiled functions need it.

    A sharding that a compiled function or a restored checkpoint was given moves an array, but not its type.
    """

    def put(leaf: Any) -> Any:
        host = isinstance(leaf, jax.Array) and leaf.sharding.memory_kind == PINNED and not in_host_memory(leaf)
        return jax.device_put(leaf, jax.memory.Space.Host) if host else leaf

    return jax.tree.map(put, tree)


def on_host(tree: PyTree) -> PyTree:
    """Arrays moved to pinned host memory, sharded as they are; scalars stay."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind(PINNED)) if x.ndim else x, tree)


@dataclasses.dataclass(frozen=True)
class Places:
    """Where arrays live: sharded over a mesh or on one device, in its own memory or the host's.

    Attributes:
      mesh: the devices; None for the default one.
      offload: arrays other than scalars are in pinned host memory.
    """

    mesh: Mesh | None
    offload: bool = False

    def shardings(self, shapes: PyTree) -> PyTree:
        """The sharding of every leaf."""
        if self.mesh is not None:
            found = shardings_for(shapes, self.mesh)
        else:
            found = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), shapes)
        return offloaded(found, shapes) if self.offload else found

    def make(self, function: Callable[..., PyTree], *args: Any) -> PyTree:
        """Calls a function so that its results are made where they stay, without a copy elsewhere.

        It is compiled for a mesh, for offloading, and where arguments are in host memory; otherwise, and inside
        another compiled function, it is called as it is.
        """
        leaves = jax.tree.leaves(args)
        abstract = any(isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct) for leaf in leaves)
        if abstract or (self.mesh is None and not self.offload and not any(map(in_host_memory, leaves))):
            return function(*args)
        shardings = self.shardings(jax.eval_shape(function, *args))
        return typed(jax.jit(function, out_shardings=shardings)(*args))


def places_of(tree: PyTree, *, offload: bool = False) -> Places:
    """The mesh that arrays are on, if they are on one."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
            continue
        sharding: Sharding = leaf.sharding
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return Places(sharding.mesh, offload)
    return Places(None, offload)


def offloaded(shardings: PyTree, shapes: PyTree) -> PyTree:
    """The same shardings in pinned host memory, except of scalars."""
    return jax.tree.map(lambda s, x: s.with_memory_kind(PINNED) if x.ndim else s, shardings, shapes)
