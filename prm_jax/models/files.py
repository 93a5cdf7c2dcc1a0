"""Small files: JSON read with errors that name the place, text written whole or not at all."""

import json
import os
import pathlib
import uuid
from typing import Any

from prm_jax.errors import UserError


def read_json(path: pathlib.Path, *, missing: Any = None) -> Any:
    """Parses a JSON object; ``missing`` where there is no file, unless that is None.

    Raises:
      UserError: no such file, no UTF-8, bad JSON (with line and column), no object, or a key given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise UserError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return loads_json(text, source=str(path))


def loads_json(text: str, *, source: str) -> dict[str, Any]:
    """Parses a JSON object; ``source`` names it in errors.

    Raises:
      UserError: bad JSON (with line and column), no object, or a key given twice.
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
    """Writes a file whole or not at all: to a neighbour first, which then takes the place of an older one."""
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
    """A hidden name in the same directory that nothing has yet."""
    return path.with_name(f".{path.name}.{what}.{uuid.uuid4().hex[:12]}")


class _DuplicateKeyError(ValueError):
    """A JSON object has one key twice."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _DuplicateKeyError(f"the key {twice!r} is there twice")
    return value


def sync_directory(path: pathlib.Path) -> None:
    """Makes renames and new files in a directory last through a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
