"""Splitting tokens and vocabulary into equal blocks, and loops over them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


class TokenBlocks:
    """Blocks of rows; rows of zeros are added where the block size does not divide their number.

    A block takes every n-th row, not neighbouring ones: rows that are sharded over devices then give every device
    its share of each block, whereas a contiguous block would be on one. With ``contiguous``, block i is the i-th
    run of rows instead, so that the first rows fill the first blocks.
    """

    def __init__(self, total: int, block: int, *, contiguous: bool = False):
        least = -(-total // max(1, min(block, total)))
        # A count that divides avoids the copy for padding.
        self.count = next((n for n in range(least, 2 * least) if total % n == 0), least)
        self.size = -(-total // self.count)
        self.total = total
        self.axis = 0 if contiguous else 1

    def shape(self, *trailing: int) -> tuple[int, ...]:
        """The shape of split rows."""
        if self.count == 1:
            return (self.size, *trailing)
        leading = (self.count, self.size) if self.axis == 0 else (self.size, self.count)
        return (*leading, *trailing)

    def split(self, rows: Any) -> Any:
        """[T, ...] -> ``shape(...)`` for every array; unchanged when there is one block."""

        def one(x: jax.Array) -> jax.Array:
            missing = self.size * self.count - self.total
            if missing:
                x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
            return x.reshape(self.shape(*x.shape[1:]))

        return rows if self.count == 1 else jax.tree.map(one, rows)

    def join(self, rows: Any) -> Any:
        """The inverse of ``split``."""

        def one(x: jax.Array) -> jax.Array:
            return x.reshape(self.size * self.count, *x.shape[2:])[: self.total]

        return rows if self.count == 1 else jax.tree.map(one, rows)

    def take(self, rows: Any, i: Any) -> Any:
        """Block i of split rows."""
        if self.count == 1:
            return rows
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, axis=self.axis, keepdims=False), rows)

    def put(self, rows: Any, i: Any, block: Any) -> Any:
        """Split rows with block i replaced."""
        if self.count == 1:
            return block
        return jax.tree.map(lambda x, b: jax.lax.dynamic_update_index_in_dim(x, b, i, axis=self.axis), rows, block)

    def add(self, rows: jax.Array, i: Any, block: jax.Array) -> jax.Array:
        """Split rows with ``block`` added to block i."""
        return rows + block if self.count == 1 else self.put(rows, i, self.take(rows, i) + block)

    def loop(self, body: Callable[[Any, Any], Any], start: Any, valid: jax.Array | None) -> Any:
        """``body`` over the blocks; only over those with any of the first ``valid`` rows when it is given."""
        if valid is None:
            return loop(self.count, body, start)
        return jax.lax.fori_loop(0, (valid + self.size - 1) // self.size, body, start)


class VocabBlocks:
    """Equal contiguous blocks; the last one overlaps its neighbour instead of extending past the end."""

    def __init__(self, total: int, block: int):
        self.count = -(-total // max(1, min(block, total)))
        self.size = -(-total // self.count)
        self.total = total

    def start(self, j: Any) -> Any:
        """First column of block j."""
        return jnp.minimum(j * self.size, self.total - self.size)

    def take(self, x: jax.Array, j: Any, axis: int = 0) -> jax.Array:
        """Block j along the axis."""
        return x if self.count == 1 else jax.lax.dynamic_slice_in_dim(x, self.start(j), self.size, axis=axis)

    def add(self, x: jax.Array, j: Any, block: jax.Array, axis: int = 0) -> jax.Array:
        """``x`` with ``block`` added to block j; columns that are not fresh must be zero, and stay unchanged."""
        if self.count == 1:
            return block.astype(x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(
            x, self.take(x, j, axis) + block.astype(x.dtype), self.start(j), axis=axis
        )

    def columns(self, j: Any) -> tuple[jax.Array, jax.Array | None]:
        """Token ids of block j, and which of them are in no earlier block."""
        within = jnp.arange(self.size, dtype=jnp.int32)
        if self.count == 1:
            return within, None
        columns = within + self.start(j)
        if self.size * self.count == self.total:
            return columns, None
        return columns, columns >= j * self.size


def loop(count: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """``lax.fori_loop``, or the body alone for one iteration, so that XLA can fuse across it."""
    return body(0, start) if count == 1 else jax.lax.fori_loop(0, count, body, start)
