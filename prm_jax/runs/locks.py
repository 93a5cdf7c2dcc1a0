"""A lock file that names its owner and cannot go stale: one job per directory."""

import json
import os
import pathlib
import platform
from typing import Any

from prm_jax.errors import UserError


class Lock:
    """Holds a lock file from construction to ``release``.

    The lock is the operating system's lock on the file, so a killed job blocks nobody. Host and process are recorded
    for the error message, and decide only on file systems without locks.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        """Takes the lock.

        Raises:
          UserError: another job, or this process itself, holds it; the message names host and process.
          OSError: the file cannot be written.
        """
        self.path = pathlib.Path(path)
        owner = _read_owner(self.path)
        self._file = self.path.open("a+", encoding="utf-8")
        locked = _try_lock(self._file)
        if locked is False or (locked is None and owner and _may_live(owner)):
            self._file.close()
            raise UserError(
                f"{self.path.parent} is in use by process {owner.get('pid', '?')} on {owner.get('host', '?')}. "
                f"Wait for it or stop it; if it no longer exists, remove {self.path}"
            )
        self._write({"host": platform.node(), "pid": os.getpid()})

    def release(self) -> None:
        """Releases the lock; the file stays, because removing it could break the lock of a successor."""
        if not self._file.closed:
            self._write({})
            self._file.close()

    def _write(self, content: dict[str, Any]) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(content) + "\n" if content else "")
        self._file.flush()


def _try_lock(file: Any) -> bool | None:
    """True: locked; False: held by another process; None: the system or file system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        # flock rather than lockf, which is released whenever this process closes another handle of the file.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _read_owner(path: pathlib.Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _may_live(owner: dict[str, Any]) -> bool:
    if owner.get("host") != platform.node():
        return True
    if owner.get("pid") == os.getpid():  # a restarted container reuses process ids
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return False
    except (OSError, KeyError, ValueError, TypeError):
        return True
    return True
