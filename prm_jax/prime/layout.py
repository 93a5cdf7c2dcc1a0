"""The training rectangle: cut to a bucket of lengths, and responses packed into rows, with the arrays of rewards as is.

Only the models see the packed rows. Log-probs and values are brought back to one row per response at once, so that
rewards, credit, advantages and losses do not know of packing and are those of the unpacked batch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from prm_jax.prime.batch import Batch, Packed
from prm_jax.prime.options import Options
from prm_jax.prime.sizes import chunk_rows

_STEP = 128
"""Buckets end at multiples of this many columns, the block of the attention kernels."""

_FILLS = 8
"""Numbers of packed rows per chunk are rounded up to as many values at most, since each compiles the step again."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the batches of a run are laid out.

    Attributes:
      widths: numbers of columns that a batch may have, ascending; the last is that of the rollouts.
      chunks: responses per chunk, which no packed row crosses, descending: those that one device reads at once, or an
        equal part of them; (): no packing.
      budget: tokens per chunk, which the largest chunk that keeps it is taken for; 0: any number.
    """

    widths: tuple[int, ...]
    chunks: tuple[int, ...] = ()
    budget: int = 0

    def __call__(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """The batch for the compiled step, and metrics; works on NumPy arrays.

        Returns:
          (the batch, ``{"batch/columns", "batch/padding", "batch/saved"}``: columns of a row; the share of padding in
          what the models read; the share of the rollouts' rectangle that they need not read).
        """
        rows, full = batch.mask.shape
        lengths = _lengths(batch)
        batch = self.cut(batch)
        for chunk in self.chunks:
            packed = pack(batch, chunk)
            if packed.packed is None or self._within_budget(packed.packed):
                batch = packed
                break
        read = batch.tokens.size if batch.packed is None else batch.packed.tokens.size
        return batch, {
            "batch/columns": float(batch.mask.shape[1]),
            "batch/padding": 1.0 - float(lengths.sum()) / read,
            "batch/saved": 1.0 - read / (rows * full),
        }

    def cut(self, batch: Batch) -> Batch:
        """The batch in the fewest columns that hold it."""
        longest = _lengths(batch).max(initial=1)
        return cut(batch, next(width for width in self.widths if width >= longest))

    def _within_budget(self, packed: Packed) -> bool:
        chunks = packed.place.shape[0] // packed.chunk
        return not self.budget or packed.tokens.size // chunks <= self.budget


def make_layout(options: Options, ways: int, devices: int = 1) -> Layout:
    """The layout of a run's batches.

    Args:
      options: of the run.
      ways: of its learners, see ``learner.split_rows``.
      devices: over which rows are split; divides the number of chunks or is a multiple of it.
    """
    width = options.rollout.max_prompt_tokens + options.rollout.max_new_tokens
    widths = length_buckets(width, options.batch.length_buckets)
    if not options.batch.pack:
        return Layout(widths)
    most = chunk_rows(options, ways, devices)
    budgets = (options.policy.microbatch_tokens, options.prm.microbatch_tokens)
    budget = min(filter(None, budgets), default=0)
    least = 1 if budget else most
    return Layout(widths, tuple(n for n in range(most, least - 1, -1) if n and most % n == 0), budget)


def length_buckets(width: int, count: int) -> tuple[int, ...]:
    """At most `count` widths up to `width`, evenly spaced; all but the last are multiples of 128."""
    ends = [-(-width * number // (count * _STEP)) * _STEP for number in range(1, count)]
    return (*sorted({end for end in ends if end < width}), width)


def cut(batch: Batch, width: int) -> Batch:
    """The first `width` columns; what follows is padding in every row."""
    shape = batch.mask.shape
    if width == shape[1]:
        return batch
    given = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    columns = {name: array[:, :width] for name, array in given.items() if getattr(array, "shape", None) == shape}
    return dataclasses.replace(batch, start=min(batch.start, width - 1), **columns)


def pack(batch: Batch, chunk: int) -> Batch:
    """Adds `Packed` rows of the batch's width; leaves a batch that would not shrink as it is.

    Args:
      batch: NumPy arrays; a response and its prompt are one segment.
      chunk: responses per chunk; divides the number of rows.
    """
    rows, width = batch.mask.shape
    lengths = _lengths(batch)
    chunks = [lengths[begin : begin + chunk] for begin in range(0, rows, chunk)]
    places = [_first_fit(part, width) for part in chunks]
    size = max(max((row for row, _ in part), default=0) + 1 for part in places)
    grain = max(1, chunk // _FILLS)
    size = -(-size // grain) * grain
    if size >= chunk:
        return batch
    tokens = np.full((len(chunks) * size, width), 0, np.int32)
    segments = np.full(tokens.shape, -1, np.int32)
    scored = np.zeros(tokens.shape, bool)
    place = np.zeros(rows, np.int32)
    for number, part in enumerate(places):
        for index, (row, column) in enumerate(part):
            source = number * chunk + index
            here, length = number * size + row, lengths[source]
            tokens[here, column : column + length] = batch.tokens[source, :length]
            segments[here, column : column + length] = index
            scored[here, column : column + length] = batch.mask[source, :length]
            place[source] = row * width + column
    return dataclasses.replace(batch, packed=Packed(tokens, segments, scored, place, chunk))  # type: ignore[arg-type]


def _first_fit(lengths: Sequence[int] | np.ndarray, width: int) -> list[tuple[int, int]]:
    """(row, column) of each segment, the longest placed first, each in the first row that has room."""
    used: list[int] = []
    found: dict[int, tuple[int, int]] = {}
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[index])
        row = next((row for row, end in enumerate(used) if end + length <= width), len(used))
        if row == len(used):
            used.append(0)
        found[index] = (row, min(used[row], width - 1))
        used[row] += length
    return [found[index] for index in range(len(found))]


def _lengths(batch: Batch) -> Any:
    """[B] columns up to the last response token; 0 for an empty response, which nothing is computed of."""
    mask = np.asarray(batch.mask)
    return np.where(mask.any(axis=1), mask.shape[1] - mask[:, ::-1].argmax(axis=1), 0)
