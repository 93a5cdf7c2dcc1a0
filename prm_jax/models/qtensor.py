"""Matrices in 8, 4 and 2 bits as pytrees, which the model takes for frozen kernels (see ``quantized_product``).

Integers are packed along the input dimension, neighbours in one byte, so that a mesh can divide either dimension.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Grid = Literal["integer", "centred", "five"]
"""Values that integers stand for, in units of the scale: whole numbers around 0; odd multiples of a half, equally many
on either side of 0; -2, -1, 0, 1, 2."""

PARTS = ("values", "scales", "zeros", "coarse", "left", "right", "lows")
"""Names of a `QTensor`'s arrays, which are the last part of a leaf's path."""

_THIRDS = 3
"""Integers of the grid "five" in one byte."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A kernel [..., in, out] as integers with scales, or a table [V, D] in 8 bits with scales of rows or their groups.

    Leading axes (the layers) may be sliced off all arrays at once, as a scan does. The matrix is
    ``H (scale * (integer - zero) + low + left right)``, with H the identity or a block-diagonal Hadamard matrix.

    Attributes:
      values: [..., in / integers per byte, out] u8; i8 with one integer per byte and without zeros.
      scales: [..., G, out] f32, bf16 or f16, for G groups of neighbouring inputs; u8 with `coarse`; [V, G] of a table.
      zeros: [..., G, out] u8, the integer that stands for 0; None if that is the same for all.
      coarse: [..., 1, out] f32, scale of the scales; or None.
      left, right: [..., in, r] and [..., r, out] bf16, added to the matrix; or None.
      lows: [..., G, out] f16, what the integer 0 stands for, with neither zeros nor an `offset`; or None.
      bits: 8, 4 or 2.
      grid: see `Grid`.
      block: size of the Hadamard blocks along the inputs; 0 for none.
      padding: rows at the end that only fill the last byte, with the grid "five".
    """

    values: Any
    scales: Any
    zeros: Any = None
    coarse: Any = None
    left: Any = None
    right: Any = None
    lows: Any = None
    bits: int = dataclasses.field(default=8, metadata={"static": True})
    grid: Grid = dataclasses.field(default="integer", metadata={"static": True})
    block: int = dataclasses.field(default=0, metadata={"static": True})
    padding: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        *lead, rows, columns = self.values.shape
        return (*lead, rows * integers_per_byte(self.bits, self.grid) - self.padding, columns)

    @property
    def is_table(self) -> bool:
        """Whether it is a table, every row of which has scales of its own."""
        return self.scales.shape[-2] == self.values.shape[-2] and self.scales.shape[-1] != self.values.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(part.size * part.dtype.itemsize for part in jax.tree.leaves(self))


def is_quantized(tree: Any) -> bool:
    """Whether any leaf of a parameter tree is a `QTensor`."""
    return any(isinstance(leaf, QTensor) for leaf in jax.tree.leaves(tree, is_leaf=_is_qtensor))


def dequantized(tree: Any, dtype: Any = jnp.float32) -> Any:
    """The tree with every `QTensor` replaced by the matrix that it stands for; other leaves are shared."""
    return jax.tree.map(
        lambda leaf: dequantize(leaf, dtype) if isinstance(leaf, QTensor) else leaf, tree, is_leaf=_is_qtensor
    )


def dequantize(q: QTensor, dtype: Any = jnp.float32) -> jax.Array:
    """The matrix, summed in float32: [..., in, out] in `dtype`."""
    matrix = expanded(q, jnp.float32)
    if q.left is not None:
        low_rank = jnp.einsum("...ir,...ro->...io", _wide(q.left), _wide(q.right), precision=jax.lax.Precision.HIGHEST)
        matrix = matrix + low_rank
    if q.block:  # the blocks are symmetric and their own inverses
        matrix = jnp.swapaxes(rotate(jnp.swapaxes(matrix, -1, -2), q.block), -1, -2)
    return matrix.astype(dtype)


def with_wide_scales(tree: Any) -> Any:
    """The tree with scales of dtype float16 in float32, for repeated products on a CPU, which converts them slowly."""

    def wide(leaf: Any) -> Any:
        if not isinstance(leaf, QTensor):
            return leaf
        return jax.tree.map(lambda part: part.astype(jnp.float32) if part.dtype == jnp.float16 else part, leaf)

    return jax.tree.map(wide, tree, is_leaf=_is_qtensor)


def take(q: QTensor, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Rows of a table: tokens [...] -> [..., D]; NaN for a token outside [0, V)."""
    rows = jnp.take(q.values, tokens, axis=0, mode="clip")
    scales = jnp.take(q.scales, tokens, axis=0)  # NaN where there is no such row
    return _scaled_rows(rows, scales, jnp.float32).astype(dtype)


def integers_per_byte(bits: int, grid: Grid = "integer") -> int:
    """How many integers of a kernel one byte holds."""
    return _THIRDS if grid == "five" else 8 // bits


def offset(bits: int, grid: Grid) -> float:
    """What is subtracted from a stored integer without a zero point of its own."""
    if grid == "centred":
        return (2**bits - 1) / 2
    if grid == "five":
        return 2.0
    return 0.0 if bits == 8 else 2.0 ** (bits - 1)


def pack(integers: jax.Array, bits: int, grid: Grid = "integer") -> jax.Array:
    """Packs stored integers [..., in, out], all >= 0, along the inputs; 8 bits are returned as they are.

    Args:
      integers: integer array; its inputs are a multiple of ``integers_per_byte``.
      bits: per integer.
      grid: "five" packs three integers below 5 into a byte.
    """
    count = integers_per_byte(bits, grid)
    if count == 1:
        return integers
    *lead, rows, columns = integers.shape
    parts = integers.astype(jnp.uint8).reshape(*lead, rows // count, count, columns)
    factors = _factors(bits, grid).reshape(count, 1)
    return (parts * factors).sum(-2, dtype=jnp.uint8)


def unpack(packed: jax.Array, bits: int, grid: Grid = "integer") -> jax.Array:
    """The inverse of `pack`: [..., in, out] of the packed dtype."""
    parts = strided(packed, bits, grid)
    if len(parts) == 1:
        return packed
    *lead, rows, columns = packed.shape
    return jnp.stack(parts, axis=-2).reshape(*lead, rows * len(parts), columns)


def strided(packed: jax.Array, bits: int, grid: Grid = "integer") -> list[jax.Array]:
    """What `unpack` interleaves: for each place in a byte, the integers of every such input, [..., in / n, out]."""
    count = integers_per_byte(bits, grid)
    if count == 1:
        return [packed]
    if grid == "five":
        return [packed // factor % np.uint8(5) for factor in _factors(bits, grid)]
    return [(packed >> np.uint8(bits * i)) & np.uint8(2**bits - 1) for i in range(count)]


def rotate(x: jax.Array, block: int) -> jax.Array:
    """Multiplies the last axis by a block-diagonal orthonormal Hadamard matrix: [..., D] -> [..., D].

    Raises:
      ValueError: the block does not divide D, as when a mesh axis divides D into parts that are too small.
    """
    width = x.shape[-1]
    if width % block:
        raise ValueError(f"Hadamard blocks of {block} do not divide {width} features")
    blocks = x.reshape(*x.shape[:-1], width // block, block)
    turned = jnp.matmul(blocks, jnp.asarray(hadamard(block), x.dtype))
    return turned.reshape(x.shape)


def hadamard(size: int) -> np.ndarray:
    """The symmetric orthonormal Hadamard matrix [size, size] f32 (Sylvester's construction); size is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(math.sqrt(size))


def hadamard_block(width: int, largest: int = 128) -> int:
    """The largest power of two up to `largest` that divides a width."""
    return min(width & -width, largest)


def expanded(q: QTensor, dtype: Any) -> jax.Array:
    """The matrix without low-rank part and rotation."""
    if q.is_table:
        return _scaled_rows(q.values, q.scales, dtype)
    return scaled(q, steps_of(q, dtype))


def steps_of(q: QTensor, dtype: Any) -> jax.Array:
    """Integers minus zeros, times the integer scales with `coarse`: [..., in, out], exact in `dtype` up to 8 bits."""
    return shifted(q, unpack(q.values, q.bits, q.grid)[..., : q.shape[-2], :], dtype)


def shifted(q: QTensor, integers: jax.Array, dtype: Any) -> jax.Array:
    """`steps_of` for integers [..., rows, out], equally many rows from each of the tensor's groups."""
    if q.zeros is None:
        shift = 0.0 if q.lows is not None else offset(q.bits, q.grid)
        return integers.astype(dtype) - jnp.asarray(shift, dtype) if shift else integers.astype(dtype)
    rows = integers.shape[-2]
    steps = integers.astype(dtype) - _per_input(q.zeros, rows).astype(dtype)
    return steps if q.coarse is None else steps * _per_input(q.scales, rows).astype(dtype)


def scaled(q: QTensor, steps: jax.Array) -> jax.Array:
    """Steps [..., rows, out] times the scales, plus the lows."""
    rows, scale = steps.shape[-2], q.scales if q.coarse is None else q.coarse
    matrix = steps * _per_input(scale, rows).astype(steps.dtype)
    return matrix if q.lows is None else matrix + _per_input(q.lows, rows).astype(steps.dtype)


def _scaled_rows(values: jax.Array, scales: jax.Array, dtype: Any) -> jax.Array:
    """Integers [..., D] times the scales [..., G] of groups of neighbours."""
    grouped = values.astype(dtype).reshape(*scales.shape, -1) * scales[..., None].astype(dtype)
    return grouped.reshape(values.shape)


def _per_input(part: jax.Array, rows: int) -> jax.Array:
    """What groups have, [..., G, out], for each row; a matrix that is cut into groups does not fuse into a product."""
    groups = part.shape[-2]
    return part if groups == 1 else jnp.repeat(part, rows // groups, axis=-2)


def _factors(bits: int, grid: Grid) -> np.ndarray:
    base = 5 if grid == "five" else 2**bits
    return np.array([base**i for i in range(integers_per_byte(bits, grid))], np.uint8)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _is_qtensor(leaf: Any) -> bool:
    return isinstance(leaf, QTensor)
