"""Opens files that a user names, refusing what would block or never end: pipes, devices, directories."""

import gzip
import os
import pathlib
import stat
from typing import BinaryIO, cast

from prm_jax.errors import UserError

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_input(path: str | pathlib.Path, what: str = "") -> BinaryIO:
    """Opens a regular file for reading; one whose name ends in ``.gz`` is decompressed.

    Args:
      path: the file.
      what: what the file is, for messages: "the configuration".

    Raises:
      UserError: it does not exist, cannot be read, or is not a regular file. Reading a pipe would block without a
        writer, and a device may never end.
    """
    subject = f"{what} {path}" if what else str(path)
    try:
        mode = os.stat(path).st_mode
        found = next((name for test, name in _KINDS if test(mode)), None)
        if found:
            raise UserError(f"cannot read {subject}: expected a file, found {found}")
        if str(path).endswith(".gz"):
            return cast(BinaryIO, gzip.open(path, "rb"))
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {subject}: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {subject!r}: {error}") from error  # a NUL character in the name
