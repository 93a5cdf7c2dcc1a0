"""The first process inside the sandbox: it locks itself in, then starts one program after the other by fork.

It never runs a line of a program, so each fork begins clean. A program gets a stricter filter of system calls than
this process: it can start no process, signal no other and execute nothing.
"""

import contextlib
import gc
import math
import os
import resource
import select
import signal
import sys
import time
from typing import Any

from prm_jax.verifiers.sandbox.inside import landlock, seccomp
from prm_jax.verifiers.sandbox.inside.frames import loads, pack, read_frame, write_all, write_frame
from prm_jax.verifiers.sandbox.inside.judges import judge
from prm_jax.verifiers.sandbox.inside.programs import leave, run_script, serve_functions, take_standard_streams

_COMMANDS, _REPORTS = 0, 1
_CAPABILITY_VERSION_3 = 0x20080522
_DEATH_SIGNAL, _DUMPABLE, _DROP_FROM_BOUNDING_SET = 1, 4, 24


def lock_in(readable: list[str], use_landlock: bool) -> list[str]:
    """Gives up what programs must not have; the names of the layers that hold.

    Raises:
      OSError: a layer that should be there was refused by the kernel.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    os.chdir("/")
    os.umask(0o077)
    layers = []
    _drop_capabilities(libc)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if use_landlock:
        landlock.restrict(readable)
        layers.append(f"landlock {landlock.version()}")
    column = seccomp.architecture()
    assert column is not None
    seccomp.install(seccomp.build_filter(column, program=None))
    layers.append("seccomp")
    return layers


def serve(layers: list[str]) -> None:
    """Carries out commands from file descriptor 0 until it is closed."""
    global _PARENT
    _PARENT = os.getpid()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    write_frame(_REPORTS, {"ready": True, "layers": layers, "python": sys.version.split()[0], "uid": os.getuid()})
    while (command := read_frame(_COMMANDS)) is not None:
        if "start" in command:
            _Run(command["start"]).supervise()


class _Run:
    """One program from its start to its end."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.limits = spec, spec["limits"]
        self.begun = time.monotonic()
        self.ended_by = ""
        self.kept: dict[int, bytearray] = {}
        self.from_program, self.unsent = bytearray(), bytearray()
        self.pid = self._start()

    def supervise(self) -> None:
        """Passes messages between the program and the outside, enforces the limits, and reports the end."""
        open_pipes = {self.out, self.err, self.replies}
        poller = select.poll()
        for pipe in (*open_pipes, _COMMANDS):
            poller.register(pipe, select.POLLIN)
        while open_pipes:
            left = self.limits["wall_seconds"] - (time.monotonic() - self.begun)
            if left <= 0:
                self._kill("timeout")
            if self.unsent:
                poller.register(self.requests, select.POLLOUT)
            for pipe, _ in poller.poll(max(left, 0) * 1000 if not self.ended_by else 2000):
                if pipe == _COMMANDS:
                    self._obey()
                    continue
                if pipe == self.requests:
                    self._send()
                    if not self.unsent:
                        poller.unregister(self.requests)
                    continue
                data = os.read(pipe, 1 << 16)
                if not data:
                    poller.unregister(pipe)
                    open_pipes.discard(pipe)
                elif pipe == self.replies:
                    self._forward(data)
                else:
                    self._keep(pipe, data)
            if self.ended_by and not self._alive():
                break
        self._report()

    def _start(self) -> int:
        out, err, replies, requests = os.pipe(), os.pipe(), os.pipe(), os.pipe()
        stdin = os.memfd_create("stdin")
        write_all(stdin, self.spec.get("stdin", "").encode("utf-8", "surrogateescape"))
        os.lseek(stdin, 0, os.SEEK_SET)
        pid = os.fork()
        if pid == 0:
            _become_program(self.spec, stdin, out[1], err[1], requests[0], replies[1])
        for file in (stdin, out[1], err[1], requests[0], replies[1]):
            os.close(file)
        self.out, self.err, self.replies, self.requests = out[0], err[0], replies[0], requests[1]
        os.set_blocking(self.requests, False)
        self.kept = {self.out: bytearray(), self.err: bytearray()}
        return pid

    def _obey(self) -> None:
        command = read_frame(_COMMANDS)
        if command is None:  # whoever asked is gone
            self._kill("stopped")
            os.waitpid(self.pid, 0)
            os._exit(0)
        if "stop" in command:
            self._kill("stopped")
        elif "send" in command:
            self.unsent += pack(command["send"])

    def _send(self) -> None:
        """Writes what the pipe takes; a program that does not read must not stop this process."""
        try:
            del self.unsent[: os.write(self.requests, self.unsent)]
        except BlockingIOError:
            return
        except OSError:  # it closed its end
            self.unsent.clear()

    def _forward(self, data: bytes) -> None:
        self.from_program += data
        while len(self.from_program) >= 4:
            length = int.from_bytes(self.from_program[:4], "big")
            if length > self.limits["message_bytes"]:
                self._kill("output")
                self.from_program.clear()
                return
            if len(self.from_program) < 4 + length:
                return
            body = bytes(self.from_program[4 : 4 + length])
            del self.from_program[: 4 + length]
            try:
                write_frame(_REPORTS, {"message": loads(body)})
            except ValueError:
                self._kill("output")

    def _keep(self, pipe: int, data: bytes) -> None:
        kept, limit = self.kept[pipe], self.limits["output_bytes"]
        kept += data
        if len(kept) > limit:
            del kept[limit:]
            if pipe == self.out:
                self._kill("output")

    def _kill(self, reason: str) -> None:
        self.ended_by = self.ended_by or reason
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def _alive(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def _report(self) -> None:
        while self._alive():  # closed its streams and went on
            left = self.limits["wall_seconds"] - (time.monotonic() - self.begun)
            if left <= 0 or self.ended_by:
                self._kill("timeout")
                break
            time.sleep(min(left, 0.002))
        _, status, usage = os.wait4(self.pid, 0)
        for file in (self.out, self.err, self.replies, self.requests):
            os.close(file)
        seconds = usage.ru_utime + usage.ru_stime
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        ended_by = self.ended_by or ("timeout" if killed == signal.SIGXCPU else "signal" if killed else "exit")
        if ended_by == "signal" and killed == signal.SIGKILL and seconds >= self.limits["cpu_seconds"]:
            ended_by = "timeout"  # the hard limit on processor time
        write_frame(
            _REPORTS,
            {
                "end": {
                    "by": ended_by,
                    "status": killed or os.waitstatus_to_exitcode(status),
                    "stdout": self.kept[self.out].decode("utf-8", "surrogateescape"),
                    "stderr": self.kept[self.err].decode("utf-8", "surrogateescape"),
                    "cpu_seconds": seconds,
                    "wall_seconds": time.monotonic() - self.begun,
                    "memory_bytes": usage.ru_maxrss * 1024,
                }
            },
        )


_PARENT = 0


def _become_program(spec: dict[str, Any], stdin: int, out: int, err: int, requests: int, replies: int) -> None:
    """In the new process: file descriptors, limits and filter, then the program. Never returns."""
    status = 1
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_DUMPABLE, 0, 0, 0, 0)
        if os.getppid() != _PARENT:
            os._exit(1)
        with_messages = spec["mode"] != "script"
        files = [stdin, out, err, *((requests, replies) if with_messages else ())]
        moved = [os.dup2(file, 100 + index) for index, file in enumerate(files)]
        for target, file in enumerate(moved):
            os.dup2(file, target)
        os.closerange(len(moved), 4096)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        _limit(spec["limits"])
        take_standard_streams()
        column = seccomp.architecture()
        assert column is not None
        _forget_modules()
        seccomp.install(seccomp.build_filter(column, program=os.getpid()))
        if spec["mode"] == "script":
            status = run_script(spec["code"])
        elif spec["mode"] == "functions":
            status = serve_functions(spec["code"], spec["limits"]["cpu_seconds"])
        else:
            status = judge(spec["tests"])
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        leave(status)


def _limit(limits: dict[str, Any]) -> None:
    seconds = math.ceil(limits["cpu_seconds"])
    repeats = int(limits.get("calls", 1))
    pairs = {
        resource.RLIMIT_AS: (limits["memory_bytes"],) * 2,
        resource.RLIMIT_CPU: (seconds, seconds * repeats + 1),
        resource.RLIMIT_FSIZE: (limits["output_bytes"],) * 2,
        resource.RLIMIT_NOFILE: (limits["open_files"],) * 2,
        resource.RLIMIT_CORE: (0, 0),
    }
    if os.getuid() != 0:  # the kernel does not count root's
        pairs[resource.RLIMIT_NPROC] = (limits["threads"],) * 2
    for name, pair in pairs.items():
        resource.setrlimit(name, pair)


def _forget_modules() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("prm_jax", "ctypes", "_ctypes")]:
        del sys.modules[name]


def _drop_capabilities(libc: Any) -> None:
    """This process may be root; nothing that it starts may use that."""
    import ctypes

    for capability in range(64):
        if libc.prctl(_DROP_FROM_BOUNDING_SET, capability, 0, 0, 0) != 0:
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)())
