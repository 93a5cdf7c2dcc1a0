"""The process that compares mathematical answers: a script, started by ``math_pool``.

It imports mpmath once and then forks a child for the checks; the child may be killed at any moment and replaced in
milliseconds. The forking process never parses model text. Both speak JSON lines; no pickle, and neither imports jax.

A deadline is one of processor time, which the kernel enforces (a timer that ends the child), so that a busy machine
changes no verdict; in addition there is one of wall time, ten times as long.

The child may write no file, start no process and use only a limited amount of memory.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

# Checked at the start; what is imported and cached on first use is then there for every child.
WARM_UP = (
    (r"\frac{2}{4}", "0.5", True),
    (r"\sqrt{8}+x^2", r"x^2+2\sqrt{2}", True),
    (r"\sin^2 x+\cos^2 x", "1", True),
    (r"\{1,2\}", "3", False),
    ("(1,\\pi)", "(\\pi,1)", False),
    (r"[0,\sqrt2)", r"0 \le x < \frac{2}{\sqrt2}", True),
    ("2x=y", "y=2x", True),
    ("x+1", "0", False),
)


WALL = 10
"""Seconds of wall time that a check may take for each second of processor time."""


def main() -> None:
    """Reads requests from standard input until it ends; answers each on standard output."""
    replies = os.dup(1)
    # Output of libraries must not mix with the replies.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    options = json.loads(_read_line(0, b"")[0])
    sys.path.extend(path for path in options["path"] if path not in sys.path)
    try:
        for gold, answer, expected in WARM_UP:
            status, _ = compare(gold, answer)
            if (status == "pass") != expected:
                raise RuntimeError(f"{answer!r} against {gold!r} gave {status!r}")
    except Exception as error:  # the parent reports it
        _write_line(replies, {"ready": False, "detail": f"{type(error).__name__}: {error}"})
        return
    _write_line(replies, {"ready": True})
    serve(replies, memory_bytes=options["memory_bytes"], recycle_after=options["recycle_after"])


def serve(replies: int, *, memory_bytes: int, recycle_after: int) -> None:
    """Passes each request to a child; kills a child that is late, and replaces one after ``recycle_after`` requests."""
    child: Child | None = None
    rest = b""
    while True:
        line, rest = _read_line(0, rest)
        if not line:
            break
        request = json.loads(line)
        if child is None or child.served >= recycle_after:
            child = _replaced(child, memory_bytes, close=(0, replies))
        status, detail = child.ask(line, request["timeout"])
        if child.dead:
            child = _replaced(child, memory_bytes, close=(0, replies))
        _write_line(replies, {"id": request["id"], "status": status, "detail": detail})
    if child:
        child.kill()


class Child:
    """A forked copy of this process that does the parsing and comparing.

    Attributes:
      served: how many requests it has had.
      dead: it was late or has ended, and cannot be used again.
    """

    def __init__(self, memory_bytes: int, close: tuple[int, ...]) -> None:
        from_parent, self._requests = os.pipe()
        self._replies, to_parent = os.pipe()
        self.served = 0
        self.dead = False
        self._reaped = False
        self._pid = os.fork()
        if self._pid == 0:
            for fd in (*close, self._requests, self._replies):
                os.close(fd)
            _check_forever(from_parent, to_parent, memory_bytes)
        os.close(from_parent)
        os.close(to_parent)

    def ask(self, line: bytes, timeout: float) -> tuple[str, str]:
        """(status, detail) by the deadline; an answer is at fault once the reference has been evaluated."""
        self.served += 1
        deadline = time.monotonic() + WALL * timeout
        rest = b""
        gold_read = False
        try:
            os.write(self._requests, line + b"\n")
            while True:
                wait = max(0.0, deadline - time.monotonic())
                if b"\n" not in rest and not select.select([self._replies], [], [], wait)[0]:
                    return self._failed(gold_read, f"took longer than {WALL * timeout:g} s of wall time")
                received, rest = _read_line(self._replies, rest)
                if not received:
                    break
                reply = json.loads(received)
                if "status" in reply:
                    return reply["status"], reply["detail"]
                gold_read = True
        except BrokenPipeError:
            pass
        late = self._reap() == -signal.SIGPROF
        return self._failed(gold_read, f"took longer than {timeout:g} s" if late else "crashed or ran out of memory")

    def kill(self) -> None:
        """Ends the child and reaps it."""
        if not self._reaped:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()
        os.close(self._requests)
        os.close(self._replies)

    def _reap(self) -> int:
        """Waits for the child's end; its exit code, or minus the signal that ended it."""
        self._reaped = True
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _failed(self, gold_read: bool, what: str) -> tuple[str, str]:
        self.dead = True
        return ("timeout", f"the check {what}") if gold_read else ("error", f"evaluating the reference {what}")


def _replaced(child: Child | None, memory_bytes: int, close: tuple[int, ...]) -> Child:
    if child is not None:
        child.kill()
    return Child(memory_bytes, close)


def compare(
    gold: str, answer: str, strict: bool = False, on_gold: Callable[[], None] = lambda: None
) -> tuple[str, str]:
    """(status, detail) of one comparison; ``on_gold`` is called once the reference has been evaluated."""
    from prm_jax.verifiers import numeric
    from prm_jax.verifiers.comparison import Comparison, expressions_in
    from prm_jax.verifiers.exact_value import Undefined
    from prm_jax.verifiers.latex import Unreadable
    from prm_jax.verifiers.reading import read

    try:
        wanted = read(gold, strict=strict)
        for tree in expressions_in(wanted.form):
            numeric.measure(tree)
    except (Unreadable, ArithmeticError, MemoryError, RecursionError) as error:
        return "error", f"the reference cannot be evaluated: {type(error).__name__} {error}"
    on_gold()
    try:
        equal = Comparison(numeric, strict).same(wanted, read(answer, strict=strict))
    except Unreadable as error:
        return "fail", f"the answer cannot be read: {error}"
    except Undefined as error:
        return "fail", f"the answer has no value: {error}"
    return ("pass" if equal else "fail"), ""


def _check_forever(requests: int, replies: int, memory_bytes: int) -> NoReturn:
    """The child's main loop: it ends with its requests, or when it is killed."""
    import logging
    import resource

    try:
        logging.disable(logging.CRITICAL)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        rest = b""
        while True:
            line, rest = _read_line(requests, rest)
            if not line:
                break
            request = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, request["timeout"])
            try:
                status, detail = compare(
                    request["gold"],
                    request["answer"],
                    request["strict"],
                    lambda: _write_line(replies, {"gold": True}),
                )
            except (Exception, RecursionError, MemoryError) as error:
                status, detail = "fail", f"the answer broke the comparison: {type(error).__name__}"
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            _write_line(replies, {"status": status, "detail": detail})
    finally:
        os._exit(0)


def _read_line(fd: int, rest: bytes) -> tuple[bytes, bytes]:
    """(line without its end, bytes read beyond it); an empty line at the end of the stream."""
    parts = [rest]
    while b"\n" not in parts[-1]:
        part = os.read(fd, 65536)
        if not part:
            return b"", b""
        parts.append(part)
    line, _, beyond = b"".join(parts).partition(b"\n")
    return line, beyond


def _write_line(fd: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main()
