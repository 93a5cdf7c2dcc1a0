"""Landlock: this process may read a few paths and write none, and opens no TCP connection."""

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
# Rights of each version of the interface; the kernel refuses bits that it does not know.
_FILE_RIGHTS = (0, 13, 14, 15, 15, 16)
_NO_NEW_PRIVS = 38


def version() -> int:
    """Version of the kernel's interface; 0 where there is none."""
    found = ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, 0, 1)
    return max(int(found), 0)


def restrict(readable: Iterable[str], devices: Iterable[str] = ("/dev/null", "/dev/urandom")) -> None:
    """Restricts this process and its children, for good.

    Args:
      readable: files and directories that may be read and executed; those that do not exist are left out.
      devices: may be read and written.

    Raises:
      OSError: the kernel refused.
    """
    known = version()
    if not known:
        raise OSError("this kernel has no Landlock")
    rights = (1 << _FILE_RIGHTS[min(known, len(_FILE_RIGHTS) - 1)]) - 1
    network = 0b11 if known >= 4 else 0
    scopes = 0b11 if known >= 6 else 0
    fields = [rights, network, scopes][: 1 if known < 4 else 2 if known < 6 else 3]
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    rules = _call(_CREATE, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0)
    try:
        for path in readable:
            _allow(rules, path, _EXECUTE | _READ_FILE | _READ_DIR)
        for path in devices:
            _allow(rules, path, _READ_FILE | _WRITE_FILE)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS) failed")
        _call(_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            access &= ~_READ_DIR
        rule = struct.pack("=Qi", access, file)
        _call(_ADD, rules, 1, ctypes.create_string_buffer(rule, len(rule)), 0)
    finally:
        os.close(file)


def _call(number: int, *arguments: object) -> int:
    result = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock call {number} failed")
    return int(result)
