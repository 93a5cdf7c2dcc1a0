"""Problems drawn by hashing an index: problem i is the same in every process and version."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from prm_jax.data.problems import EVAL_FRACTION, Problem, fingerprint
from prm_jax.errors import UserError

Row = TypeVar("Row")
Draw = Callable[[Iterator[int]], Row]
"""Makes the numbers of one problem from an infinite stream of random words in [0, 2**48)."""


class DrawnProblems(Sequence[Problem], Generic[Row]):
    """A sequence of problems that are made when they are read.

    Args:
      size: their number.
      draw: makes the numbers of a problem.
      accept: whether a problem belongs to this sequence (its side of the split, for example); redrawn until one does.
      build: makes the problem.
      key: plain JSON values that name the stream: the seed and every option that matters.
    """

    def __init__(
        self,
        size: int,
        draw: Draw[Row],
        accept: Callable[[Row], bool],
        build: Callable[[Row], Problem],
        key: Sequence[Any],
    ) -> None:
        self._size, self._draw, self._accept, self._build, self._key = size, draw, accept, build, tuple(key)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(f"problem {index} of {self._size}")
        return self._build(self.row(int(index) % self._size))

    @property
    def fingerprint(self) -> str:
        """A digest of what determines the problems."""
        return fingerprint("drawn", self._size, list(self._key), EVAL_FRACTION)

    def row(self, index: int) -> Row:
        """The numbers of problem ``index``."""
        return draw_row(self._draw, self._accept, (*self._key, index))


class DrawnTask:
    """The problems of a task that draws them; a constructor sets `_train` and `_eval`."""

    _train: DrawnProblems[Any]
    _eval: list[Problem]

    @property
    def train(self) -> Sequence[Problem]:
        """Training problems; problem i is a pure function of the task's options and i."""
        return self._train

    @property
    def eval(self) -> Sequence[Problem]:
        """Evaluation problems, all different, none of which training can draw."""
        return self._eval

    @property
    def fingerprint(self) -> str:
        """A digest of everything that determines the problems."""
        return fingerprint(self._train, self._eval)


def draw_row(draw: Draw[Row], accept: Callable[[Row], bool], key: Sequence[Any]) -> Row:
    """Draws until a row is accepted; a pure function of the key."""
    for attempt in range(10_000):
        row = draw(words(*key, attempt))
        if accept(row):
            return row
    raise UserError(
        "no problem of this task belongs to this side of the split into training and evaluation: widen its options"
    )


def draw_distinct(
    draw: Draw[Row], accept: Callable[[Row], bool], identity: Callable[[Row], Any], count: int, key: Sequence[Any]
) -> list[Row]:
    """Up to ``count`` rows of different identity; fewer only when nearly all that exist have been found."""
    found: dict[Any, Row] = {}
    attempt = misses = 0
    # The last of n equally likely rows takes n draws on average, and hardly ever twenty times as many.
    while len(found) < count and misses < 20 * len(found) + 200:
        row = draw_row(draw, accept, (*key, attempt))
        misses = misses + 1 if identity(row) in found else 0
        found.setdefault(identity(row), row)
        attempt += 1
    return list(found.values())


def words(*key: Any) -> Iterator[int]:
    """Pseudo-random integers in [0, 2**48), a pure function of the key."""
    block = _hash(repr(key).encode())
    stream = block
    while True:
        while len(stream) < 6:
            block = _hash(block)
            stream += block
        yield int.from_bytes(stream[:6], "little")
        stream = stream[6:]


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=64, person=b"prm_jax.drawn").digest()
