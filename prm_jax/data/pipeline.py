"""The input pipelines, on grain: prompts in random order, and batches that are made ahead of the training step.

Both are pure functions of a seed and a position, so a checkpoint holds one integer and a resumed run reads exactly what
an uninterrupted one would have, on any number of processes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from prm_jax.data.problems import Problem, fingerprint
from prm_jax.errors import UserError

T = TypeVar("T")


class BatchStream(Generic[T]):
    """Batches made in a background thread while the device works on earlier ones.

    A ``grain.MapDataset`` over steps, mapped by a function and read with a prefetch buffer. It is one of the kinds of
    batches that ``runs.fit`` takes.

    Args:
      make: the batch of a step; a pure function of the step, called in order in one background thread. It may be called
        for up to `ahead` steps that are never read.
      stop: number of steps; nothing is made beyond them.
      ahead: number of batches made in advance.
    """

    needs_state = False

    def __init__(self, make: Callable[[int], T], stop: int, *, ahead: int = 2) -> None:
        self._make, self._stop, self._ahead = make, stop, ahead
        self._next = -1
        self._iterator: Any = None

    def draw(self, state: Any, step: int) -> T:
        """The batch of a step; fast in order, and correct for any step. Raises what `make` raised for this step."""
        del state
        if self._iterator is None or step != self._next:
            self.close()
            self._iterator = self._start(step)
        self._next = step + 1
        try:
            return next(self._iterator)
        except BaseException:
            self.close()
            raise

    def position(self) -> dict[str, Any]:
        """{}: the step says everything."""
        return {}

    def restore(self, position: dict[str, Any]) -> None:
        """Nothing to do: the next `draw` starts at its step."""
        del position

    def close(self) -> None:
        """Ends the background thread."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self, step: int) -> Iterator[T]:
        import grain

        steps = grain.MapDataset.range(step, max(self._stop, step + 1))
        # grain drops elements that are None, so each batch is wrapped.
        made = steps.map(lambda index: (self._make(int(index)),))
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._ahead)
        return _Unwrapped(iter(made.to_iter_dataset(options)))


class _Unwrapped(Iterator[Any]):
    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def __next__(self) -> Any:
        (batch,) = next(self._iterator)
        return batch

    def close(self) -> None:
        self._iterator.close()


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
        """The ``grain.MapDataset`` of problem indices, for further transformations."""
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
        """The problems at positions [cursor, cursor + n), and the next cursor.

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
            raise UserError(f"{n} prompts per step do not divide among {process_count} processes")
        share = n // process_count
        start = cursor + process_index * share
        return [self.problems[index] for index in self.indices(start, share)], cursor + n

    def epoch(self, cursor: int) -> int:
        """How many times every problem has been passed at this cursor."""
        return cursor // len(self.problems)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the problems, the seed and the first positions of the order.

        The positions are included because the order comes from grain: if another version of it shuffles differently,
        this is detected instead of silently repeating some prompts and skipping others.
        """
        return fingerprint(self.problems, self.seed, self.shuffle, self.indices(0, min(64, 2 * len(self.problems))))


@dataclasses.dataclass(frozen=True)
class PromptBuffer:
    """A place in a prompt stream: the cursor, and prompts that were drawn but not used.

    Immutable: every method returns a new buffer, so a step that fails loses no prompts. Prompts are kept as positions
    in the stream, which is all that a checkpoint needs.

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
        """Keeps these positions to be drawn next, after those that are already pending."""
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
