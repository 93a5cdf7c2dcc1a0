"""Messages on pipes: a length of four bytes, then JSON."""

import json
import os
from typing import Any

MAX_BYTES = 64 << 20


def write_frame(file: int, message: Any) -> None:
    """Writes one message.

    Raises:
      OSError: the reader is gone.
    """
    write_all(file, pack(message))


def pack(message: Any) -> bytes:
    """The bytes of one message."""
    body = json.dumps(message).encode("utf-8", "surrogatepass")
    return len(body).to_bytes(4, "big") + body


def write_all(file: int, data: bytes) -> None:
    """Writes everything to a blocking file descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def read_frame(file: int) -> Any:
    """Reads one message from a blocking file descriptor; None at its end.

    Raises:
      ValueError: not a message.
    """
    head = _read_exactly(file, 4)
    if head is None:
        return None
    length = int.from_bytes(head, "big")
    if length > MAX_BYTES:
        raise ValueError(f"a message of {length} bytes")
    body = _read_exactly(file, length)
    return None if body is None else loads(body)


def loads(body: bytes) -> Any:
    """A message from its bytes.

    Raises:
      ValueError: not JSON.
    """
    try:
        return json.loads(body.decode("utf-8", "surrogatepass"))
    except RecursionError as error:
        raise ValueError("a message is nested too deeply") from error


def _read_exactly(file: int, count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(file, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
