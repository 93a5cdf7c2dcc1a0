"""Runs experiments of a list of claims again and compares every number with the stored results."""

import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from prm_jax.errors import UserError
from prm_jax.runs.claims import Claim, read_results

_DIGITS = 2e-3
"""Relative difference that counts as equal: results keep five digits, and other processors round differently."""


def rerun(claims: Sequence[Claim], folder: pathlib.Path, *, root: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Runs each experiment of the claims once, with ``--out`` in a temporary directory.

    Args:
      claims: those whose experiments to run; claims that share results share a run.
      folder: where the stored results are.
      root: directory in which the commands run.

    Yields:
      (file of results, differences in words) after each run. A number differs if it is off by more than 0.2 % of the
      larger of the two and, where there are intervals, the new value lies outside the stored interval.

    Raises:
      UserError: a command fails, or has no ``--out DIRECTORY``.
    """
    for results, command in dict.fromkeys((claim.results, claim.command) for claim in claims if claim.results):
        with tempfile.TemporaryDirectory() as where:
            again = run_command(command, pathlib.Path(where), root) / pathlib.PurePath(results).name
            stored, found = (read_results(path, command) for path in (folder / results, again))
        yield results, differences(stored.get("tables"), found.get("tables"))


def run_command(command: str, out: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """Runs the command of a claim with its ``--out`` replaced; returns `out`."""
    words = shlex.split(command)
    if words[0] != "python" or "--out" not in words[:-1]:
        raise UserError(f"cannot run {command!r} again: expected python ... --out DIRECTORY")
    words[words.index("--out") + 1] = str(out)
    done = subprocess.run([sys.executable, *words[1:]], cwd=root, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"{command} failed with exit code {done.returncode}: {last[0]}")
    return out


def differences(stored: Any, found: Any, path: str = "") -> list[str]:
    """Where two trees of numbers differ, in words."""
    if isinstance(stored, dict) and isinstance(found, dict):
        problems = [f"{path}{key}: only in one of the two" for key in stored.keys() ^ found.keys()]
        for key in stored.keys() & found.keys():
            problems += differences(stored[key], found[key], f"{path}{key} > ")
        return sorted(problems)
    old, low, high = stored if isinstance(stored, list) else (stored, stored, stored)
    new = found[0] if isinstance(found, list) else found
    if abs(new - old) <= _DIGITS * max(abs(new), abs(old)) or (low < high and low <= new <= high):
        return []
    return [f"{path.removesuffix(' > ')}: {old:g} before, {new:g} now"]
