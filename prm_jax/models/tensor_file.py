"""Parts of tensors, read from a safetensors file by their offsets: nothing is mapped, and little else is read."""

import math
import os
import pathlib
import weakref
from collections.abc import Mapping

import numpy as np

from prm_jax.errors import UserError

Index = tuple[slice, ...]
"""One slice per dimension, with step 1."""

_BLOCK = 1 << 25
"""Bytes of whole rows that are read at once when only some of their columns are wanted."""
_RUN = 4096
"""Bytes of a row from which on its wanted columns alone are read, where they are a small part of it."""


class TensorFile:
    """The tensors of one file, whose header has been checked.

    Args:
      path: the file.
      specs: (shape, dtype, offset of the first byte in the file) of every tensor.

    Attributes:
      bytes_read: how much has been read so far.
    """

    def __init__(self, path: pathlib.Path, specs: Mapping[str, tuple[tuple[int, ...], np.dtype, int]]):
        self.bytes_read = 0
        self._path, self._specs = path, specs
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """A tensor, or the part of it that `index` selects, as a contiguous array.

        Raises:
          UserError: the file has become shorter since its header was read, or cannot be read.
        """
        shape, dtype, offset = self._specs[name]
        bounds = [part.indices(size)[:2] for part, size in zip(index or (), shape, strict=False)]
        bounds += [(0, size) for size in shape[len(bounds) :]]
        # NumPy copies dtypes that it does not know (bfloat16) one element at a time.
        out = np.empty([high - low for low, high in bounds], f"u{dtype.itemsize}")
        if out.size:
            self._fill(out, shape, bounds, offset)
        return out.view(dtype)

    def _fill(self, out: np.ndarray, shape: tuple[int, ...], bounds: list[tuple[int, int]], offset: int) -> None:
        width = out.itemsize * math.prod(shape[1:])
        first, last = bounds[0] if bounds else (0, 1)
        if out.shape[1:] == shape[1:]:
            return self._read_into(out, offset + first * width)
        (left, right), rest = bounds[1], bounds[2:]
        step = width // shape[1]
        run = (right - left) * step
        if not rest and run >= _RUN and 4 * run <= width:
            for row in range(first, last):
                self._read_into(out[row - first], offset + row * width + left * step)
            return None
        rows = max(1, _BLOCK // width)
        columns = tuple(slice(low, high) for low, high in bounds[1:])
        for start in range(first, last, rows):
            block = np.empty((min(rows, last - start), *shape[1:]), out.dtype)
            self._read_into(block, offset + start * width)
            out[start - first : start - first + len(block)] = block[:, *columns]
        return None

    def _read_into(self, array: np.ndarray, offset: int) -> None:
        wanted = array.reshape(-1).view(np.uint8).data
        while wanted:
            try:
                count = os.preadv(self._handle, [wanted[: 1 << 30]], offset)
            except OSError as error:
                raise UserError(f"cannot read {self._path}: {error}") from error
            if not count:
                raise UserError(f"{self._path} is truncated: it ends at byte {offset}, within a tensor")
            wanted, offset = wanted[count:], offset + count
            self.bytes_read += count
