"""Plain data and NumPy arrays as bytes, without pickle: a JSON header, followed by the arrays' contents."""

import json
import struct
import zlib
from typing import Any

import numpy as np

_COMPRESS_FROM = 1 << 12
_ARRAY, _TUPLE, _DICT = "array", "tuple", "dict"


def encode(value: Any) -> bytes:
    """Encodes None, booleans, numbers, text, lists, tuples, mappings with text keys, and arrays of numbers.

    Raises:
      TypeError: anything else is inside.
    """
    arrays: list[bytes] = []
    header = json.dumps(_described(value, arrays)).encode()
    content = struct.pack("<Q", len(header)) + header + b"".join(arrays)
    if len(content) < _COMPRESS_FROM:
        return b"\0" + content
    return b"\1" + zlib.compress(content, 1)


def decode(content: bytes) -> Any:
    """What `encode` was given; arrays are NumPy arrays, and NumPy scalars have become arrays without dimensions."""
    body = zlib.decompress(content[1:]) if content[:1] == b"\1" else content[1:]
    (size,) = struct.unpack_from("<Q", body)
    value, end = _restored(json.loads(body[8 : 8 + size]), body, 8 + size)
    if end != len(body):
        raise ValueError(f"{len(body) - end} bytes after the last array")
    return value


def as_array(content: bytes) -> np.ndarray:
    """Bytes as an array, which can be encoded."""
    return np.frombuffer(content, np.uint8)


def _described(value: Any, arrays: list[bytes]) -> Any:
    """The value as JSON; contents of arrays are appended to `arrays` in order."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_described(item, arrays) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_described(item, arrays) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {_DICT: {key: _described(item, arrays) for key, item in value.items()}}
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind in "biufc":
            arrays.append(array.tobytes())
            return {_ARRAY: [array.dtype.str, list(array.shape)]}
        raise TypeError(f"an array of {array.dtype} cannot be sent; only numbers and booleans can")
    raise TypeError(f"a {type(value).__name__} cannot be sent; only plain data and arrays can")


def _restored(value: Any, body: bytes, place: int) -> tuple[Any, int]:
    """(the value, where the next array begins)."""
    if isinstance(value, list):
        items = []
        for item in value:
            restored, place = _restored(item, body, place)
            items.append(restored)
        return items, place
    if not isinstance(value, dict):
        return value, place
    ((kind, inner),) = value.items()
    if kind == _ARRAY:
        dtype, shape = np.dtype(inner[0]), tuple(inner[1])
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(body, dtype, count, place).reshape(shape).copy()
        return array, place + array.nbytes
    if kind == _TUPLE:
        items, place = _restored(inner, body, place)
        return tuple(items), place
    result = {}
    for key, item in inner.items():
        result[key], place = _restored(item, body, place)
    return result, place
