"""Matrices in 8, 4 and 2 bits as pytrees, and their product with activations; the model takes them for frozen kernels.

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

PARTS = ("values", "scales", "zeros", "coarse", "left", "right")
"""Names of a `QTensor`'s arrays, which are the last part of a leaf's path."""

_THIRDS = 3
"""Integers of the grid "five" in one byte."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A kernel [..., in, out] as integers with scales, or a table [V, D] in 8 bits with a scale per row.

    Leading axes (the layers) may be sliced off all arrays at once, as a scan does. The matrix is
    ``H (scale * (integer - zero) + left right)``, with H the identity or a block-diagonal Hadamard matrix.

    Attributes:
      values: [..., in / integers per byte, out] u8; i8 with one integer per byte and without zeros.
      scales: [..., G, out] f32 or bf16, for G groups of neighbouring inputs; u8 with `coarse`; [V, 1] of a table.
      zeros: [..., G, out] u8, the integer that stands for 0; None if that is the same for all.
      coarse: [..., 1, out] f32, scale of the scales; or None.
      left, right: [..., in, r] and [..., r, out] bf16, added to the matrix; or None.
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
        """Whether it is a table with one scale per row."""
        return self.scales.shape[-1] == 1 != self.values.shape[-1]

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
    matrix = _expanded(q, jnp.float32)
    if q.left is not None:
        low_rank = jnp.einsum("...ir,...ro->...io", _wide(q.left), _wide(q.right), precision=jax.lax.Precision.HIGHEST)
        matrix = matrix + low_rank
    if q.block:  # the blocks are symmetric and their own inverses
        matrix = jnp.swapaxes(rotate(jnp.swapaxes(matrix, -1, -2), q.block), -1, -2)
    return matrix.astype(dtype)


# Recomputed in the backward pass, so that expanded matrices are not kept for it.
@jax.checkpoint
def product(x: jax.Array, q: QTensor) -> jax.Array:
    """``x @ dequantize(q)`` up to rounding: [N, in] -> [N, out] in the dtype of `x`, expanding one matrix at a time.

    `x` receives gradients, `q` does not.
    """
    x = rotate(x, q.block) if q.block else x
    per_channel = q.scales.shape[-2] == 1 or q.coarse is not None
    if per_channel:  # one scale per output multiplies the product instead of the matrix
        scale = q.scales if q.coarse is None else q.coarse
        y = (x @ _steps(q, x.dtype, scaled=q.coarse is not None)) * scale.astype(x.dtype)
    else:
        y = x @ _expanded(q, x.dtype)
    if q.left is not None:
        y = y + (x @ q.left.astype(x.dtype)) @ q.right.astype(x.dtype)
    return y


def take(q: QTensor, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Rows of a table: tokens [...] -> [..., D]; NaN for a token outside [0, V)."""
    rows = jnp.take(q.values, tokens, axis=0, mode="clip").astype(jnp.float32)
    scales = jnp.take(q.scales, tokens, axis=0)  # NaN where there is no such row
    return (rows * scales).astype(dtype)


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
    count = integers_per_byte(bits, grid)
    if count == 1:
        return packed
    *lead, rows, columns = packed.shape
    if grid == "five":
        parts = [packed // factor % np.uint8(5) for factor in _factors(bits, grid)]
    else:
        parts = [(packed >> np.uint8(bits * i)) & np.uint8(2**bits - 1) for i in range(count)]
    return jnp.stack(parts, axis=-2).reshape(*lead, rows * count, columns)


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


def _steps(q: QTensor, dtype: Any, *, scaled: bool) -> jax.Array:
    """Integers minus zeros, times the integer scales if `scaled`: [..., in, out], exact in `dtype` up to 8 bits."""
    integers = unpack(q.values, q.bits, q.grid)[..., : q.shape[-2], :]
    if q.zeros is None:
        shift = offset(q.bits, q.grid)
        return integers.astype(dtype) - jnp.asarray(shift, dtype) if shift else integers.astype(dtype)
    steps = _grouped(integers, q.zeros.shape[-2]).astype(dtype) - q.zeros[..., None, :].astype(dtype)
    if scaled:
        steps = steps * q.scales[..., None, :].astype(dtype)
    return steps.reshape(integers.shape)


def _expanded(q: QTensor, dtype: Any) -> jax.Array:
    """The matrix without low-rank part and rotation."""
    if q.is_table:
        return q.values.astype(dtype) * q.scales.astype(dtype)
    steps = _steps(q, dtype, scaled=q.coarse is not None)
    scale = q.scales if q.coarse is None else q.coarse
    grouped = _grouped(steps, scale.shape[-2]) * scale[..., None, :].astype(dtype)
    return grouped.reshape(steps.shape)


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """[..., in, out] -> [..., groups, in / groups, out]."""
    *lead, rows, columns = x.shape
    return x.reshape(*lead, groups, rows // groups, columns)


def _factors(bits: int, grid: Grid) -> np.ndarray:
    base = 5 if grid == "five" else 2**bits
    return np.array([base**i for i in range(integers_per_byte(bits, grid))], np.uint8)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _is_qtensor(leaf: Any) -> bool:
    return isinstance(leaf, QTensor)
