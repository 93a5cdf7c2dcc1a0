"""JSON-lines files that grow while a command runs and that it can go on with.

The first line holds the settings that made the file, and what was asked of which problems; the lines behind it are
results. A last line that was cut off counts as not written.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from prm_jax.errors import UserError

OPTIONS_OF_THE_FILE = ("out", "resume")
"""Options that say where results go, not what they are."""


def header(options: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """The first line: the options that determine the results, as JSON values, and the task's fingerprint."""
    plain = {name: value for name, value in options.items() if name not in OPTIONS_OF_THE_FILE}
    return json.loads(json.dumps({"settings": plain, "task": fingerprint}, default=str))


def begin(path: pathlib.Path, first: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Opens a file, or goes on with it.

    Args:
      path: where results go.
      first: from `header`.

    Returns:
      The results that are already there.

    Raises:
      UserError: the file was made with other settings, which are named with both values, or cannot be read.
    """
    lines = [json.loads(line) for line in whole_lines(path)] if path.exists() else []
    if not lines:  # or stopped before the first line was whole
        write(path, [json.dumps(first)])
        return []
    head, *lines = lines
    if head != first:
        settings = head.get("settings")
        if not isinstance(settings, dict):
            raise UserError(f"cannot go on with {path}: its first line holds no settings, it is no file of results")
        differ = differences(settings, first["settings"]) or ["the task's problems"]
        raise UserError(
            f"{path} was made with other {', '.join(differ)}: go on with the same, or give another file for the results"
        )
    return lines


def append(path: pathlib.Path, first: Mapping[str, Any], keep: int, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes lines behind the first `keep` results, in one replacement of the file; behind none, begins it anew."""
    kept = whole_lines(path)[: 1 + keep] if keep else [json.dumps(first)]
    write(path, [*kept, *(json.dumps(line, ensure_ascii=False) for line in lines)])


def write(path: pathlib.Path, lines: Sequence[str]) -> None:
    """Replaces the file as a whole, so that it is never seen half written."""
    partial = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from error


def whole_lines(path: pathlib.Path) -> list[str]:
    """The lines of the file, less a last one without its end.

    Raises:
      UserError: the file cannot be read, or a line is no JSON object.
    """
    try:
        lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]  # what was cut off may end within a letter
        for line in lines:
            if not isinstance(json.loads(line), dict):
                raise ValueError(f"expected JSON objects, found {line[:60]!r}")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot go on with {path}: {error}") from error
    return lines


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
