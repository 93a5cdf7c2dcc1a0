"""Files that the first process of a run writes and the others read, on a file system that all of them see."""

import contextlib
import os
import pathlib
import platform
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

from prm_jax.errors import UserError
from prm_jax.runs import processes

T = TypeVar("T")
SEEN_WITHIN = 60.0
"""Seconds after which a new file must be visible everywhere; network file systems remember what is missing."""


def by_first(work: Callable[[], T], *, what: str) -> T | None:
    """Does something in process 0 alone; all processes wait for it, and fail if it fails.

    Args:
      work: writes files.
      what: it does, for messages: "save the model".

    Returns:
      Its result in process 0, None in the others.

    Raises:
      UserError: the work failed; of a `UserError` the text is the same in every process.
    """
    if processes.count() == 1:
        return work()
    result: T | None = None
    failure: Exception | None = None
    if processes.is_first():
        try:
            result = work()
        except Exception as error:
            failure = error
    message = None
    if failure is not None:
        message = str(failure) if isinstance(failure, UserError) else f"process 0 could not {what}: {failure}"
    told = processes.broadcast_from_first(message, name=what)
    if failure is not None:
        raise failure
    if told is not None:
        raise UserError(told)
    return result


def exists(path: pathlib.Path) -> bool:
    """Whether process 0 sees something there; the same answer everywhere."""
    return bool(processes.broadcast_from_first(path.exists(), name=f"looking for {path.name}"))


def is_dir(path: pathlib.Path) -> bool:
    """Whether process 0 sees a directory there; the same answer everywhere."""
    return bool(processes.broadcast_from_first(path.is_dir(), name=f"looking for {path.name}"))


def is_file(path: pathlib.Path) -> bool:
    """Whether process 0 sees a file there; the same answer everywhere."""
    return bool(processes.broadcast_from_first(path.is_file(), name=f"looking for {path.name}"))


def check_seen(directory: pathlib.Path) -> None:
    """Checks that all processes see the directory of process 0.

    Raises:
      UserError: some do not; raised in all processes.
    """
    token = processes.broadcast_from_first(str(secrets.randbelow(10**12)), name="token of the run directory")
    file = directory / f".seen.{token}.tmp"
    by_first(lambda: file.write_text(token, encoding="utf-8"), what=f"write to {directory}")
    deadline = time.monotonic() + SEEN_WITHIN
    while not _holds(file, token) and time.monotonic() < deadline:
        time.sleep(0.2)
    found = processes.gather((platform.node(), str(directory.absolute()), _holds(file, token)), name="run directory")
    if processes.is_first():
        with contextlib.suppress(OSError):
            file.unlink()
    blind = [f"process {place} on {host} ({path})" for place, (host, path, seen) in enumerate(found) if not seen]
    if blind:
        raise UserError(
            f"the run directory that process 0 has made on {found[0][0]} ({found[0][1]}) is not visible in "
            f"{'; '.join(blind[:4])}{' and others' if len(blind) > 4 else ''}: name one (--run-dir) on a file system "
            "that all processes share"
        )


def _holds(file: pathlib.Path, token: str) -> bool:
    with contextlib.suppress(OSError):
        os.listdir(file.parent)  # makes a network file system look again
        return file.read_text(encoding="utf-8") == token
    return False
