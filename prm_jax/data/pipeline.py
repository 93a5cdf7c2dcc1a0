"""Prompts in a random order that one integer determines, and the buffer of prompts that a filter put back.

The stream has no state: which prompts stand at positions [cursor, cursor + n) depends on the seed alone, so
one global cursor in a checkpoint resumes it exactly, on any number of processes.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from prm_jax.data.problems import Problem, fingerprint
from prm_jax.errors import UserError


class PromptStream:
    """An endless stream of problems; each epoch is a permutation of its own.

    Backed by ``grain.MapDataset``: ``source -> seed -> shuffle -> repeat``, read by index.

    Args:
      problems: a non-empty sequence; read by index, so it may be lazy.
      seed: of the order, in [0, 2**32).
      shuffle: False keeps the order of ``problems`` in every epoch.

    Raises:
      UserError: for an empty sequence or a seed out of range.
    """

    def __init__(self, problems: Sequence[Problem], seed: int = 0, *, shuffle: bool = True) -> None:
        if not len(problems):
            raise UserError("there are no problems to draw prompts from; check the task's files and its split")
        if not 0 <= seed < 2**32:
            raise UserError(f"the seed of the prompt order must be in [0, 2**32), found {seed}")
        self.problems = problems
        self.seed = seed
        self.shuffle = shuffle

    @functools.cached_property
    def dataset(self) -> Any:
        """The ``grain.MapDataset`` of problem indices behind the stream; for transformations of one's own."""
        import grain  # takes over a second to import, which a listing of options should not wait for

        indices = grain.MapDataset.range(len(self.problems)).seed(self.seed)
        return (indices.shuffle() if self.shuffle else indices).repeat()

    def indices(self, cursor: int, n: int) -> list[int]:
        """The indices into ``problems`` at positions [cursor, cursor + n)."""
        if cursor < 0 or n < 0:
            raise ValueError(f"cursor and n must not be negative, found {cursor} and {n}")
        return [int(self.dataset[position]) for position in range(cursor, cursor + n)]

    def at(self, positions: Sequence[int]) -> list[Problem]:
        """The problems at these positions of the stream."""
        return [self.problems[int(self.dataset[position])] for position in positions]

    def take(self, cursor: int, n: int, *, process_index: int = 0, process_count: int = 1) -> tuple[list[Problem], int]:
        """The problems at positions [cursor, cursor + n), and the cursor behind them.

        Args:
          cursor: the global position; 0 at the start of training.
          n: how many problems all processes take together.
          process_index, process_count: this process gets the ``process_index``-th of equal contiguous
            slices; the slices of all processes, joined, do not depend on their number.

        Returns:
          (problems, new cursor); the new cursor is the same on every process.

        Raises:
          UserError: when n does not divide among the processes.
        """
        if n % process_count:
            raise UserError(f"{n} prompts a step do not divide among {process_count} processes")
        share = n // process_count
        start = cursor + process_index * share
        return [self.problems[index] for index in self.indices(start, share)], cursor + n

    def epoch(self, cursor: int) -> int:
        """How many times every problem has been passed at this cursor."""
        return cursor // len(self.problems)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the problems, the seed and the first positions of the order.

        The positions are in it because the order comes from grain: a version of grain that shuffled in
        another way would be found out, and not silently repeat some prompts and skip others.
        """
        return fingerprint(self.problems, self.seed, self.shuffle, self.indices(0, min(64, 2 * len(self.problems))))


@dataclasses.dataclass(frozen=True)
class PromptBuffer:
    """Where a run stands in its prompt stream: the cursor, and prompts that were drawn but not used.

    A value, not a container: every method returns a new buffer, so a step that fails has not lost its
    prompts.  Prompts are kept as positions in the stream, which is all that a checkpoint needs.

    Attributes:
      cursor: the position of the next prompt never drawn.
      pending: positions drawn earlier, to be drawn again first.
    """

    cursor: int = 0
    pending: tuple[int, ...] = ()

    def draw(self, stream: PromptStream, n: int) -> tuple[list[int], list[Problem], "PromptBuffer"]:
        """Takes n prompts, pending ones first.

        Returns:
          (positions, problems, the buffer without them).
        """
        old = list(self.pending[:n])
        new = range(self.cursor, self.cursor + n - len(old))
        positions = [*old, *new]
        return positions, stream.at(positions), PromptBuffer(self.cursor + len(new), self.pending[n:])

    def put_back(self, positions: Sequence[int]) -> "PromptBuffer":
        """Keeps these positions to be drawn next, behind those that are pending already."""
        return dataclasses.replace(self, pending=(*self.pending, *(int(position) for position in positions)))

    def state(self, stream: PromptStream) -> dict[str, Any]:
        """Plain JSON values for a checkpoint."""
        return {"cursor": self.cursor, "pending": list(self.pending), "fingerprint": stream.fingerprint}

    @staticmethod
    def from_state(state: Mapping[str, Any], stream: PromptStream) -> "PromptBuffer":
        """The buffer of a checkpoint.

        Raises:
          UserError: when the checkpoint was written with other problems, another seed or another order.
        """
        if state["fingerprint"] != stream.fingerprint:
            raise UserError(
                "the prompts have changed since the checkpoint was written: fingerprint "
                f"{state['fingerprint']} then, {stream.fingerprint} now.  Restore the task's files, options "
                "and seed (and the version of grain) to resume, or start a new run"
            )
        return PromptBuffer(int(state["cursor"]), tuple(int(position) for position in state["pending"]))
