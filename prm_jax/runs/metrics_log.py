"""Metrics as JSON lines, one record per call, with optional copies to TensorBoard and Weights & Biases.

The JSON lines are authoritative: they survive a kill, are truncated to the resumed step, and are what plots read. The
other sinks are optional and may fail without stopping a run.
"""

import contextlib
import errno
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prm_jax.errors import StorageError, UserError, require

_LOG = logging.getLogger(__name__)
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Sink(Protocol):
    """A destination for copies of the metrics."""

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Writes one record."""

    def close(self) -> None:
        """Flushes and closes."""


class MetricsLog:
    """Appends records ``{"step": 3, "seconds": 41.2, "policy/loss": 0.1, ...}`` to a file.

    Every record is handed to the operating system before ``log`` returns, so that a killed process loses none; records
    are forced to disk at least every ``fsync_seconds``, and by ``sync`` and ``close``. "seconds" is the time spent in
    the run from a monotonic clock, continued when a run is resumed. Non-finite numbers are written as the strings
    "nan", "inf" and "-inf", because JSON has no such numbers.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        *,
        sinks: Sequence[Callable[[int], Sink]] = (),
        fsync_seconds: float = 30.0,
    ) -> None:
        """Opens `path` for appending; an incomplete last line, left by a kill, is removed.

        Args:
          path: the file; created if missing.
          sinks: functions that receive the first logged step and return a sink; failures only cause a warning.
          fsync_seconds: maximum age in seconds of records that a power failure can lose; 0: none.

        Raises:
          StorageError: the file cannot be written.
        """
        self.path = pathlib.Path(path)
        self._sinks = [GuardedSink(sink) for sink in sinks]
        self._fsync_seconds = fsync_seconds
        with writing(self.path):
            _cut_torn_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        self._start = time.monotonic() - _last_seconds(self.path)
        self._synced = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float | int]:
        """Writes one record; returns its metrics as plain numbers.

        Args:
          step: the training step.
          metrics: {"phase/name": scalar}: numbers, or arrays with one element (fetched from the devices together).
        """
        plain = scalars(metrics)
        seconds = time.monotonic() - self._start
        written = {name: value if math.isfinite(value) else str(value) for name, value in plain.items()}
        with writing(self.path):
            append_json(self._file, {"step": int(step), "seconds": round(seconds, 3), **written})
        if time.monotonic() - self._synced >= self._fsync_seconds:
            self.sync()
        for sink in self._sinks:
            sink.log(step, plain)
        return plain

    def sync(self) -> None:
        """Forces all records to disk; call it before saving a checkpoint that relies on them."""
        with writing(self.path):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def rewind(self, step: int) -> int:
        """Drops the records after `step`; returns their number. Call it on resuming, before the first ``log``."""
        self._file.close()
        dropped = cut_after(self.path, step)
        self._file = self.path.open("a", encoding="utf-8")
        self._start = time.monotonic() - _last_seconds(self.path)
        return dropped

    def close(self) -> None:
        """Syncs, and closes the sinks."""
        try:
            if not self._file.closed:
                self.sync()
                with writing(self.path):
                    self._file.close()
        finally:
            for sink in self._sinks:
                sink.close()


class GuardedSink:
    """A sink, created at its first record, that is disabled with one warning when it fails."""

    def __init__(self, make: Callable[[int], Sink]) -> None:
        self._make: Callable[[int], Sink] | None = make
        self._sink: Sink | None = None

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Forwards a record while the sink works."""
        if self._make is None:
            return
        try:
            if self._sink is None:
                self._sink = self._make(step)
            self._sink.log(step, metrics)
        except Exception as error:  # no exception of a third party may end training
            self._give_up(error)

    def close(self) -> None:
        """Closes the sink if it still works."""
        try:
            if self._sink is not None:
                self._sink.close()
        except Exception as error:
            self._give_up(error)
        self._make = self._sink = None

    def _give_up(self, error: Exception) -> None:
        name = "a metrics sink" if self._sink is None else type(self._sink).__name__
        _LOG.warning("%s failed and is disabled (metrics.jsonl is still written): %s", name, error)
        self._make = self._sink = None


class TensorBoardSink:
    """TensorBoard events through tensorboardX (extra tb)."""

    def __init__(self, directory: str | pathlib.Path, *, first_step: int = 0) -> None:
        """Writes to `directory`; events of an earlier launch at `first_step` and later are purged."""
        writer = require("tensorboardX", "tb").SummaryWriter
        self._writer = writer(str(directory), purge_step=first_step, flush_secs=30)

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Adds one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes."""
        self._writer.close()


class WandbSink:
    """Weights & Biases (extra wandb); its environment variables select project, entity and mode."""

    def __init__(self, directory: str | pathlib.Path, *, run_id: str, config: Mapping[str, Any]) -> None:
        """Starts or continues the run `run_id`."""
        wandb = require("wandb", "wandb")
        project = os.environ.get("WANDB_PROJECT", "prm-jax")
        self._run = wandb.init(
            project=project, id=run_id, name=run_id, dir=str(directory), config=dict(config), resume="allow"
        )

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Logs under the training step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


def read_metrics(path: str | pathlib.Path) -> list[dict[str, float]]:
    """Reads the records of a metrics file; an incomplete last line is ignored.

    Args:
      path: a metrics.jsonl, or a run directory that holds one.

    Raises:
      UserError: the file does not exist, or a line other than the last is not a record (the line number is given).
    """
    path = pathlib.Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        found = "is not a regular file" if path.exists() else "does not exist"
        raise UserError(f"no metrics: {path} {found}")
    records = []
    for record in read_json_lines(path):
        records.append({key: _SPECIAL[v] if isinstance(v, str) else v for key, v in record.items()})
    return records


def read_json_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a JSON-lines file, objects with an integer step; the last line may be incomplete."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("expected an object with an integer step")
        except ValueError as error:
            if number == len(lines):  # no newline at the end: the write was interrupted
                return
            raise UserError(f"{path}:{number}: {error}") from error
        yield record


def append_json(file: Any, record: Mapping[str, Any]) -> None:
    """Writes one record as a line and flushes it to the operating system."""
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    file.flush()


def cut_after(path: pathlib.Path, step: int) -> int:
    """Drops the records after `step` from a JSON-lines file, atomically; returns their number."""
    if not path.is_file():
        return 0
    records = list(read_json_lines(path))
    kept = [record for record in records if record["step"] <= step]
    with atomic_write(path) as file:
        for record in kept:
            append_json(file, record)
    return len(records) - len(kept)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Reports failures to write a file.

    Raises:
      StorageError: the disk is full or read-only, or the file cannot be written for another reason.
    """
    try:
        yield path
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Free some space and run again (a run continues with --resume)" if full else "Check permissions"
        raise StorageError(f"cannot write {path}: {error.strerror or error}. {advice}") from error


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[Any]:
    """Opens a text file that replaces `path` when the block succeeds; otherwise `path` is left unchanged."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with temporary.open("w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def scalars(metrics: Mapping[str, Any]) -> dict[str, float | int]:
    """Metrics as plain numbers, fetched from the devices in one transfer.

    Raises:
      TypeError: a metric is not a scalar.
    """
    jax = sys.modules.get("jax")
    values = list(metrics.values())  # a list: device_get would sort the keys of a dict
    fetched = values if jax is None else jax.device_get(values)
    return {name: _scalar(name, value) for name, value in zip(metrics, fetched, strict=True)}


def _scalar(name: str, value: Any) -> Any:
    if getattr(value, "size", 1) != 1 or isinstance(value, (str, bytes, list, tuple, dict)) or value is None:
        raise TypeError(f"metric {name!r} is not a scalar: {type(value).__name__} {getattr(value, 'shape', '')}")
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, (bool, int)):
        return int(value)
    # Nine digits distinguish all float32 values; more would be noise.
    return float(f"{value:.9g}")


def _cut_torn_line(path: pathlib.Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            file.truncate(whole)


def _last_seconds(path: pathlib.Path) -> float:
    last = None
    for record in read_json_lines(path):
        last = record
    return float(last.get("seconds", 0.0)) if last else 0.0
