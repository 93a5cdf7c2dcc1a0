"""GGUF files: the header is parsed here, with every length checked; the ``gguf`` package dequantises blocks."""

import dataclasses
import math
import mmap
import pathlib
import struct
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from prm_jax.errors import UserError, require
from prm_jax.models.files import check_regular

_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, np.dtype] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("?"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
# Tensor types that are plain numbers; the others come in blocks.
_PLAIN: dict[int, np.dtype] = {
    0: np.dtype("<f4"), 1: np.dtype("<f2"), 28: np.dtype("<f8"), 30: np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor's ``shape`` in NumPy's order, ``kind`` by GGML's number, ``offset`` from the file's start."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A GGUF file, opened: ``metadata`` by key (scalars, text, or lists of them), ``tensors`` by name."""

    path: pathlib.Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    _buffer: mmap.mmap

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor: a read-only view where they are plain, else dequantised to float32.

        Raises:
          UserError: for a tensor that reaches beyond the file, or a type that cannot be dequantised.
        """
        info = self.tensors[name]
        count = math.prod(info.shape)
        if info.kind in _PLAIN:
            return self._view(name, info.offset, _PLAIN[info.kind], count).reshape(info.shape)
        gguf = require("gguf", "gguf")
        try:
            kind = gguf.GGMLQuantizationType(info.kind)
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise UserError(f"{self.path}: tensor {name} has the unknown type {info.kind}") from None
        raw = self.blocks(name, block, block_bytes)
        try:
            return gguf.quants.dequantize(raw.reshape(*info.shape[:-1], -1), kind)
        except NotImplementedError as error:
            raise UserError(f"{self.path}: tensor {name} has type {kind.name}: {error}") from error

    def blocks(self, name: str, block: int, block_bytes: int) -> np.ndarray:
        """A tensor of blocks as it is stored: [..., in / block, block_bytes] u8, a read-only view.

        Raises:
          UserError: for a tensor that reaches beyond the file, or whose rows are not whole blocks.
        """
        info = self.tensors[name]
        if not info.shape or info.shape[-1] % block:
            raise UserError(f"{self.path}: tensor {name} has shape {info.shape}, not in blocks of {block}")
        shape = (*info.shape[:-1], info.shape[-1] // block, block_bytes)
        return self._view(name, info.offset, np.dtype(np.uint8), math.prod(shape)).reshape(shape)

    def _view(self, name: str, offset: int, dtype: np.dtype, count: int) -> np.ndarray:
        end = offset + count * dtype.itemsize
        if end > len(self._buffer):
            raise UserError(
                f"{self.path} is truncated: tensor {name} ends at byte {end}, the file at {len(self._buffer)}"
            )
        return np.frombuffer(self._buffer, dtype, count, offset)


def read_gguf(path: str | pathlib.Path) -> GgufFile:
    """Opens a GGUF file (version 2 or 3, little-endian) and reads its header; tensors are mapped, not read.

    Raises:
      UserError: no such file, not GGUF, truncated, or a header that contradicts itself.
    """
    path = pathlib.Path(path)
    try:
        check_regular(path)
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # mmap refuses empty files with ValueError
        raise UserError(f"cannot read {path}: {error}") from error
    header = _Header(path, buffer)
    if header.take(4) != b"GGUF":
        raise UserError(f"{path} is not a GGUF file: it does not start with the letters GGUF")
    version = header.number("<I")
    if version not in (2, 3):
        raise UserError(f"{path}: GGUF version {version} is not supported, expected 2 or 3 (little-endian)")
    num_tensors, num_keys = header.number("<Q"), header.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = header.text()
        if key in metadata:
            header.fail(f"duplicate key {key!r}")
        metadata[key] = header.value(header.number("<I"))
    infos: dict[str, TensorInfo] = {}
    for _ in range(num_tensors):
        name = header.text()
        if name in infos:
            header.fail(f"duplicate tensor {name!r}")
        infos[name] = header.tensor_info()
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        header.fail(f"general.alignment is {alignment!r}")
    start = -(-header.position // alignment) * alignment
    tensors = {n: dataclasses.replace(info, offset=info.offset + start) for n, info in infos.items()}
    return GgufFile(path, metadata, tensors, buffer)


def read_raw_metadata(path: str | pathlib.Path) -> dict[str, bytes]:
    """The metadata entries of a GGUF file as they are stored (key, type and value), by key, in order.

    Raises:
      UserError: as `read_gguf`.
    """
    file = read_gguf(path)
    header = _Header(file.path, file._buffer)
    header.take(16)
    found: dict[str, bytes] = {}
    for _ in range(header.number("<Q")):
        begin = header.position
        key = header.text()
        header.value(header.number("<I"))
        found[key] = file._buffer[begin : header.position]
    return found


class _Header:
    """A position in a file's header, advanced by reading."""

    def __init__(self, path: pathlib.Path, buffer: mmap.mmap):
        self.position = 0
        self._path = path
        self._buffer = buffer

    def fail(self, why: str) -> NoReturn:
        raise UserError(f"{self._path} has a damaged header: {why}")

    def take(self, count: int) -> bytes:
        if count > len(self._buffer) - self.position:
            self.fail(f"it needs {count} bytes at {self.position}, but the file ends at {len(self._buffer)}")
        self.position += count
        return self._buffer[self.position - count : self.position]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        raw = self.take(self.number("<Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.fail(f"text at {self.position} is not UTF-8: {error}")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(self.number("<I"), self.number("<Q"))
        if kind not in _SCALARS:
            self.fail(f"unknown value type {kind} at {self.position}")
        dtype = _SCALARS[kind]
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def tensor_info(self) -> TensorInfo:
        rank = self.number("<I")
        if rank > 8:
            self.fail(f"a tensor of {rank} dimensions at {self.position}")
        shape = tuple(self.number("<Q") for _ in range(rank))
        return TensorInfo(shape[::-1], self.number("<I"), self.number("<Q"))

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return self._strings(count)
        if kind not in _SCALARS:
            self.fail(f"unknown element type {kind} at {self.position}")
        dtype = _SCALARS[kind]
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

    def _strings(self, count: int) -> list[str]:
        # The hot loop: a vocabulary and its merges are a hundred thousand strings or more.
        buffer, position, end = self._buffer, self.position, len(self._buffer)
        length_at = struct.Struct("<Q").unpack_from
        strings: list[str] = []
        try:
            for _ in range(count):
                (length,) = length_at(buffer, position)
                position += 8 + length
                if position > end:
                    self.fail(f"a string of {length} bytes before {position}, the file ends at {end}")
                strings.append(buffer[position - length : position].decode())
        except (struct.error, UnicodeDecodeError) as error:
            self.fail(f"strings at {position}: {error}")
        self.position = position
        return strings
