"""A program in its own process: run as a script, or loaded so that its functions can be called."""

import atexit
import contextlib
import io
import os
import resource
import sys
import threading
import traceback
import types
from typing import Any

from prm_jax.verifiers.sandbox.inside.frames import read_frame, write_frame
from prm_jax.verifiers.sandbox.inside.plain_data import NotPlain, decode, encode

REQUESTS, REPLIES = 3, 4
"""File descriptors on which a program is asked and answers."""
MAX_MESSAGE = 2000


def run_script(code: str) -> int:
    """Runs `code` as ``__main__``; the exit status."""
    status = 0
    try:
        exec(compile(code, "<program>", "exec"), _fresh_main())
    except SystemExit as error:
        status = _exit_status(error)
    except BaseException:
        traceback.print_exc()
        status = 1
    for finish in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            finish()
    return status


def serve_functions(code: str, seconds: float) -> int:
    """Loads `code`, then answers calls of what it defines until nobody asks any more.

    A request is ``{"call": name, "args": [...], "kwargs": {...}}`` with plain data. The reply is ``{"value": ...}``
    with ``"args"``, since a function may change its arguments, or ``{"raised": type, "message": ...}``.

    Args:
      code: the program; it is loaded under a name other than ``__main__``.
      seconds: processor time that loading, and each call, may take.
    """
    namespace: dict[str, Any] = {"__name__": "solution", "__builtins__": __builtins__}
    module = types.ModuleType("solution")
    module.__dict__.update(namespace)
    sys.modules["solution"] = module
    objects: list[Any] = []
    _allow_seconds(seconds)
    try:
        exec(compile(code, "<program>", "exec"), module.__dict__)
        write_frame(REPLIES, {"loaded": True})
    except BaseException as error:
        write_frame(REPLIES, {"loaded": False, **_raised(error)})
        return 1
    while (request := read_frame(REQUESTS)) is not None:
        _allow_seconds(seconds)
        write_frame(REPLIES, _answer(module, request, objects))
    return 0


def take_standard_streams() -> None:
    """Makes new text streams of file descriptors 0, 1 and 2."""
    sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False), encoding="utf-8", errors="surrogateescape")
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8", errors="surrogateescape")
    sys.stderr = io.TextIOWrapper(
        open(2, "wb", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]


def _answer(module: types.ModuleType, request: Any, objects: list[Any]) -> dict[str, Any]:
    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    try:
        function = _find(module, request["call"])
        args = [decode(item, objects.__getitem__) for item in request["args"]]
        kwargs = {name: decode(item, objects.__getitem__) for name, item in request["kwargs"].items()}
        value = function(*args, **kwargs)
        with contextlib.suppress(NotPlain):
            return {"value": encode(value, keep), "args": [encode(item, keep) for item in args]}
        raise NotPlain("a value that is too large")
    except BaseException as error:
        return _raised(error)


def _find(module: types.ModuleType, name: str) -> Any:
    """A name of the program; a method of a class ``Solution``, as some problems ask for, where no function has it."""
    if hasattr(module, name):
        return getattr(module, name)
    solution = module.__dict__.get("Solution")
    if solution is not None and hasattr(solution, name):
        return getattr(solution(), name)
    raise NameError(f"name {name!r} is not defined")


def _raised(error: BaseException) -> dict[str, Any]:
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    message = ""
    with contextlib.suppress(BaseException):
        message = str.__str__(str(error))[:MAX_MESSAGE]
    return {"raised": names[0] if names else "Exception", "kind": type(error).__name__, "message": message}


def _allow_seconds(seconds: float) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used + seconds) + 1
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (min(soft, hard) if hard >= 0 else soft, hard))


def _fresh_main() -> dict[str, Any]:
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    return module.__dict__


def _exit_status(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    with contextlib.suppress(BaseException):
        print(error.code, file=sys.stderr)
    return 1


def leave(status: int) -> None:
    """Ends the process without running anything of the program's."""
    os._exit(status)
