"""Checks and clean-up of a run directory before a run starts in it."""

import json
import os
import pathlib
import re
import shutil

from prm_jax.errors import UserError

_OWN = (
    "run.json", "config.yaml", "metrics.jsonl", "samples.jsonl", "samples.txt", "samples.html", "lock",
    "checkpoints", "phases", "start", "bad_steps", "tensorboard", "best",
)  # fmt: skip
"""Names that a run may write before its first step has completed."""

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.((?P<kind>new|old)\.[0-9a-f]{12}|\d+\.tmp)")
"""Temporary files and directories next to what they replace, which a kill can leave."""


def check_path(path: str | pathlib.Path) -> pathlib.Path:
    """Checks that a run directory has a name that all libraries can handle.

    Raises:
      UserError: not UTF-8 (checkpoints could not be written), a name that the file system cannot represent, or a
        working directory that has been removed.
    """
    try:
        absolute = pathlib.Path(path).absolute()
        str(absolute).encode("utf-8")
        os.fsencode(absolute)
        absolute.lstat()
    except FileNotFoundError as error:
        if error.filename is None:
            raise UserError("the working directory no longer exists: change to one that does") from error
    except UnicodeError as error:
        raise UserError(
            f"the path of the run directory {str(path)!r} is not valid UTF-8, which checkpoints need: choose another "
            "directory (--run-dir), or set LC_ALL to a UTF-8 locale"
        ) from error
    except OSError as error:
        raise UserError(f"cannot use the run directory {str(path)[:200]}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"the path of the run directory {str(path)!r} is not valid: {error}") from error
    return pathlib.Path(path)


def check_state(path: pathlib.Path, resume: bool) -> None:
    """Checks that a directory is free for a new run, or holds one to resume.

    Raises:
      UserError: it is a file, is not empty (without `resume`), or holds no run (with it).
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; expected a directory for the run (--run-dir)")
    holds_run = (path / "run.json").is_file() and (path / "config.yaml").is_file()
    if resume and not holds_run:
        what = "holds no run" if path.is_dir() else "does not exist"
        raise UserError(f"nothing to resume: {path} {what}. Leave out --resume to start a run there")
    if not resume and path.is_dir() and any(p.name != "lock" for p in path.iterdir()) and not unclaimed(path):
        hint = "add --resume to continue it, or choose" if holds_run else "choose"
        what = "already holds a run" if holds_run else "is not empty"
        raise UserError(f"{path} {what}: {hint} another directory")


def unclaimed(path: pathlib.Path) -> bool:
    """Whether a directory holds only the files of a run that never completed a step."""
    own = all(entry.name in _OWN or _LEFTOVER.fullmatch(entry.name) for entry in path.iterdir())
    if not own or not (path / "run.json").is_file():
        return False
    try:
        return json.loads((path / "run.json").read_text(encoding="utf-8")).get("claimed") is False
    except (OSError, ValueError, AttributeError):
        return False


def remove_unclaimed(path: pathlib.Path, made_directory: bool, *, keep_lock: bool = False) -> None:
    """Removes what a run wrote before its first step; other files stay."""
    if not path.is_dir():
        return
    remove_leftovers(path, restore=False)
    for name in _OWN:
        if name != "lock" or not keep_lock:
            _remove(path / name)
    if made_directory and not any(path.iterdir()):
        path.rmdir()


def remove_leftovers(path: pathlib.Path, *, restore: bool = True) -> None:
    """Removes temporary files and directories that a killed run left.

    Args:
      path: the run directory.
      restore: put a model back that was being replaced and is missing.
    """
    for entry in path.iterdir():
        found = _LEFTOVER.fullmatch(entry.name)
        if found is None:
            continue
        target = path / found["name"]
        if restore and found["kind"] == "old" and not target.exists():  # killed between two renames
            entry.rename(target)
        else:
            _remove(entry)


def _remove(entry: pathlib.Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
