"""Exit codes of the commands: what schedulers and ``prm-jax launch`` decide by; imports only the standard library."""

import signal

DONE = 0
UNEXPECTED = 1
USER = 2
DOES_NOT_FIT = 3
UNAVAILABLE = 69  # EX_UNAVAILABLE
STORAGE = 74  # EX_IOERR
INTERRUPTED = 75  # EX_TEMPFAIL
STUCK = 76
DIVERGED = 77
GAVE_UP = 78
SIGINT = 128 + signal.SIGINT
PIPE = 128 + signal.SIGPIPE

MEANINGS = {
    DONE: "finished",
    UNEXPECTED: "unexpected error",
    USER: "bad input",
    DOES_NOT_FIT: "does not fit into memory",
    UNAVAILABLE: "another process or a server does not answer",
    STORAGE: "storage failed",
    INTERRUPTED: "interrupted and saved",
    STUCK: "stuck, ended by the watchdog",
    DIVERGED: "diverged",
    GAVE_UP: "restarts made no progress",
}
"""What a code says, as the end of a sentence. Codes above 128 are those of signals."""

FINAL = frozenset({DONE, USER, DOES_NOT_FIT, DIVERGED, GAVE_UP})
"""Codes after which the same command would end in the same way: never restart."""


def describe(code: int) -> str:
    """What happened to a process: "exited with 76 (stuck, ended by the watchdog)", "was killed by SIGKILL".

    Args:
      code: an exit code, or minus the number of a signal, as in ``subprocess.Popen.returncode``.
    """
    if code < 0:
        return f"was killed by {_signal_name(-code)}"
    meaning = MEANINGS.get(code) or (f"as after {_signal_name(code - 128)}" if code > 128 else "")
    return f"exited with {code}" + (f" ({meaning})" if meaning else "")


def of_shell(code: int) -> int:
    """The code as a shell shows it: 128 + n for a process that signal n has killed."""
    return 128 - code if code < 0 else code


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
