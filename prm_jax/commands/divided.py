"""Problems divided between processes: each works on its share with the randomness of its place among all of them, and
the first one reads and writes files.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from prm_jax.commands import results
from prm_jax.runs import processes, shared_files

T = TypeVar("T")


def shares(items: Sequence[Any], number: int, work: Callable[[Sequence[Any], int], T]) -> list[T]:
    """The results of every process's share, in order, in every process.

    Args:
      items: of all processes, the same in each.
      number: place of the first item among those of the whole run.
      work: ``(items, place of the first) -> result`` as JSON values; called unless the share is empty.
    """
    own = processes.share(len(items))
    if processes.count() == 1:
        return [work(items, number)]
    found = [work(items[own], number + own.start)] if own.start < own.stop else []
    sent = processes.gather(json.dumps(found), name="results of problems")
    return [result for text in sent for result in json.loads(text)]


def known(read: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What `read` finds in the first process's files, in every process."""
    found = shared_files.by_first(read, what="read the results so far")
    return processes.broadcast_from_first(found, name="results so far") or []


def begin(path: pathlib.Path, first: Mapping[str, Any]) -> None:
    """`results.begin` in the first process."""
    shared_files.by_first(functools.partial(results.begin, path, first), what=f"write {path}")


def append(path: pathlib.Path, first: Mapping[str, Any], keep: int, lines: Sequence[Mapping[str, Any]]) -> None:
    """`results.append` in the first process."""
    shared_files.by_first(functools.partial(results.append, path, first, keep, lines), what=f"write {path}")
