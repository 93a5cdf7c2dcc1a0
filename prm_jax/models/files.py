"""Small files: text and JSON read with limits and precise errors, text written atomically."""

import json
import os
import pathlib
import stat
import uuid
from typing import Any

from prm_jax.errors import UserError

MAX_TEXT = 256_000_000
"""Bytes of the longest text file that is read; tokenizers of large vocabularies take tens of millions."""


def read_text(path: pathlib.Path, *, max_bytes: int = MAX_TEXT) -> str:
    """Reads a UTF-8 file.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: not a regular file (a FIFO would block, a device never end), too long, or not UTF-8.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
        if len(raw) > max_bytes:
            raise UserError(f"{path} has more than {max_bytes} bytes, which is too long for a file of its kind")
        return raw.decode("utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {short(path)}: {error}") from error


def check_regular(path: pathlib.Path) -> None:
    """Checks that a path is a regular file, or a link to one, before it is opened.

    Raises:
      FileNotFoundError: there is nothing.
      UserError: a directory, FIFO, socket or device.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe (FIFO)", stat.S_IFSOCK: "a socket"}
        raise UserError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, expected a regular file")


def short(text: object, limit: int = 200) -> str:
    """The beginning of a text from outside, for messages."""
    shown = str(text)
    return shown if len(shown) <= limit else f"{shown[:limit]}... ({len(shown)} characters)"


def read_json(path: pathlib.Path, *, missing: Any = None) -> Any:
    """Parses a JSON object; ``missing`` if there is no file, unless that is None.

    Raises:
      UserError: no such file, not a regular one, not UTF-8, bad JSON (with line and column), not an object, or a
        duplicate key.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise UserError(f"{path} is missing") from None
    return loads_json(text, source=str(path))


def loads_json(text: str, *, source: str) -> dict[str, Any]:
    """Parses a JSON object; ``source`` names it in errors.

    Raises:
      UserError: bad JSON (with line and column), not an object, or a duplicate key.
    """
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    except (_DuplicateKeyError, RecursionError, ValueError) as error:  # ValueError: a number of absurd length
        raise UserError(f"{source}: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{source}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON as ``write_text`` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file atomically: to a temporary file in the same directory, which then replaces the old one."""
    name = beside(path, "new")
    try:
        with open(name, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


def beside(path: pathlib.Path, what: str) -> pathlib.Path:
    """An unused hidden name in the same directory."""
    return path.with_name(f".{path.name}.{what}.{uuid.uuid4().hex[:12]}")


class _DuplicateKeyError(ValueError):
    """A JSON object has a duplicate key."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _DuplicateKeyError(f"duplicate key {twice!r}")
    return value


def sync_directory(path: pathlib.Path) -> None:
    """Makes renames and new files in a directory durable (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
