"""The process that runs tests. It never holds the program: it calls it by messages.

Expected values are in the tests, so the program, which runs in another sandbox, cannot see them.
"""

import builtins
import contextlib
import io
import os
from collections.abc import Callable
from typing import Any

from prm_jax.verifiers.sandbox.inside.frames import read_frame, write_frame
from prm_jax.verifiers.sandbox.inside.plain_data import NotPlain, decode, encode
from prm_jax.verifiers.sandbox.inside.programs import REPLIES, REQUESTS


class ProgramGone(BaseException):
    """The program exceeded a limit or ended; no ``except Exception`` of a test may catch this."""


def judge(spec: dict[str, Any]) -> int:
    """Runs tests one after the other and reports each.

    Args:
      spec: ``"setup"``: code that comes before the tests; ``"tests"``: code of each; ``"names"``: what the program
        defines; ``"entry_point"``: the function that ``check(candidate)`` gets, where the tests define one.
    """
    ask = _asker()
    calls = {name: _Function(name, ask) for name in spec["names"]}
    for index, test in enumerate(spec["tests"]):
        write_frame(REPLIES, {"test": index})
        write_frame(REPLIES, {"test": index, **_run(test, spec, calls)})
    write_frame(REPLIES, {"done": True})
    return 0


def _run(test: str, spec: dict[str, Any], calls: "dict[str, _Function]") -> dict[str, str]:
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins.__dict__, **calls}
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            exec(compile(spec["setup"], "<setup>", "exec"), namespace)
            namespace.update(calls)
            exec(compile(test, "<test>", "exec"), namespace)
            if spec["entry_point"] and callable(namespace.get("check")):
                namespace["check"](calls[spec["entry_point"]])
    except ProgramGone as error:
        return {"status": "gone", "detail": str(error)}
    except AssertionError as error:
        return {"status": "fail", "detail": f"assertion failed: {error}".removesuffix(": ")[:300]}
    except _Raised as error:
        return {"status": "fail", "detail": f"{error.kind}: {error.text}"[:300]}
    except SyntaxError as error:
        return {"status": "broken", "detail": f"{type(error).__name__}: {error}"[:300]}
    except BaseException as error:
        if isinstance(error, Exception) and getattr(error, "from_program", False):
            return {"status": "fail", "detail": f"{type(error).__name__}: {error}"[:300]}
        return {"status": "fail", "detail": f"{type(error).__name__} in the test: {error}"[:300]}
    return {"status": "pass", "detail": ""}


class _Raised(Exception):
    """An exception of the program whose type is not built in."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text


class _Object:
    """An object that stays in the program; tests may only hand it back."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Function:
    """A function of the program."""

    def __init__(self, name: str, ask: Callable[[dict[str, Any]], Any]) -> None:
        self.__name__ = name
        self._ask = ask

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reply = self._ask(
            {
                "call": self.__name__,
                "args": [_encode(item) for item in args],
                "kwargs": {name: _encode(item) for name, item in kwargs.items()},
            }
        )
        if reply.get("gone"):
            raise ProgramGone(str(reply["gone"]))
        try:
            if "raised" in reply:
                raise _exception(reply)
            for mine, theirs in zip(args, reply["args"], strict=True):
                _take_over(mine, decode(theirs, _Object))
            return decode(reply["value"], _Object)
        except (NotPlain, KeyError, TypeError, ValueError) as error:
            if getattr(error, "from_program", False):
                raise
            raise _Raised("malformed answer", str(error)) from None


def _encode(value: Any) -> Any:
    if isinstance(value, _Object):
        return ["r", value.number]
    if isinstance(value, list | tuple):
        items = [_encode(item) for item in value]
        return ["t" if isinstance(value, tuple) else "l", items]
    if isinstance(value, _Function):
        raise NotPlain("a function of the program as an argument")
    return encode(value)


def _exception(reply: dict[str, Any]) -> Exception:
    name, text = str(reply["raised"]), str(reply.get("message", ""))
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return _Raised(str(reply.get("kind", name)), text)
    try:
        error = kind(text)
    except Exception:
        return _Raised(name, text)
    error.from_program = True  # type: ignore[attr-defined]
    return error


def _take_over(mine: Any, theirs: Any) -> None:
    """Makes changes of a mutable argument visible to the test."""
    if type(mine) is not type(theirs):
        return
    if isinstance(mine, list):
        mine[:] = theirs
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(theirs)


def _asker() -> Callable[[dict[str, Any]], Any]:
    def ask(request: dict[str, Any]) -> Any:
        write_frame(REPLIES, request)
        reply = read_frame(REQUESTS)
        if reply is None:
            os._exit(1)
        return reply

    return ask
