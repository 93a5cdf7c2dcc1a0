"""Run directories: the configuration, code versions, host and all results of one run.

RUN/config.yaml      the resolved configuration
RUN/run.json         every launch: time, command, host, versions, git state
RUN/lock             host and process of the job that currently owns the directory
RUN/metrics.jsonl    one record per step
RUN/samples.jsonl    samples with their step rewards; samples.txt and samples.html show the same to a reader
RUN/checkpoints/     checkpoints by step
RUN/phases/NAME/     metrics and checkpoints of a phase before the main one (warm start, PRM warm-up)
RUN/best/            the state of the best evaluation, if it is kept
RUN/bad_steps/       batches whose update was skipped because it was not finite
RUN/plots/           plots
"""

import contextlib
import datetime
import json
import logging
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any

from prm_jax import config_io
from prm_jax.errors import UserError, require
from prm_jax.runs import processes, shared_files
from prm_jax.runs.distributed_options import LAUNCHED
from prm_jax.runs.locks import Lock
from prm_jax.runs.metrics_log import (
    MetricsLog,
    TensorBoardSink,
    WandbSink,
    append_json,
    atomic_write,
    cut_after,
    read_json_lines,
    scalars,
    writing,
)
from prm_jax.runs.samples_page import samples_page
from prm_jax.runs.startup import check_path, check_state, remove_leftovers, remove_unclaimed, unclaimed
from prm_jax.runs.versions import library_versions

FORMAT = 1
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One response, as shown to a reader.

    Attributes:
      prompt: the prompt as text.
      response: the response as text.
      outcome: the verifier's score in [0, 1].
      steps: (text, process reward) of each step of the response; empty without process rewards.
      info: further facts for the reader: the expected answer, step labels, advantages.
      forced: spans of characters of the response that the model did not write, such as outputs of tools.
    """

    prompt: str
    response: str
    outcome: float
    steps: Sequence[tuple[str, float]] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    forced: Sequence[tuple[int, int]] = ()


class RunDir:
    """An open run directory, returned by ``open_run``; a context manager that releases the lock on exit."""

    def __init__(self, path: pathlib.Path, *, resumed: bool, writer: bool) -> None:
        """For internal use: call ``open_run``. `writer`: False in all processes but the first."""
        self.path = path
        self.resumed = resumed
        self.writer = writer
        self._lock: Lock | None = None
        self._metrics: MetricsLog | None = None
        self._claimed = resumed or not writer
        self._made_directory = False
        self._parent: RunDir | None = None

    @property
    def claimed(self) -> bool:
        """Whether a step has completed here; a run that fails earlier removes everything it wrote."""
        return self._claimed

    def claim(self) -> None:
        """Marks the directory as holding results; called when the first step has completed."""
        if self._parent is not None:
            self._parent.claim()
        elif not self._claimed:
            document = _read_document(self.path)
            document["claimed"] = True
            _write_document(self.path, document)
        self._claimed = True

    def phase(self, name: str) -> "RunDir":
        """Opens a phase of the run with its own metrics and checkpoints in RUN/phases/NAME; close it after use."""
        path = self.path / "phases" / name
        inner = RunDir(path, resumed=self.resumed and shared_files.is_dir(path), writer=self.writer)
        inner._parent, inner._claimed = self, self._claimed
        if self.writer:
            path.mkdir(parents=True, exist_ok=True)
            inner._metrics = MetricsLog(path / "metrics.jsonl")
        processes.barrier(f"phase {name}")
        return inner

    @property
    def checkpoints(self) -> pathlib.Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> pathlib.Path:
        """Directory of the plots; created when they are drawn."""
        return self.path / "plots"

    def log(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float | int]:
        """Appends one record to metrics.jsonl and returns it as plain numbers (see ``MetricsLog.log``).

        Log a step before saving its checkpoint: resuming keeps the records up to the checkpoint's step.
        """
        return scalars(metrics) if self._metrics is None else self._metrics.log(step, metrics)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Appends samples to samples.jsonl and to its readable versions samples.txt and samples.html."""
        if not self.writer:
            return
        records = [{"step": int(step), **_jsonable(asdict(sample))} for sample in samples]
        with writing(self.path / "samples.jsonl") as path, path.open("a", encoding="utf-8") as file:
            for record in records:
                append_json(file, record)
        with writing(self.path / "samples.txt") as path, path.open("a", encoding="utf-8") as file:
            file.writelines(_sample_text(record) for record in records)
        self._write_samples_page()

    def _write_samples_page(self) -> None:
        page = samples_page(self.path.name, read_json_lines(self.path / "samples.jsonl"))
        with atomic_write(self.path / "samples.html") as file:
            file.write(page)

    def rewind(self, step: int) -> None:
        """Drops metrics and samples after `step`; call it once, with the restored step (-1: none)."""
        if not self.writer or self._metrics is None:
            return
        self._metrics.rewind(step)
        cut_after(self.path / "samples.jsonl", step)
        samples = self.path / "samples.jsonl"
        if samples.is_file():
            with atomic_write(self.path / "samples.txt") as file:
                file.writelines(_sample_text(record) for record in read_json_lines(samples))
            self._write_samples_page()
        if self._parent is None:
            self.note(resumed_step=step)

    def note(self, **facts: Any) -> None:
        """Records facts about this launch in run.json: ``note(finished=True, reason="interrupted")``."""
        if not self.writer:
            return
        document = _read_document(self.path)
        document["launches"][-1].update(_jsonable(facts))
        _write_document(self.path, document)

    def sync(self) -> None:
        """Forces metrics to disk; call it before saving a checkpoint."""
        if self._metrics is not None:
            self._metrics.sync()

    def close(self) -> None:
        """Closes files and sinks, and releases the lock."""
        metrics, lock, self._metrics, self._lock = self._metrics, self._lock, None, None
        try:
            if metrics is not None:
                metrics.close()
        finally:
            if lock is not None:
                lock.release()

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.writer and not self._claimed and self._parent is None:
            with contextlib.suppress(UserError):  # a full disk must not mask the error that ended the run
                self.close()
            remove_unclaimed(self.path, self._made_directory)
            return
        self.close()


def open_run(
    path: str | pathlib.Path,
    config: Any,
    *,
    resume: bool = False,
    soft: Sequence[str] = (),
    tensorboard: bool = False,
    wandb: bool = False,
    command: Sequence[str] | None = None,
) -> RunDir:
    """Creates a run directory, or opens an existing one to resume its run.

    Of several processes all call this with the same arguments; the first one writes, and the others, which must see the
    same directory, only read.

    Args:
      path: the directory.
      config: nested dataclass; written to config.yaml.
      resume: continue the run in the directory, which must hold one.
      soft: patterns of dotted option names ("steps", "eval.*") that may be changed when the run is resumed; config.yaml
        is then rewritten, and run.json records the change. Any other difference is refused.
      tensorboard: copy metrics to TensorBoard events in RUN/tensorboard (extra tb).
      wandb: copy metrics to Weights & Biases (extra wandb).
      command: the command line to record; default: that of this process.

    Returns:
      The locked directory. With `resume`, ``rewind`` it to the restored step before logging.

    Raises:
      UserError: the directory is not empty (without `resume`) or holds no run (with it), was made with a different
        configuration (the differences are listed), is in use by another job, or cannot be written; or the processes
        have different options, or do not see the same directory. Raised in all processes.
      MissingExtraError: the package of a sink is not installed.
    """
    if LAUNCHED in os.environ:  # launchers on several hosts look at the directory at slightly different times
        resume = processes.broadcast_from_first(resume, name="whether to resume")
    path = check_path(path)
    processes.agree("options", {"run directory": str(path), "resume": resume, **config_io.flatten(config)})

    def opened() -> RunDir:
        return _opened(path, config, resume, soft, tensorboard, wandb, command)

    run = shared_files.by_first(opened, what=f"open the run directory {path}")
    run = RunDir(path, resumed=resume, writer=False) if run is None else run
    with contextlib.ExitStack() as on_failure:
        on_failure.push(run)
        if processes.count() > 1:
            shared_files.check_seen(path)
        on_failure.pop_all()
    return run


def _opened(
    path: pathlib.Path,
    config: Any,
    resume: bool,
    soft: Sequence[str],
    tensorboard: bool,
    wandb: bool,
    command: Sequence[str] | None,
) -> RunDir:
    """``open_run`` in the process that writes."""
    run = RunDir(path, resumed=resume, writer=True)
    if tensorboard:
        require("tensorboardX", "tb")
    if wandb:
        require("wandb", "wandb")
    try:
        check_state(path, resume)
        run._made_directory = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        run._lock = Lock(path / "lock")
        _prepare(run, config, resume, soft, list(sys.argv if command is None else command))
        run._metrics = MetricsLog(path / "metrics.jsonl", sinks=_sinks(path, config, tensorboard, wandb))
    except BaseException as error:
        with contextlib.suppress(OSError, UserError):
            run.close()
            if run._made_directory:
                remove_unclaimed(path, made_directory=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise UserError(f"cannot write to the run directory {path}: {reason}. Choose another --run-dir") from error
        raise
    return run


def _prepare(run: RunDir, config: Any, resume: bool, soft: Sequence[str], command: list[str]) -> None:
    """Cleans a locked directory up, checks the configuration of a resumed run and records the launch."""
    if not resume and unclaimed(run.path):
        remove_unclaimed(run.path, made_directory=False, keep_lock=True)
    remove_leftovers(run.path)
    changes = _check_config(run.path, config, soft) if resume else {}
    _record_launch(run.path, config, changes, resume, command)


def unique_run_path(root: str | pathlib.Path, stem: str) -> pathlib.Path:
    """A path under `root` that does not exist yet: stem-20250131-235959, with -2, -3, ... appended if needed."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = pathlib.Path(root) / f"{stem}-{stamp}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def shared_run_path(root: str | pathlib.Path, stem: str) -> pathlib.Path:
    """``unique_run_path`` of the first process, in every process."""
    path = str(unique_run_path(root, stem)) if processes.is_first() else ""
    return pathlib.Path(processes.broadcast_from_first(path, name="name of the run directory"))


def git_state(directory: str | pathlib.Path) -> dict[str, Any] | None:
    """{"commit": ..., "branch": ..., "dirty": ...} of the checkout that contains a directory; None without git."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(directory), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _check_config(path: pathlib.Path, config: Any, soft: Sequence[str]) -> dict[str, tuple[str, str]]:
    changes = config_io.differences((path / "config.yaml").read_text(encoding="utf-8"), config)
    hard = {name for name in changes if not any(fnmatchcase(name, pattern) for pattern in soft)}
    if hard:
        width = max(len(name) for name in hard)
        lines = (f"  {name:<{width}}  {changes[name][0]} -> {changes[name][1]}" for name in sorted(hard))
        listed = "\n".join(lines)
        allowed = ", ".join(soft) or "nothing"
        raise UserError(
            f"{path} was made with a different configuration:\n{listed}\n"
            f"Resume it with its own (omit these options), or start a new run. Options that may change: {allowed}"
        )
    return changes


def _record_launch(
    path: pathlib.Path, config: Any, changes: Mapping[str, Any], resume: bool, command: list[str]
) -> None:
    versions = library_versions()
    launch: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "directory": os.getcwd(),
        "host": platform.node(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "versions": versions,
        "git": git_state(pathlib.Path(__file__).parent),
        "config_hash": config_io.config_hash(config),
    }
    document: dict[str, Any] = {"format": FORMAT, "claimed": False, "launches": []}
    if resume:
        document = _read_document(path)
        launch["config_changes"] = {name: list(pair) for name, pair in changes.items()}
        launch["version_changes"] = _version_changes(document["launches"], versions)
    document["launches"].append(launch)
    with atomic_write(path / "config.yaml") as file:
        file.write(config_io.to_yaml(config))
    _write_document(path, document)


def _version_changes(launches: list[dict[str, Any]], versions: Mapping[str, str]) -> dict[str, list[str | None]]:
    before = launches[-1].get("versions", {}) if launches else {}
    names = [name for name in {**before, **versions} if before.get(name) != versions.get(name)]
    changed = {name: [before.get(name), versions.get(name)] for name in names}
    if changed and launches:
        listed = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
        _LOG.warning("library versions have changed since the run was saved: %s; results may differ", listed)
    return changed


def _read_document(path: pathlib.Path) -> dict[str, Any]:
    try:
        document = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'run.json'} cannot be read: {error}") from error
    if document.get("format") != FORMAT:
        found = document.get("format")
        raise UserError(f"{path / 'run.json'} has format {found}; this version of prm-jax reads format {FORMAT}")
    return document


def _write_document(path: pathlib.Path, document: Mapping[str, Any]) -> None:
    with atomic_write(path / "run.json") as file:
        json.dump(document, file, indent=2)
        file.write("\n")


def _sinks(path: pathlib.Path, config: Any, tensorboard: bool, wandb: bool) -> list[Any]:
    sinks: list[Any] = []
    if tensorboard:
        sinks.append(lambda step: TensorBoardSink(path / "tensorboard", first_step=step))
    if wandb:
        flat = config_io.flatten(config)
        sinks.append(lambda step: WandbSink(path, run_id=path.resolve().name, config=flat))
    return sinks


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(leaf) for key, leaf in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(leaf) for leaf in value]
    if hasattr(value, "tolist"):  # numpy and jax scalars and arrays
        return _jsonable(value.tolist())
    if isinstance(value, float) and value - value != 0:  # JSON has no non-finite numbers
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _sample_text(record: Mapping[str, Any]) -> str:
    lines = [f"=== step {record['step']}   outcome {record['outcome']}", record["prompt"].rstrip(), "--- response"]
    for text, reward in record["steps"]:
        shown = text.strip("\n").split("\n")
        lines += [f"{_signed(reward):>9} | {shown[0]}", *(f"{'':>9} | {line}" for line in shown[1:])]
    if not record["steps"]:
        lines.append(record["response"].rstrip())
    lines += [f"--- {name}: {value}" for name, value in record["info"].items()]
    return "\n".join(lines) + "\n\n"


def _signed(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:+.4f}"
