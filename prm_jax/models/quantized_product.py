"""Products of activations with a `QTensor`: expanded as a whole, in a TPU kernel, or on a CPU in parts of cache size.

XLA expands matrices inside of products, without a copy in memory, as long as all inputs of an output share one scale.
The scales and zeros of groups it first writes out for every input; on a TPU a kernel computes these products.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax.models.qtensor import (
    QTensor,
    expanded,
    integers_per_byte,
    offset,
    rotate,
    scaled,
    shifted,
    steps_of,
    strided,
)
from prm_jax.pallas.packed_product.api import PackedMatrix, packed_product, refusal
from prm_jax.target_device import nothing_to_partition, platform_and_kind

MOST_ROWS = 512
"""Rows of activations up to which a CPU uses parts: with more, the product itself takes nearly all of the time."""

PART = 2**17
"""Numbers that are expanded at once in a part, 512 KiB in float32."""


# Recomputed in the backward pass, so that expanded matrices are not kept for it.
@jax.checkpoint
def product(x: jax.Array, q: QTensor) -> jax.Array:
    """``x @ dequantize(q)`` up to rounding: [N, in] -> [N, out] in the dtype of `x`, expanding one matrix at a time.

    `x` receives gradients, `q` does not.
    """
    x = rotate(x, q.block) if q.block else x
    inputs, (rows, columns) = _strided_inputs(x, q), q.shape
    size = _part_size(x, x.shape[0], columns, rows)
    if uses_kernel(x, q):
        y = kernel_product(x, q)
    elif size == columns:
        y = _product(inputs, q)
    else:
        y = _joined(lambda start: _product(inputs, _outputs(q, start, size)), columns, size, axis=1)
    if q.left is not None:
        y = y + (x @ q.left.astype(x.dtype)) @ q.right.astype(x.dtype)
    return y


def table_product(q: QTensor, x: jax.Array) -> jax.Array:
    """``dequantize(q) @ x`` for a table: [D, B] -> [V, B] float32."""
    vocab, width = q.shape
    size = _part_size(x, x.shape[1], vocab, width)

    def rows(values: jax.Array, scales: jax.Array) -> jax.Array:
        return jnp.dot(expanded(QTensor(values, scales), x.dtype), x, preferred_element_type=jnp.float32)

    if size == vocab:
        return rows(q.values, q.scales)

    def part(start: jax.Array) -> jax.Array:
        return rows(*(jax.lax.dynamic_slice_in_dim(one, start, size) for one in (q.values, q.scales)))

    return _joined(part, vocab, size, axis=0)


def uses_kernel(x: jax.Array, q: QTensor) -> bool:
    """Whether the kernel computes the product with a matrix: on a TPU, where groups have scales of their own."""
    if _groups(q) == 1 or q.grid == "five" or q.is_table:
        return False
    if platform_and_kind(x)[0] != "tpu" or not nothing_to_partition(x):
        return False
    return refusal(x.shape[0], _packed(q)) is None


def kernel_product(x: jax.Array, q: QTensor, *, interpret: bool = False) -> jax.Array:
    """The kernel's product, without the low-rank part; `interpret` runs it on a CPU."""
    y = packed_product(x, _packed(q), interpret=interpret)
    return y if q.coarse is None else (y.astype(jnp.float32) * q.coarse).astype(y.dtype)


def _packed(q: QTensor) -> PackedMatrix:
    zero = 0.0 if q.lows is not None else offset(q.bits, q.grid)
    return PackedMatrix(q.values, q.scales, q.zeros, q.lows, bits=q.bits, zero=zero)


def _groups(q: QTensor) -> int:
    return max(part.shape[-2] for part in (q.scales, q.zeros, q.lows) if part is not None)


def _part_size(x: jax.Array, rows: int, outputs: int, inputs: int) -> int:
    """Outputs that are expanded at once; all of them off CPUs, on a mesh, for many rows, and of small matrices."""
    meshes = jax.typeof(x).sharding.mesh, jax.sharding.get_abstract_mesh()
    if rows > MOST_ROWS or not all(mesh.empty for mesh in meshes) or platform_and_kind(x)[0] != "cpu":
        return outputs
    count = -(-inputs * outputs // PART)
    even = next((n for n in range(count, 2 * count) if outputs % n == 0), count)
    return -(-outputs // even)


def _joined(part: Callable[[jax.Array], jax.Array], outputs: int, size: int, *, axis: int) -> jax.Array:
    """All outputs along an axis, `size` at a time; the last part repeats some where sizes do not divide."""
    starts = [*range(0, outputs - size, size), outputs - size]
    found = jax.lax.map(part, jnp.array(starts, jnp.int32))

    def merged(parts: jax.Array) -> jax.Array:
        parts = jnp.moveaxis(parts, 0, axis)
        return parts.reshape(*parts.shape[:axis], -1, *parts.shape[axis + 2 :])

    again = size * len(starts) - outputs
    if not again:
        return merged(found)
    return jnp.concatenate([merged(found[:-1]), jax.lax.slice_in_dim(found[-1], again, size, axis=axis)], axis)


def _per_channel(q: QTensor) -> bool:
    """Whether one scale per output multiplies the product instead of the matrix."""
    return q.lows is None and (q.scales.shape[-2] == 1 or q.coarse is not None)


def _strided_inputs(x: jax.Array, q: QTensor) -> Sequence[jax.Array]:
    """The inputs of each place in a byte, or all inputs where bytes do not lie within groups.

    Interleaving integers costs a CPU more than the product, and keeps a TPU from expanding them inside of it.
    """
    packed = integers_per_byte(q.bits, q.grid)
    groups = _groups(q)
    if q.padding or (groups > 1 and q.shape[-2] // groups % packed):
        return (x,)
    return [x[:, place::packed] for place in range(packed)]


def _outputs(q: QTensor, start: jax.Array, size: int) -> QTensor:
    """Some of the outputs, without the low-rank part."""
    parts = {name: getattr(q, name) for name in ("values", "scales", "zeros", "coarse", "lows")}
    own: dict[str, Any] = {
        name: None if part is None else jax.lax.dynamic_slice_in_dim(part, start, size, axis=-1)
        for name, part in parts.items()
    }
    return dataclasses.replace(q, left=None, right=None, **own)


def _product(inputs: Sequence[jax.Array], q: QTensor) -> jax.Array:
    """The product without the low-rank part, from `_strided_inputs`."""
    dtype = inputs[0].dtype
    if len(inputs) == integers_per_byte(q.bits, q.grid):
        steps = [shifted(q, integers, dtype) for integers in strided(q.values, q.bits, q.grid)]
    else:
        steps = [steps_of(q, dtype)]
    weights = steps if _per_channel(q) else [scaled(q, one) for one in steps]
    y = sum(jnp.matmul(x, w, preferred_element_type=jnp.float32) for x, w in zip(inputs, weights, strict=True))
    assert isinstance(y, jax.Array)
    if _per_channel(q):
        y = y * (q.scales if q.coarse is None else q.coarse).astype(y.dtype)
    return y.astype(dtype)
