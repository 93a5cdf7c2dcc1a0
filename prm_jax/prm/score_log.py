"""Scores that are written as they come, so that an interrupted call continues where it stopped."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from prm_jax.data.step_data import StepRecord, to_json
from prm_jax.errors import UserError
from prm_jax.models.hub import find_model
from prm_jax.prm.reward_model_options import ScoringOptions
from prm_jax.prm.score import PRM, Raw, Scored, check_aggregate, raw_scores, rows_to_score, summarise
from prm_jax.runs.metrics_log import atomic_write


class ScoreLog:
    """Raw scores of solutions in a file of JSON lines; a context manager.

    Attributes:
      known: number of the record -> what an earlier call with the same identity has scored.

    Args:
      path: the file; it is removed by `finish`.
      identity: what determines the scores; a file of another identity is replaced.
      resume: use what is there.
    """

    def __init__(self, path: pathlib.Path, identity: str, *, resume: bool) -> None:
        self.path = path
        self.known: dict[int, Raw] = _read(path, identity) if resume else {}
        try:
            with atomic_write(path) as file:  # without a last line that was cut off
                file.write(json.dumps({"identity": identity}) + "\n")
                for index, raw in self.known.items():
                    file.write(_line(index, raw))
            self._file = open(path, "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error

    def __enter__(self) -> "ScoreLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file, which stays for the next call."""
        self._file.close()

    def add(self, found: Mapping[int, Raw]) -> None:
        """Appends the scores of a batch."""
        for index, raw in found.items():
            self._file.write(_line(index, raw))
        self._file.flush()

    def finish(self) -> None:
        """Removes the file: everything that it holds is written elsewhere."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def score_logged(
    prm: PRM,
    records: Sequence[StepRecord],
    log: ScoreLog,
    options: ScoringOptions,
    *,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scored]:
    """As ``score_solutions``, writing what is scored into a log and leaving out what the log knows already.

    Args:
      prm: the model.
      records: at least one.
      log: open.
      options: aggregate, cumulative, skip_long and max_tokens are read.
      on_batch: called with (number of solutions done, their total number).
    """
    check_aggregate(prm, options.aggregate)
    rows = rows_to_score(prm, records, skip_long=options.skip_long)
    found: dict[int, Raw] = {row.record: log.known[row.record] for row in rows if row.record in log.known}
    on_batch(len(found), len(rows))
    left = [row for row in rows if row.record not in found]
    for part in raw_scores(prm, left, records, max_tokens=options.max_tokens):
        log.add(part)
        found |= part
        on_batch(len(found), len(rows))
    return summarise(prm, records, found, aggregate=options.aggregate, cumulative=options.cumulative)


def identity_of(model: str, options: ScoringOptions, records: Sequence[StepRecord]) -> str:
    """Fingerprint of what determines raw scores: the files of the model and its reference, how they are read, the data.

    Weights count by name, size and time of change.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((options.layout, options.convention, options.dtype)).encode())
    for name in filter(None, (model, options.reference)):
        directory = find_model(name)
        for path in sorted(directory.rglob("*")) if directory.is_dir() else [directory]:
            if path.is_file():
                facts = os.stat(path)
                digest.update(repr((str(path), facts.st_size, facts.st_mtime_ns)).encode())
    for record in records:
        digest.update(json.dumps(to_json(record), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _line(index: int, raw: Raw) -> str:
    scores, facts = raw
    line: dict[str, Any] = {"index": index, "scores": scores.tolist()}
    if facts:
        line["facts"] = {name: value.tolist() for name, value in facts.items()}
    return json.dumps(line, allow_nan=False) + "\n"


def _read(path: pathlib.Path, identity: str) -> dict[int, Raw]:
    """What the log holds; {} without one, or where it belongs to something else. A line that was cut off is ignored."""
    try:
        first, *lines = path.read_text(encoding="utf-8").split("\n")[:-1] or [""]
        if json.loads(first) != {"identity": identity}:
            return {}
    except (OSError, ValueError):
        return {}
    found: dict[int, Raw] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            facts = {name: np.asarray(value, np.float32) for name, value in entry.get("facts", {}).items()}
            found[int(entry["index"])] = (np.asarray(entry["scores"], np.float32), facts)
        except (ValueError, KeyError, TypeError, AttributeError):
            break
    return found
