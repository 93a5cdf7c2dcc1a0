"""Builds a parameter tree shard by shard, straight from a checkpoint to the devices of a mesh."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prm_jax.models.checkpoint_layout import Params, ReadPart, Slot, copy_into, slots
from prm_jax.models.config import ModelConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh, Sharding

    from prm_jax.models.sharding import Rule

HOST_BYTES = 1 << 30
"""Shards of a leaf that are on the host at once, in bytes; always at least one shard."""



def assemble_sharded(
    config: ModelConfig,
    read: ReadPart,
    *,
    dtype: np.dtype,
    mesh: "Mesh",
    rules: "Sequence[Rule] | None" = None,
    host_bytes: int = HOST_BYTES,
) -> Params:
    """Builds the parameters on a mesh, each device receiving its own shards.

    Args:
      config: the model.
      read: reads parts of tensors.
      dtype: of the leaves; every shard is converted on the host.
      mesh: the devices, those of other processes included; each process reads for its own devices alone.
      rules: which dimension of a leaf is split; None: ``sharding.RULES``.
      host_bytes: how many bytes of a leaf's shards are on the host at once; at least one shard. Below the size of a
        process's part of a leaf, files are read several times.

    Returns:
      The parameters, as ``checkpoint_layout.assemble`` gives them.

    Raises:
      UserError: a mesh axis does not divide a dimension that it must split.
    """
    from jax.sharding import NamedSharding

    from prm_jax.models.sharding import RULES, partition_spec

    params: Params = {}
    for slot in slots(config):
        spec = partition_spec("/".join(slot.path), slot.leaf_shape, mesh, RULES if rules is None else rules)
        node = params
        for key in slot.path[:-1]:
            node = node.setdefault(key, {})
        node[slot.path[-1]] = _leaf(slot, read, dtype, NamedSharding(mesh, spec), host_bytes)
    return params


def _leaf(slot: Slot, read: ReadPart, dtype: np.dtype, sharding: "Sharding", host_bytes: int) -> Any:
    """One leaf, its shards read and transferred in groups."""
    import jax

    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(slot.leaf_shape).items():
        assert index is not None
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, slot.leaf_shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    arrays: list[Any] = []
    shard_bytes = math.prod(sharding.shard_shape(slot.leaf_shape)) * dtype.itemsize
    for group in _groups(sorted(devices), max(1, host_bytes // max(shard_bytes, 1))):
        for bounds, shard in zip(group, _shards(slot, read, dtype, group), strict=True):
            arrays += [jax.device_put(shard, device) for device in devices[bounds]]
        jax.block_until_ready(arrays)  # the host's memory is free for the next shards
    return jax.make_array_from_single_device_arrays(slot.leaf_shape, sharding, arrays)


def _shards(slot: Slot, read: ReadPart, dtype: np.dtype, group: list[tuple[tuple[int, int], ...]]) -> list[np.ndarray]:
    """The shards with the given bounds; every tensor is read once, in the smallest rectangle that holds all."""
    shards = [np.empty([high - low for low, high in bounds], dtype) for bounds in group]
    axes = len(slot.stack)
    inner = [bounds[axes:] for bounds in group]
    box = [(min(low for low, _ in sides), max(high for _, high in sides)) for sides in zip(*inner, strict=True)]
    sides = box[::-1] if slot.transposed else box
    for place, name in zip(slot.places, slot.names, strict=True):
        rows = [_row(shard, bounds, place) for shard, bounds in zip(shards, group, strict=True)]
        if all(row is None for row in rows):
            continue
        part = read(name, slot.index(*(slice(low, high) for low, high in sides)))
        part = part.T if slot.transposed else part
        for row, bounds in zip(rows, inner, strict=True):
            if row is not None:
                offsets = [start for start, _ in box]
                own = [slice(low - start, high - start) for (low, high), start in zip(bounds, offsets, strict=True)]
                copy_into(row, part[tuple(own)])
    return shards


def _row(shard: np.ndarray, bounds: tuple[tuple[int, int], ...], place: tuple[int, ...]) -> np.ndarray | None:
    """A layer's, or expert's, part of a shard, or None where the shard does not hold it."""
    within = list(zip(bounds, place, strict=False))
    if any(not first <= index < last for (first, last), index in within):
        return None
    return shard[tuple(index - first for (first, _), index in within)]


def _groups(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
