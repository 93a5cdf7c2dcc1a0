"""Runs a program that the kernel kills when its parent ends: ``python tethered.py PARENT PROGRAM WORDS...``.

A launcher that is killed itself can end nobody, and processes that wait for each other would stay for ever. Executed
as a file, with nothing but the standard library; where the system is not Linux, the program just runs.
"""

import contextlib
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tether(parent: int) -> None:
    """Lets the kernel kill this process when the thread that started it ends; survives ``exec``.

    Args:
      parent: process id of the parent; if it has ended already, this process ends at once.
    """
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    tether(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
