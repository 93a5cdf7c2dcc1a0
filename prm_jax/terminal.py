"""Messages of the command line on stderr, and standard streams that cannot fail on a character or by being closed."""

import contextlib
import io
import logging
import os
import re
import sys
from typing import TextIO


def prepare_streams() -> None:
    """Makes the standard output and error safe to print to.

    A stream that the parent process closed becomes one that discards what is written, and characters that a stream's
    encoding lacks (in the C locale, say) are written as escapes instead of raising.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Redirects the standard output to nowhere, so that the interpreter's own flush at exit cannot fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def print_error(text: str) -> None:
    """Prints an ``error:`` paragraph."""
    _print("error:", text, "31;1")


def print_warning(text: str) -> None:
    """Prints a ``warning:`` paragraph."""
    _print("warning:", text, "33;1")


def set_up_logging(*, debug: bool = False) -> None:
    """Shows warnings of this package and its dependencies as one line each; with `debug`, all messages."""
    root = logging.getLogger()
    if not any(isinstance(handler, _Lines) for handler in root.handlers):
        root.addHandler(_Lines())
    root.setLevel(logging.INFO if debug else logging.WARNING)
    # absl (used by orbax) prints tracebacks of failures that the checkpoints here check and report themselves.
    logging.getLogger("absl").setLevel(logging.INFO if debug else logging.CRITICAL)


class _Lines(logging.Handler):
    """Writes to the current stderr, which a live display replaces while it runs."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            if record.levelno >= logging.ERROR:
                print_error(text)
            elif record.levelno >= logging.WARNING:
                print_warning(text)
            else:
                _print(f"{record.name}:", text, "2")
        except Exception:
            self.handleError(record)


def _print(label: str, text: str, style: str) -> None:
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    shown = f"\x1b[{style}m{label}\x1b[0m" if colour else label
    with contextlib.suppress(OSError, ValueError):
        print(f"{shown} {_printable(text)}", file=sys.stderr, flush=True)


def _printable(text: str) -> str:
    # A name of thousands of characters would hide the message.
    text = re.sub(r"\S{400,}", lambda match: f"{match[0][:120]}...{match[0][-60:]}", text)
    # Escape sequences in a file's name or a model's text must not reach the terminal.
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    kept = "".join(char if char in "\n\t" or char.isprintable() else repr(char)[1:-1] for char in text)
    return kept.encode(encoding, "backslashreplace").decode(encoding)


class Forgiving(io.TextIOBase):
    """A text stream that drops what cannot be written: a closed pipe or lost terminal must not end a run."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()

    def isatty(self) -> bool:
        return self._file.isatty()

    def fileno(self) -> int:
        return self._file.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._file, "encoding", None) or "utf-8"
