"""Which kinds of sandbox this machine has, and the command line that starts one."""

import dataclasses
import functools
import os
import pathlib
import shutil
import stat
import subprocess
import sys
from typing import Literal

from prm_jax.errors import UserError
from prm_jax.verifiers.sandbox.inside import landlock, seccomp

Level = Literal["bubblewrap", "landlock"]
LEVELS: tuple[Level, ...] = ("bubblewrap", "landlock")
"""From the strongest."""

_FIRST_USER = 61000
_INSIDE = pathlib.Path(__file__).with_name("inside")
_MODULES = (
    "syscalls", "seccomp", "landlock", "plain_data", "frames", "programs", "judges", "fork_server",
)  # fmt: skip
_ADVICE = {
    "bubblewrap": "install bubblewrap (Debian and Ubuntu: apt install bubblewrap) and allow user namespaces",
    "landlock": "use Linux 5.13 or newer on x86_64 or aarch64 with Landlock enabled",
}


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """The Python that programs run on.

    Attributes:
      path: of the executable.
      prefix: directory of its standard library, which programs may read.
      for_all: whether another user than this process's can execute it.
    """

    path: str
    prefix: str
    for_all: bool


@dataclasses.dataclass(frozen=True)
class Start:
    """How to start the first process of a sandbox.

    Attributes:
      command: arguments.
      user: to change to before starting; None: stay.
    """

    command: list[str]
    user: int | None


def choose_level(wanted: str = "auto") -> Level:
    """The strongest level of this machine, or the one that is asked for.

    Raises:
      UserError: it has none, or not that one; the message says why and what to install.
    """
    if wanted not in ("auto", *LEVELS):
        raise UserError(
            f"the sandbox must be auto, {', '.join(LEVELS)}, or the address of a server as http://HOST:PORT; "
            f"found {wanted!r}"
        )
    found = available_levels()
    for level in LEVELS if wanted == "auto" else (wanted,):
        if found[level] is None:
            return level  # type: ignore[return-value]
    reasons = "; ".join(f"{level}: {why}" for level, why in found.items() if why and wanted in ("auto", level))
    advice = ", or ".join(_ADVICE[level] for level in LEVELS if wanted in ("auto", level))
    raise UserError(
        f"model-written programs are run only in a sandbox, and this machine has none ({reasons}): {advice}; or name a "
        "server, as http://HOST:PORT, in its place"
        if wanted == "auto"
        else f"the sandbox level {wanted!r} is not available here ({reasons}): {advice}, or choose auto"
    )


@functools.cache
def available_levels() -> dict[str, str | None]:
    """For each level None, or the reason why this machine does not have it."""
    return {"bubblewrap": _why_no_bubblewrap(), "landlock": _why_no_landlock()}


def find_interpreter(path: str = "") -> Interpreter:
    """The interpreter for programs: the one at `path`, or this one, or where others may not read it the system's.

    Raises:
      UserError: nothing at `path` that starts.
    """
    if path:
        return _describe(path)
    own = _describe(getattr(sys, "_base_executable", "") or sys.executable)
    if own.for_all:
        return own
    for candidate in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(candidate) and (found := _describe(candidate)).for_all:
            return found
    return own


def start_of(level: Level, interpreter: Interpreter, slot: int) -> Start:
    """The command that starts the first process of a sandbox.

    Args:
      level: of isolation.
      interpreter: what it runs on.
      slot: number of the worker; each has a user of its own where this process is root.
    """
    readable = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", interpreter.prefix]
    use_landlock = _why_no_landlock() is None
    program = bootstrap(readable, use_landlock)
    python = [interpreter.path, "-I", "-S", "-B", "-X", "utf8", "-c", program]
    user = _FIRST_USER + slot % 1000 if os.getuid() == 0 and interpreter.for_all else None
    if level == "landlock":
        return Start(python, user)
    return Start([*_bubblewrap(interpreter.prefix), "--", *python], user)


@functools.cache
def _sources() -> dict[str, str]:
    return {name: (_INSIDE / f"{name}.py").read_text() for name in _MODULES}


def bootstrap(readable: list[str], use_landlock: bool) -> str:
    """The text of the first process: the modules of ``inside``, made without any file, then locking in and serving."""
    return (
        "import sys, types\n"
        "package = 'prm_jax.verifiers.sandbox.inside'\n"
        "parts = package.split('.')\n"
        "for end in range(1, len(parts) + 1):\n"
        "    sys.modules['.'.join(parts[:end])] = types.ModuleType('.'.join(parts[:end]))\n"
        f"for name, source in {_sources()!r}.items():\n"
        "    module = sys.modules[f'{package}.{name}'] = types.ModuleType(f'{package}.{name}')\n"
        "    setattr(sys.modules[package], name, module)\n"
        "    exec(compile(source, f'<{name}>', 'exec'), module.__dict__)\n"
        f"import {', '.join(_IMPORTED)}\n"
        "server = sys.modules[package + '.fork_server']\n"
        f"server.serve(server.lock_in({readable!r}, {use_landlock!r}))\n"
    )


_IMPORTED = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "json",
    "math", "operator", "random", "re", "statistics", "string", "typing",
)  # fmt: skip
"""Loaded once before programs are started; most need some of them."""


def _bubblewrap(prefix: str) -> list[str]:
    links = []
    for name in ("bin", "lib", "lib64", "lib32", "sbin"):
        path = pathlib.Path("/", name)
        if path.is_symlink():
            links += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            links += ["--ro-bind", str(path), str(path)]
    own = [] if prefix.startswith("/usr") else ["--ro-bind", prefix, prefix]
    cache = ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    devices = [word for name in ("null", "urandom") for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")]
    return [
        "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--new-session", "--die-with-parent",
        "--clearenv",
        "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--hostname", "sandbox",
        "--ro-bind", "/usr", "/usr", *links, *own, *cache, *devices, "--remount-ro", "/", "--chdir", "/",
    ]  # fmt: skip


@functools.cache
def _why_no_bubblewrap() -> str | None:
    if shutil.which("bwrap") is None:
        return "bwrap is not installed"
    if seccomp.architecture() is None:
        return f"no table of system calls for {os.uname().machine}"
    interpreter = find_interpreter()
    command = [*_bubblewrap(interpreter.prefix), "--", interpreter.path, "-I", "-S", "-c", "print(6 * 7)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bwrap does not start: {error}"
    if done.returncode or done.stdout.strip() != "42":
        return f"bwrap does not start a process: {done.stderr.strip()[:200] or f'exit status {done.returncode}'}"
    return None


@functools.cache
def _why_no_landlock() -> str | None:
    if sys.platform != "linux":
        return f"Landlock is part of Linux, and this is {sys.platform}"
    if seccomp.architecture() is None:
        return f"no table of system calls for {os.uname().machine}"
    if not landlock.version():
        return "the kernel offers no Landlock"
    return None


@functools.cache
def _describe(path: str) -> Interpreter:
    found = shutil.which(path)
    question = "import sys; print(sys.base_prefix); print(getattr(sys, '_base_executable', sys.executable))"
    try:
        done = subprocess.run(
            [found or path, "-I", "-S", "-c", question], capture_output=True, text=True, timeout=30, check=True
        )
        prefix, executable = done.stdout.splitlines()[:2]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UserError(f"no Python interpreter for programs at {path!r}: {error}") from error
    executable = os.path.realpath(executable)
    return Interpreter(executable, prefix, _readable_by_all(executable) and _readable_by_all(prefix))


def _readable_by_all(path: str) -> bool:
    needed = stat.S_IXOTH
    try:
        return all(os.stat(part).st_mode & needed for part in (pathlib.Path(path), *pathlib.Path(path).parents))
    except OSError:
        return False
