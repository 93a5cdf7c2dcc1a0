"""Metrics as JSON lines, one record a call, and optional copies to TensorBoard and Weights & Biases.

The JSON lines are the truth: they survive a kill, are cut back to the resumed step, and are what plots
read. The other sinks are conveniences that may fail without stopping anything.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prm_jax.errors import UserError, require

_LOG = logging.getLogger(__name__)
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Sink(Protocol):
    """Where a copy of the metrics goes."""

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Takes one record."""

    def close(self) -> None:
        """Flushes and ends."""


class MetricsLog:
    """Appends records ``{"step": 3, "seconds": 41.2, "policy/loss": 0.1, ...}`` to a file.

    Every record reaches the operating system before ``log`` returns, so that a killed process loses none;
    it is forced to the disk at least every ``fsync_seconds``, at ``sync`` and at ``close``. "seconds" is
    the time spent in the run, continued over resumes, from a monotonic clock. Non-finite numbers are
    written as the strings "nan", "inf" and "-inf", for JSON has none.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        *,
        sinks: Sequence[Callable[[int], Sink]] = (),
        fsync_seconds: float = 30.0,
    ) -> None:
        """Opens `path` for appending; a torn last line, left by a kill, is cut off.

        Args:
          path: the file; created when absent.
          sinks: each is called with the first logged step and makes a sink; it may fail without harm.
          fsync_seconds: longest time that written records may be lost to a power failure; 0: none.

        Raises:
          UserError: the file cannot be written.
        """
        self.path = pathlib.Path(path)
        self._sinks = [GuardedSink(sink) for sink in sinks]
        self._fsync_seconds = fsync_seconds
        try:
            _cut_torn_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write metrics to {self.path}: {error.strerror}") from error
        self._start = time.monotonic() - _last_seconds(self.path)
        self._synced = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float | int]:
        """Writes one record; returns its metrics as plain numbers.

        Args:
          step: the training step.
          metrics: {"phase/name": scalar}: numbers, or arrays of one element (fetched from the devices
            together).
        """
        plain = scalars(metrics)
        seconds = time.monotonic() - self._start
        written = {name: value if math.isfinite(value) else str(value) for name, value in plain.items()}
        append_json(self._file, {"step": int(step), "seconds": round(seconds, 3), **written})
        if time.monotonic() - self._synced >= self._fsync_seconds:
            self.sync()
        for sink in self._sinks:
            sink.log(step, plain)
        return plain

    def sync(self) -> None:
        """Forces what was written to the disk; call it before a checkpoint that counts on it."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def rewind(self, step: int) -> int:
        """Drops the records after `step`; returns how many. Call it on resuming, before the first ``log``."""
        self._file.close()
        dropped = cut_after(self.path, step)
        self._file = self.path.open("a", encoding="utf-8")
        self._start = time.monotonic() - _last_seconds(self.path)
        return dropped

    def close(self) -> None:
        """Syncs, and closes the sinks."""
        if not self._file.closed:
            self.sync()
            self._file.close()
        for sink in self._sinks:
            sink.close()


class GuardedSink:
    """A sink made at its first record, which may fail: one warning, and then it is left alone."""

    def __init__(self, make: Callable[[int], Sink]) -> None:
        self._make: Callable[[int], Sink] | None = make
        self._sink: Sink | None = None

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Passes a record on while the sink works."""
        if self._make is None:
            return
        try:
            if self._sink is None:
                self._sink = self._make(step)
            self._sink.log(step, metrics)
        except Exception as error:  # whatever a third party throws must not end training
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
        name = "a sink of metrics" if self._sink is None else type(self._sink).__name__
        _LOG.warning("%s failed and is switched off (metrics.jsonl goes on): %s", name, error)
        self._make = self._sink = None


class TensorBoardSink:
    """TensorBoard events through tensorboardX (extra tb)."""

    def __init__(self, directory: str | pathlib.Path, *, first_step: int = 0) -> None:
        """Writes to `directory`; events at `first_step` and later, left by an earlier launch, are purged."""
        writer = require("tensorboardX", "tb").SummaryWriter
        self._writer = writer(str(directory), purge_step=first_step, flush_secs=30)

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Adds one scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes."""
        self._writer.close()


class WandbSink:
    """Weights & Biases (extra wandb); its environment variables choose project, entity and mode."""

    def __init__(self, directory: str | pathlib.Path, *, run_id: str, config: Mapping[str, Any]) -> None:
        """Starts the run `run_id`, or goes on with it."""
        wandb = require("wandb", "wandb")
        project = os.environ.get("WANDB_PROJECT", "prm-jax")
        self._run = wandb.init(
            project=project, id=run_id, name=run_id, dir=str(directory), config=dict(config), resume="allow"
        )

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Logs under the training step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def read_metrics(path: str | pathlib.Path) -> list[dict[str, float]]:
    """Reads the records of a metrics file; a torn last line is left out.

    Args:
      path: a metrics.jsonl, or a run directory that holds one.

    Raises:
      UserError: no such file, or a line in its middle is no record (named by number).
    """
    path = pathlib.Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"no metrics: {path} does not exist")
    records = []
    for record in read_json_lines(path):
        records.append({key: _SPECIAL[v] if isinstance(v, str) else v for key, v in record.items()})
    return records


def read_json_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON-lines file whose records carry a step; the last line may be torn."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("no object with an integer step")
        except ValueError as error:
            if number == len(lines):  # not ended by a newline: the write was cut short
                return
            raise UserError(f"{path}:{number}: {error}") from error
        yield record


def append_json(file: Any, record: Mapping[str, Any]) -> None:
    """Writes one record as a line and hands it to the operating system."""
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    file.flush()


def cut_after(path: pathlib.Path, step: int) -> int:
    """Drops the records after `step` from a JSON-lines file, atomically; returns how many."""
    if not path.is_file():
        return 0
    records = list(read_json_lines(path))
    kept = [record for record in records if record["step"] <= step]
    with atomic_write(path) as file:
        for record in kept:
            append_json(file, record)
    return len(records) - len(kept)


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[Any]:
    """Opens a text file that takes `path`'s place when the block ends well, and leaves it alone otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def scalars(metrics: Mapping[str, Any]) -> dict[str, float | int]:
    """Metrics as plain numbers, fetched from the devices in one go.

    Raises:
      TypeError: a metric is no scalar.
    """
    jax = sys.modules.get("jax")
    values = list(metrics.values())  # a list: device_get would sort the keys of a dict
    fetched = values if jax is None else jax.device_get(values)
    return {name: _scalar(name, value) for name, value in zip(metrics, fetched, strict=True)}


def _scalar(name: str, value: Any) -> Any:
    if getattr(value, "size", 1) != 1 or isinstance(value, (str, bytes, list, tuple, dict)) or value is None:
        raise TypeError(f"metric {name!r} is no scalar: {type(value).__name__} {getattr(value, 'shape', '')}")
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, (bool, int)):
        return int(value)
    # Nine digits tell every float32 apart; more would only be noise in the file.
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
