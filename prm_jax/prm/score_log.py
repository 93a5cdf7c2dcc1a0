"""Scores that are written as they come, so that an interrupted call continues where it stopped.

Of several processes each scores its share of the solutions, and the first one writes.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from prm_jax.data.step_data import StepRecord, to_json
from prm_jax.errors import UserError
from prm_jax.models.hub import find_model
from prm_jax.prm.reward_model_options import ScoringOptions
from prm_jax.prm.rows import Row
from prm_jax.prm.score import PRM, Raw, Scored, check_aggregate, raw_scores, rows_to_score, summarise
from prm_jax.runs import processes
from prm_jax.runs.metrics_log import atomic_write

_ROUND = 64
"""Solutions that each of several processes scores before they exchange what they have; an interruption loses these."""


class ScoreLog:
    """Raw scores of solutions in a file of JSON lines; a context manager. Only the first process reads and writes it.

    Attributes:
      known: number of the record -> what an earlier call with the same identity has scored.

    Args:
      path: the file; it is removed by `finish`.
      identity: what determines the scores; a file of another identity is replaced.
      resume: use what is there.
    """

    def __init__(self, path: pathlib.Path, identity: str, *, resume: bool) -> None:
        self.path = path
        self.known: dict[int, Raw] = _read(path, identity) if resume and processes.is_first() else {}
        self._file: Any = None
        if not processes.is_first():
            return
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
        if self._file is not None:
            self._file.close()

    def add(self, found: Mapping[int, Raw]) -> None:
        """Appends the scores of a batch."""
        if self._file is None:
            return
        for index, raw in found.items():
            self._file.write(_line(index, raw))
        self._file.flush()

    def finish(self) -> None:
        """Removes the file: everything that it holds is written elsewhere."""
        if self._file is not None:
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

    Collective with several processes, which divide the solutions and all get all scores.

    Args:
      prm: the model.
      records: at least one.
      log: open.
      options: aggregate, cumulative, skip_long and max_tokens are read.
      on_batch: called with (number of solutions done, their total number).
    """
    check_aggregate(prm, options.aggregate)
    rows = rows_to_score(prm, records, skip_long=options.skip_long)
    known = _sent(processes.broadcast_from_first(_plain(log.known), name="scores of an earlier call"))
    found: dict[int, Raw] = {row.record: known[row.record] for row in rows if row.record in known}
    on_batch(len(found), len(rows))
    left = [row for row in rows if row.record not in found]
    if processes.count() > 1:
        left.sort(key=lambda row: -len(row.tokens))  # a round has solutions of similar length
    for part in _rounds(prm, left, records, options.max_tokens):
        log.add(part)
        found |= part
        on_batch(len(found), len(rows))
    return summarise(prm, records, found, aggregate=options.aggregate, cumulative=options.cumulative)


def _rounds(
    prm: PRM, rows: Sequence[Row], records: Sequence[StepRecord], max_tokens: int
) -> Iterator[dict[int, Raw]]:
    """Raw scores, batch by batch; with several processes in rounds, of which each process scores its share."""
    if processes.count() == 1:
        yield from raw_scores(prm, rows, records, max_tokens=max_tokens)
        return
    size = _ROUND * processes.count()
    for start in range(0, len(rows), size):
        members = rows[start : start + size]
        own: dict[int, Raw] = {}
        for part in raw_scores(prm, members[processes.share(len(members))], records, max_tokens=max_tokens):
            own |= part
        found: dict[int, Raw] = {}
        for sent in processes.gather(_plain(own), name="scores"):
            found |= _sent(sent)
        yield found


def _plain(found: Mapping[int, Raw]) -> list[Any]:
    return [(index, np.asarray(scores), dict(facts)) for index, (scores, facts) in found.items()]


def _sent(plain: Sequence[Any]) -> dict[int, Raw]:
    return {index: (scores, facts) for index, scores, facts in plain}


def identity_of(model: str, options: ScoringOptions, records: Sequence[StepRecord]) -> str:
    """Fingerprint of what determines raw scores: the files of the model and its reference, how they are read, the data.

    Weights count by name, size and time of change.
    """
    digest = hashlib.blake2b(digest_size=16)
    reading = (options.layout, options.convention, options.dtype, options.quantize, options.quantization)
    digest.update(repr(reading).encode())
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
