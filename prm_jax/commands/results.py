"""JSON-lines files that grow while a command runs and that it can resume.

The first line holds the settings and a fingerprint of the problems; the other lines are results. A truncated last line
counts as not written.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prm_jax.commands.json_lines import dump, whole_lines, write
from prm_jax.errors import UserError
from prm_jax.runs import processes
from prm_jax.terminal import print_warning

OPTIONS_OF_THE_FILE = ("out", "resume")
"""Options that determine where results go, not what they are."""


def header(options: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """The first line: the options that determine the results, as JSON values, and the task's fingerprint."""
    plain = {name: value for name, value in options.items() if name not in OPTIONS_OF_THE_FILE}
    return json.loads(json.dumps({"settings": plain, "task": fingerprint}, default=str))


def begin(path: pathlib.Path, first: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Opens a file, or continues it; one without results is started again, whatever its settings are.

    Args:
      path: where results go.
      first: from `header`.

    Returns:
      The results that the file already holds.

    Raises:
      UserError: the file was made with other settings, which are named with both values, or cannot be read.
    """
    done = read(path, first)
    if not done:
        write(path, [json.dumps(first)])
    return done


def begin_or_resume(path: pathlib.Path | None, first: Mapping[str, Any], *, resume: bool) -> list[dict[str, Any]]:
    """The results that --out already holds, with --resume; nothing is written yet.

    Raises:
      UserError: a file with results exists without --resume, or was made with other settings.
    """
    if path is None:
        if resume:
            raise UserError("--resume needs --out: which file should be continued?")
        return []
    if path.is_dir():
        raise UserError(f"--out {path} is a directory: give the name of a file")
    if path.exists() and not resume and not _is_unstarted(path):
        raise UserError(f"{path} exists: continue it with --resume, or give another --out")
    return read(path, first)


def read(path: pathlib.Path, first: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results in a file that need not exist; see `begin`, which writes."""
    if unstarted(path):
        return []
    head, *lines = whole_lines(path)
    check_settings(path, json.loads(head), first)
    return [json.loads(line) for line in lines]


def unstarted(path: pathlib.Path) -> bool:
    """Whether nothing is lost when the file is replaced: it does not exist, or holds no more than settings.

    Raises:
      UserError: the file holds something else.
    """
    if not path.exists():
        return True
    lines = whole_lines(path)
    if lines:
        _settings(path, json.loads(lines[0]))
        return len(lines) == 1
    begun, begins = path.read_bytes(), b'{"settings": '
    if not (begun.startswith(begins) or begins.startswith(begun)):
        raise UserError(f"cannot continue {path}: it is not a file of results, found {begun[:40]!r}")
    return True


def check_settings(path: pathlib.Path, head: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Compares a file's first line with what it would be now.

    Raises:
      UserError: they differ.
    """
    if head != first:
        differ = differences(_settings(path, head), first["settings"]) or ["the task's problems"]
        raise UserError(
            f"{path} was made with other {', '.join(differ)}: use the same settings, or give another file"
        )


@contextlib.contextmanager
def kept(path: pathlib.Path | None) -> Iterator[None]:
    """When the work inside ends early, says that the file keeps its results and how to continue."""
    try:
        yield
    except (KeyboardInterrupt, UserError):
        if path is not None and processes.is_first() and not unstarted(path):
            print_warning(f"the results so far are kept in {path}: the same command with --resume continues")
        raise


def append(path: pathlib.Path, first: Mapping[str, Any], keep: int, lines: Sequence[Mapping[str, Any]]) -> None:
    """Replaces everything after the first `keep` results by these lines, in one replacement of the file."""
    before = whole_lines(path)[: 1 + keep] if keep else [json.dumps(first)]
    write(path, [*before, *map(dump, lines)])


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings that differ, groups by their entries: ["seed (0, now 1)", ...]."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict) and name != "task_options":
            found += differences(before, now, f"{prefix}{name}.")
        elif before != now:
            found.append(f"{prefix}{name} ({json.dumps(before)}, now {json.dumps(now)})")
    return found


def _settings(path: pathlib.Path, head: Mapping[str, Any]) -> dict[str, Any]:
    settings = head.get("settings")
    if not isinstance(settings, dict):
        raise UserError(f"cannot continue {path}: its first line holds no settings, it is not a file of results")
    return settings


def _is_unstarted(path: pathlib.Path) -> bool:
    try:
        return unstarted(path)
    except UserError:
        return False
