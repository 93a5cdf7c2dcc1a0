"""The command that a launcher starts in every process: how it is resumed, and how far it has come."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from prm_jax.runs.restarts import Progress


@dataclasses.dataclass(frozen=True)
class Job:
    """A command, with the place that it writes to where it can be resumed.

    Attributes:
      program: what is executed, such as ``(sys.executable, "-m", "prm_jax")``.
      words: its arguments.
      run_dir: run directory of a training command; None: it has none.
      results: files that the command continues with ``--resume``, which it takes whether they exist or not.
    """

    program: tuple[str, ...]
    words: tuple[str, ...]
    run_dir: pathlib.Path | None = None
    results: tuple[pathlib.Path, ...] = ()

    def command(self) -> list[str]:
        """The command line of the next attempt: with ``--resume`` once there is something to continue."""
        resume = ["--resume"] if self.begun() and "--resume" not in self.words else []
        return [*self.program, *self.words, *resume]

    def begun(self) -> bool:
        """Whether there may be something to continue: a run that has completed a step, or files of results."""
        return bool(self.results) or (self.run_dir is not None and _claimed(self.run_dir))

    def progress(self) -> Progress:
        """Folder of checkpoints -> newest complete step, and file of results -> size."""
        found = {str(path): path.stat().st_size for path in self.results if path.is_file()}
        if self.run_dir is not None:
            for pattern in ("checkpoints", "phases/*/checkpoints", "*/checkpoints", "*/phases/*/checkpoints"):
                found |= {str(folder): _newest_step(folder) for folder in self.run_dir.glob(pattern)}
        return {name: step for name, step in found.items() if step >= 0}


def option_value(words: Sequence[str], name: str) -> str | None:
    """The value of ``--name`` among the words of a command; None where it is not given."""
    spellings = (f"--{name}", f"--{name.replace('-', '_')}")
    found = None
    for position, word in enumerate(words):
        head, equals, value = word.partition("=")
        if head in spellings:
            found = value if equals else words[position + 1] if position + 1 < len(words) else None
    return found


def _claimed(run_dir: pathlib.Path) -> bool:
    """Whether a step has completed there, so that the run can only be resumed."""
    try:
        document = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        return (run_dir / "config.yaml").is_file() and document.get("claimed", True) is not False
    except (OSError, ValueError, AttributeError):
        return False


def _newest_step(folder: pathlib.Path) -> int:
    """The newest step whose checkpoint is complete, as `Checkpointer.steps` finds it; -1: none."""
    try:
        names = [entry.name for entry in folder.iterdir() if (entry / "state").is_dir() and (entry / "meta").is_dir()]
    except OSError:  # removed meanwhile
        return -1
    return max((int(name) for name in names if name.isdecimal() and str(int(name)) == name), default=-1)
