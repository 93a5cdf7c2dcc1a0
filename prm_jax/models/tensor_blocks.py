"""Tensors of a checkpoint, taken from parameters block by block, so that the host holds one block at a time."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from prm_jax.models.checkpoint_layout import Slot, copy_into

BLOCK_BYTES = 1 << 28
"""Bytes of a block on the host; at least one row of a tensor."""
SMALL_BYTES = 1 << 24
"""A leaf of up to this many bytes is copied to the host whole."""


def tensor_blocks(
    slot: Slot,
    leaf: Any,
    dtype: np.dtype,
    *,
    only: int | None = None,
    block_bytes: int = BLOCK_BYTES,
    small_bytes: int = SMALL_BYTES,
) -> Iterator[tuple[str, np.ndarray]]:
    """Cuts one leaf into its tensors, and these into blocks of consecutive rows.

    Args:
      slot: which tensors the leaf is stored as.
      leaf: array of NumPy or JAX, with any sharding. Where it spans several processes, all of them must iterate, in
        step; a block that the sharding splits by rows is then one whole tensor.
      dtype: of the tensors; converted on the device where the leaf is on one.
      only: number of the one tensor that is wanted; None for all.
      block_bytes: see `BLOCK_BYTES`.
      small_bytes: see `SMALL_BYTES`.

    Yields:
      (name, contiguous array [rows, ...]), in the order of the file.
    """
    spans = not getattr(leaf, "is_fully_addressable", True)
    if not spans and leaf.size * leaf.dtype.itemsize <= small_bytes:
        leaf = np.asarray(leaf)
    size = slot.shape[0]
    rows = max(1, block_bytes // max(1, math.prod(slot.shape[1:]) * dtype.itemsize))
    if spans and _rows_are_split(slot, leaf):
        rows = size
    for number, (place, name) in enumerate(zip(slot.places, slot.names, strict=True)):
        if only is not None and number != only:
            continue
        for start in range(0, size, rows):
            part = (slice(start, min(start + rows, size)), *(slice(0, n) for n in slot.shape[1:]))
            part = part[::-1] if slot.transposed else part
            bounds = (*(slice(index, index + 1) for index in place), *part)
            yield name, _block(leaf, bounds, slot, dtype, spans=spans)


def _rows_are_split(slot: Slot, leaf: Any) -> bool:
    """Whether a sharding splits the dimension that becomes a tensor's rows; to cut it there would gather the leaf."""
    axis = leaf.ndim - 1 if slot.transposed else len(slot.stack)
    shard = leaf.sharding.shard_shape(leaf.shape)
    return bool(shard[axis] < leaf.shape[axis])


def _block(leaf: Any, bounds: tuple[slice, ...], slot: Slot, dtype: np.dtype, *, spans: bool) -> np.ndarray:
    if isinstance(leaf, np.ndarray):
        return _oriented(leaf[bounds], slot, dtype)
    if spans:
        return _gathered(leaf, bounds, slot, dtype)
    shape = [part.stop - part.start for part in bounds][len(slot.stack) :]
    block = np.empty(shape[::-1] if slot.transposed else shape, dtype)
    for index, data in _distinct(leaf):
        common = [_common(part, own) for part, own in zip(bounds, index, strict=True)]
        if any(part.start >= part.stop for part in common):
            continue
        sizes = tuple(part.stop - part.start for part in common)
        starts = tuple(part.start - own.start for part, own in zip(common, index, strict=True))
        piece = np.asarray(_sliced(sizes, len(slot.stack), slot.transposed, dtype.name)(data, starts))
        places = [slice(part.start - b.start, part.stop - b.start) for part, b in zip(common, bounds, strict=True)]
        places = places[len(slot.stack) :]
        copy_into(block[tuple(places[::-1] if slot.transposed else places)], piece)
    return block


def _oriented(part: np.ndarray, slot: Slot, dtype: np.dtype) -> np.ndarray:
    """A part of a leaf [in, out], after leading axes of size 1, as rows of its tensor."""
    part = part.reshape(part.shape[len(slot.stack) :])
    part = part.T if slot.transposed else part
    block = np.empty(part.shape, dtype)
    copy_into(block, part)
    return block


def _distinct(leaf: Any) -> Iterator[tuple[list[slice], Any]]:
    """(bounds, array on one device) of every shard, once where several devices hold the same."""
    seen = set()
    for shard in leaf.addressable_shards:
        bounds = [slice(*part.indices(size)[:2]) for part, size in zip(shard.index, leaf.shape, strict=True)]
        key = tuple((part.start, part.stop) for part in bounds)
        if key not in seen:
            seen.add(key)
            yield bounds, shard.data


def _common(a: slice, b: slice) -> slice:
    return slice(max(a.start, b.start), min(a.stop, b.stop))


def _gathered(leaf: Any, bounds: tuple[slice, ...], slot: Slot, dtype: np.dtype) -> np.ndarray:
    """A block of a leaf that spans several processes, which all call this."""
    from jax.sharding import NamedSharding, PartitionSpec

    sizes = tuple(part.stop - part.start for part in bounds)
    everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    cut = _sliced(sizes, len(slot.stack), slot.transposed, dtype.name, everywhere)
    return np.asarray(cut(leaf, tuple(part.start for part in bounds)).addressable_data(0))


@functools.lru_cache(maxsize=1024)
def _sliced(sizes: tuple[int, ...], stacked: int, transposed: bool, dtype: str, sharding: Any = None) -> Any:
    """Compiles ``(array, starts) -> rows of a tensor``."""
    import jax
    import jax.numpy as jnp

    def cut(array: jax.Array, starts: tuple[jax.Array, ...]) -> jax.Array:
        array = jax.device_put(array, jax.memory.Space.Device)  # from host memory, where it is offloaded
        part = jax.lax.dynamic_slice(array, starts, sizes)
        part = part.reshape(part.shape[stacked:])
        return (part.T if transposed else part).astype(jnp.dtype(dtype))

    return jax.jit(cut, out_shardings=sharding)
