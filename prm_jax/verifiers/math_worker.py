"""The process that compares mathematical answers: a script of its own, started by ``math_pool``.

It imports math-verify once and then forks a child for the checks; the child may be killed at any moment and
replaced in milliseconds.  The forking process never parses model text.  Both speak JSON lines; no pickle,
and neither imports jax.

A deadline is one of processor time, which the kernel enforces (a timer that ends the child), so that a busy machine
makes no verdict; behind it stands one of wall time, ten times as long.

Only LaTeX is parsed (math-verify's other parser evaluates Python), in a child that may write no file, start
no process and take only so much memory.
"""

import json
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

# Checked at the start: math-verify does what is expected of it, and what it imports and caches on first use is there
# for every child.
WARM_UP = (
    (r"\frac{2}{4}", "0.5", True),
    (r"\sqrt{8}+x^2", r"x^2+2\sqrt{2}", True),
    (r"\sin^2 x+\cos^2 x", "1", True),
    (r"\{1,2\}", "3", False),
    ("(1,2)", "(2,1)", False),
    ("[0,1)", r"0 \le x < 1", True),
    (r"\begin{pmatrix} 1 \\ x+1 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 1+x \end{pmatrix}", True),
    ("x+1", "0", False),
)


WALL = 10
"""Seconds on the clock that a check may take for each second of processor time."""


def main() -> None:
    """Reads requests from standard input until it ends; answers each on standard output."""
    replies = os.dup(1)
    # Nothing that a library prints may end up among the replies.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    options = json.loads(_read_line(0, b"")[0])
    sys.path.extend(path for path in options["path"] if path not in sys.path)
    try:
        for gold, answer, expected in WARM_UP:
            status, _ = compare(gold, answer)
            if (status == "pass") != expected:
                raise RuntimeError(f"{answer!r} against {gold!r} gave {status!r}; is this math-verify 0.9 or later?")
    except Exception as error:  # whatever it is, the other side must hear of it
        _write_line(replies, {"ready": False, "detail": f"{type(error).__name__}: {error}"})
        return
    _write_line(replies, {"ready": True})
    serve(replies, memory_bytes=options["memory_bytes"], recycle_after=options["recycle_after"])


def serve(replies: int, *, memory_bytes: int, recycle_after: int) -> None:
    """Passes each request to a child; kills a child that is late, and replaces one that has done its share."""
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
      dead: it is late or gone, and of no more use.
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
        """(status, detail) by the deadline; who is at fault depends on whether the reference was read by then."""
        self.served += 1
        deadline = time.monotonic() + WALL * timeout
        rest = b""
        gold_read = False
        try:
            os.write(self._requests, line + b"\n")
            while True:
                wait = max(0.0, deadline - time.monotonic())
                if b"\n" not in rest and not select.select([self._replies], [], [], wait)[0]:
                    return self._failed(gold_read, f"took longer than {WALL * timeout:g} s on the clock")
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
        return ("timeout", f"the check {what}") if gold_read else ("error", f"parsing the reference {what}")


def _replaced(child: Child | None, memory_bytes: int, close: tuple[int, ...]) -> Child:
    if child is not None:
        child.kill()
    return Child(memory_bytes, close)


def compare(gold: str, answer: str, on_gold: Any = lambda: None) -> tuple[str, str]:
    """(status, detail) of one comparison; ``on_gold`` is called once the reference has been parsed."""
    from math_verify import verify

    wanted = _parse(gold)
    if not wanted:
        return "error", "the reference cannot be parsed"
    on_gold()
    found = _parse(answer)
    if not found:
        return "fail", "the answer cannot be parsed"
    equal = verify(wanted, found, allow_set_relation_comp=True, timeout_seconds=None)
    return ("pass" if equal else "fail"), ""


def _parse(latex: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    return parse(
        f"${latex}$",
        [LatexExtractionConfig(boxed_match_priority=-1)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )


def _check_forever(requests: int, replies: int, memory_bytes: int) -> NoReturn:
    """The child's life: it ends with its requests, or by a kill."""
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
                    request["gold"], request["answer"], lambda: _write_line(replies, {"gold": True})
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
