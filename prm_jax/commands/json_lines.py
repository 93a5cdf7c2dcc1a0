"""Files of JSON lines that are replaced as a whole; a truncated last line counts as not written."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from prm_jax.errors import UserError


def dump(line: Mapping[str, Any]) -> str:
    """One line of JSON; non-ASCII characters as themselves, unless the line holds lone surrogates."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(line)
    return text


def write(path: pathlib.Path, lines: Sequence[str]) -> None:
    """Replaces the file as a whole, so that readers never see part of it.

    Raises:
      UserError: it cannot be written.
    """
    partial = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from error


def whole_lines(path: pathlib.Path) -> list[str]:
    """The lines of the file, without a last one that is not terminated.

    Raises:
      UserError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]  # the last one may end inside a character
    except OSError as error:
        raise UserError(f"cannot continue {path}: {error.strerror or error}") from error
    for number, line in enumerate(lines, start=1):
        if not _is_object(line):
            raise UserError(f"cannot continue {path}: line {number} is not a JSON object, found {line[:60]!r}")
    return lines


def fingerprint(lines: Sequence[Mapping[str, Any]]) -> str:
    """Of what a command reads, for `results.header`."""
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(json.dumps(line, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
