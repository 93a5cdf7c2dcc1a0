"""Filters of system calls (seccomp-BPF), built from tables and installed through ctypes.

A process that has installed a filter cannot remove it, and children inherit it.
"""

import ctypes
import errno
import os
import struct

from prm_jax.verifiers.sandbox.inside import syscalls

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X32 = 0x40000000
_NEW_NAMESPACES = 0x7E020080
_CLONE_THREAD = 0x00010000
_SET_NO_NEW_PRIVS, _SET_SECCOMP = 38, 22

Instruction = tuple[int, int, int, int]


def architecture() -> int | None:
    """Column of the tables in ``syscalls`` for this machine; None where there is none."""
    if struct.calcsize("P") != 8:
        return None
    return {"x86_64": syscalls.X86_64, "aarch64": syscalls.AARCH64}.get(os.uname().machine)


def build_filter(column: int, *, program: int | None) -> list[Instruction]:
    """A filter for the process that starts programs, or for a program.

    Args:
      column: of the tables, see ``architecture``.
      program: process id of a program, which may neither start processes nor signal any other; None for the process
        that starts programs.

    Returns:
      Instructions (code, jump if true, jump if false, operand); what is not refused is allowed.
    """
    out: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, syscalls.AUDIT_ARCH[column]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if column == syscalls.X86_64:
        out += [(_JUMP_AT_LEAST, 0, 1, _X32), _refuse(errno.EPERM)]
    out += [(_JUMP_AT_LEAST, 0, 1, syscalls.HIGHEST_KNOWN + 1), _refuse(errno.ENOSYS)]
    # The C library falls back to clone, whose flags a filter can read.
    out += _if_call(syscalls.CLONE3[column], [_refuse(errno.ENOSYS)])
    denied = dict(syscalls.DENIED)
    if program is None:
        out += _if_call(syscalls.CLONE[column], _unless_bits(_NEW_NAMESPACES))
    else:
        denied |= syscalls.DENIED_TO_PROGRAMS
        out += _if_call(syscalls.CLONE[column], _only_threads())
        for numbers in syscalls.SIGNALS.values():
            out += _if_call(numbers[column], _only_argument(program))
        out += _if_call(syscalls.PRLIMIT64[column], _only_argument(0))
    for numbers in denied.values():
        if numbers[column] >= 0:
            out += _if_call(numbers[column], [_refuse(errno.EPERM)])
    return [*out, (_RETURN, 0, 0, _ALLOW)]


def install(instructions: list[Instruction]) -> None:
    """Installs a filter in this process, for good.

    Raises:
      OSError: the kernel refused it.
    """
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS) failed")
    if libc.prctl(_SET_SECCOMP, 2, ctypes.create_string_buffer(header, len(header)), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP) failed")


def _refuse(number: int) -> Instruction:
    return (_RETURN, 0, 0, 0x00050000 | number)


def _if_call(number: int, then: list[Instruction]) -> list[Instruction]:
    """`then`, which must return, when the call is `number`; the number stays loaded otherwise."""
    return [] if number < 0 else [(_JUMP_EQUAL, 0, len(then), number), *then]


def _unless_bits(bits: int) -> list[Instruction]:
    return [
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_ANY_BIT, 0, 1, bits),
        _refuse(errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _only_threads() -> list[Instruction]:
    return [
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_ANY_BIT, 1, 0, _CLONE_THREAD),
        _refuse(errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _only_argument(value: int) -> list[Instruction]:
    return [
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 1, 0, value),
        _refuse(errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
