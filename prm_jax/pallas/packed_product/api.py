"""The product with a packed matrix, its operands, and when a TPU's kernel can compute it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax.pallas.packed_product.tile import Shape, choose_blocks
from prm_jax.varying import align


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedMatrix:
    """A matrix [K, N] of ``scale * (integer - zero) + low``, with 8 / bits neighbouring inputs in one byte.

    Attributes:
      values: [K bits / 8, N] u8, or i8 with 8 bits.
      scales, zeros, lows: [G, N] for G groups of neighbouring inputs, any dtype; None for 1, `zero` and 0.
      bits: 8, 4 or 2.
      zero: subtracted from the integers where there are no zeros.
    """

    values: jax.Array
    scales: Any = None
    zeros: Any = None
    lows: Any = None
    bits: int = dataclasses.field(default=8, metadata={"static": True})
    zero: float = dataclasses.field(default=0.0, metadata={"static": True})


def refusal(count: int, matrix: PackedMatrix) -> str | None:
    """Why the kernel cannot compute a product of `count` rows with this matrix; None if it can."""
    rows, columns = matrix.values.shape
    groups = _groups(matrix)
    if groups > 1 and rows // groups % 8:
        return f"groups of {rows // groups} bytes; the kernel needs a multiple of 8"
    if choose_blocks(count, rows, columns, groups) is None:
        return f"no block of whole groups and 128 lanes divides {rows} x {columns} bytes"
    return None


def packed_product(x: jax.Array, matrix: PackedMatrix, *, interpret: bool = False) -> jax.Array:
    """``x @ matrix``, with tiles of the matrix expanded in the kernel: [M, K] -> [M, N] in the dtype of `x`.

    Tiles are expanded in float32 and rounded to the dtype of `x`; sums are float32. `x` receives gradients, the matrix
    does not.

    Args:
      x: [M, K] bf16 or f32.
      matrix: the packed matrix.
      interpret: run the kernel's program on the CPU, slowly, to test it.

    Raises:
      ValueError: what `refusal` says.
    """
    reason = refusal(x.shape[0], matrix)
    if reason is not None:
        raise ValueError(f"the kernel for packed matrices cannot do this: {reason}")
    # float16 and integers are no types that the kernel computes with; integers below 256 are exact in bfloat16
    parts = [None if part is None else _computable(part) for part in (matrix.scales, matrix.zeros, matrix.lows)]
    x, values, parts = align((x, matrix.values, parts))
    rows, columns = values.shape
    groups = _groups(matrix)
    blocks = choose_blocks(x.shape[0], rows, columns, groups)
    assert blocks is not None, "refused before"
    shape = Shape(blocks, matrix.bits, matrix.zero, groups, tuple(part is not None for part in parts), interpret)
    given = tuple(part[:, None, :] for part in parts if part is not None)  # groups are a leading axis: any count fits
    return _product(shape, x, values, given)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(shape: Shape, x: jax.Array, values: jax.Array, parts: tuple[jax.Array, ...]) -> jax.Array:
    per_byte = 8 // shape.bits
    places = jnp.stack([x[:, place::per_byte] for place in range(per_byte)])
    found: jax.Array = _kernels().forward(shape, places, values, parts)
    return found


def _forward(shape: Shape, x: jax.Array, values: jax.Array, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
    return _product(shape, x, values, parts), (values, parts)


def _backward(shape: Shape, kept: tuple[jax.Array, tuple[jax.Array, ...]], g: jax.Array) -> tuple[Any, None, None]:
    places = _kernels().transposed(shape, g, *kept)
    # Not the transpose of strided slices, padding between lanes, which compiles slowly.
    return jnp.moveaxis(places, 0, -1).reshape(g.shape[0], -1), None, None


_product.defvjp(_forward, _backward)


def _kernels() -> Any:
    """Imported where it is used, which takes a while."""
    from prm_jax.pallas.packed_product import mosaic_tpu

    return mosaic_tpu


def _groups(matrix: PackedMatrix) -> int:
    return max((part.shape[0] for part in (matrix.scales, matrix.zeros, matrix.lows) if part is not None), default=1)


def _computable(part: jax.Array) -> jax.Array:
    if part.dtype == jnp.float16:
        return part.astype(jnp.float32)
    return part.astype(jnp.bfloat16) if jnp.issubdtype(part.dtype, jnp.integer) else part
