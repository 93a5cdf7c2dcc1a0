"""TPU kernels: tiles of packed integers become numbers in VMEM, right before they are multiplied."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from prm_jax.pallas.packed_product.tile import Shape


def forward(shape: Shape, places: jax.Array, values: jax.Array, parts: Sequence[jax.Array]) -> jax.Array:
    """Places [P, M, K / P] times a matrix [K / P, N] with P integers per byte -> [M, N]."""
    per_byte, count, rows = places.shape
    columns, blocks = values.shape[1], shape.blocks
    return _call(
        functools.partial(_forward_body, shape), "packed_product", shape, values, parts,
        activations=places,
        block=pl.BlockSpec((per_byte, blocks.tokens, blocks.packed), lambda i, j, k: (0, i, k)),
        tile=lambda i, j, k: (k, j),
        grid=(pl.cdiv(count, blocks.tokens), columns // blocks.columns, rows // blocks.packed),
        out=((count, columns), pl.BlockSpec((blocks.tokens, blocks.columns), lambda i, j, k: (i, j))),
        scratch=(blocks.tokens, blocks.columns),
        expanded=(blocks.piece, blocks.columns),
    )  # fmt: skip


def transposed(shape: Shape, g: jax.Array, values: jax.Array, parts: Sequence[jax.Array]) -> jax.Array:
    """[M, N] times the transposed matrix -> places [P, M, K / P]."""
    per_byte, count, rows = 8 // shape.bits, g.shape[0], values.shape[0]
    blocks = shape.blocks
    size = (per_byte, blocks.tokens, blocks.packed)
    return _call(
        functools.partial(_transposed_body, shape), "packed_product_transposed", shape, values, parts,
        activations=g,
        block=pl.BlockSpec((blocks.tokens, blocks.columns), lambda i, k, j: (i, j)),
        tile=lambda i, k, j: (k, j),
        grid=(pl.cdiv(count, blocks.tokens), rows // blocks.packed, values.shape[1] // blocks.columns),
        out=((per_byte, count, rows), pl.BlockSpec(size, lambda i, k, j: (0, i, k))),
        scratch=size,
        expanded=(blocks.columns, blocks.piece),
    )  # fmt: skip


def _call(
    body: Any, name: str, shape: Shape, values: jax.Array, parts: Sequence[jax.Array], *, activations: jax.Array,
    block: pl.BlockSpec, tile: Any, grid: tuple[int, int, int], out: tuple[tuple[int, ...], pl.BlockSpec],
    scratch: tuple[int, ...], expanded: tuple[int, int],
) -> jax.Array:  # fmt: skip
    """Runs a kernel over a grid, whose last dimension is summed over."""
    blocks = shape.blocks
    whole = shape.groups == 1
    in_groups = shape.groups * blocks.packed // values.shape[0] if not whole else 1

    def part_at(*place: Any) -> tuple[Any, int, Any]:
        row, column = tile(*place)
        return (0 if whole else row), 0, column

    part = pl.BlockSpec((in_groups, 1, blocks.columns), part_at)
    kind = jax.typeof(activations).manual_axis_type
    found: jax.Array = pl.pallas_call(
        body,
        grid=grid,
        in_specs=[block, pl.BlockSpec((blocks.packed, blocks.columns), tile), *[part] * len(parts)],
        out_specs=out[1],
        out_shape=jax.ShapeDtypeStruct(out[0], activations.dtype, manual_axis_type=kind),
        scratch_shapes=[
            pltpu.VMEM(scratch, jnp.float32),
            pltpu.VMEM((8 // shape.bits, *expanded), activations.dtype),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=shape.interpret,
        name=name,
    )(activations, values, *parts)
    return found


def _forward_body(shape: Shape, places_ref: Any, values_ref: Any, *refs: Any) -> None:
    *part_refs, out_ref, sum_ref, weights_ref = refs

    def add(tokens: Any, rows: Any) -> None:
        places = range(8 // shape.bits)
        sum_ref[tokens, :] += sum(_dot(places_ref[p, tokens, rows], weights_ref[p]) for p in places)

    _summed(shape, add, values_ref, part_refs, out_ref, sum_ref, weights_ref)


def _transposed_body(shape: Shape, g_ref: Any, values_ref: Any, *refs: Any) -> None:
    *part_refs, out_ref, sum_ref, weights_ref = refs

    def add(tokens: Any, rows: Any) -> None:
        for p in range(8 // shape.bits):
            sum_ref[p, tokens, rows] += _dot(g_ref[tokens, :], weights_ref[p])

    _summed(shape, add, values_ref, part_refs, out_ref, sum_ref, weights_ref, transpose=True)


def _summed(
    shape: Shape, add: Callable[[Any, Any], None], values_ref: Any, part_refs: Sequence[Any], out_ref: Any,
    sum_ref: Any, weights_ref: Any, *, transpose: bool = False,
) -> None:  # fmt: skip
    """Adds all pieces of a tile, from zeros with the first tile of the sum; writes the sum with the last one.

    A piece of the matrix is expanded into `weights_ref`, and multiplied with one piece of the tokens after the other.
    """
    step, blocks = pl.program_id(2), shape.blocks

    @pl.when(step == 0)
    def _() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def of_rows(piece: Any, rows: Any) -> None:
        _expand(shape, piece, values_ref[rows, :], part_refs, weights_ref, transpose)
        _for_pieces(blocks.tokens, blocks.token_piece, lambda _, tokens: add(tokens, rows))

    _for_pieces(blocks.packed, blocks.piece, of_rows)

    @pl.when(step == pl.num_programs(2) - 1)
    def _() -> None:
        out_ref[...] = sum_ref[...].astype(out_ref.dtype)


def _for_pieces(size: int, piece: int, function: Callable[[Any, Any], None]) -> None:
    """Calls a function with the number and the slice of each piece; the only one begins at 0 statically."""
    if size == piece:
        return function(0, pl.ds(0, piece))
    lax.fori_loop(0, size // piece, lambda i, _: function(i, pl.ds(pl.multiple_of(i * piece, piece), piece)), None)


def _expand(
    shape: Shape, piece: Any, values: jax.Array, part_refs: Sequence[Any], weights_ref: Any, transpose: bool
) -> None:
    """Writes the numbers of each place in the bytes of a piece of the tile: [place, piece, columns], or transposed."""
    rows, left = shape.blocks.piece, iter(part_refs)
    groups = max(1, part_refs[0].shape[0] * rows // shape.blocks.packed) if part_refs else 1
    at = pl.ds(0 if shape.groups == 1 else piece * groups, groups)
    scales, zeros, lows = (next(left)[at].astype(jnp.float32) if one else None for one in shape.there)
    for place in range(8 // shape.bits):
        integers = values.astype(jnp.int32)
        if shape.bits < 8:
            integers = (integers >> (shape.bits * place)) & (2**shape.bits - 1)
        w = integers.astype(jnp.float32).reshape(groups, rows // groups, -1)
        if zeros is not None:
            w = w - zeros
        elif shape.zero:
            w = w - shape.zero
        w = w if scales is None else w * scales
        w = w if lows is None else w + lows
        w = w.reshape(rows, -1)
        weights_ref[place] = (w.T if transpose else w).astype(weights_ref.dtype)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """A product with float32 sums; float32 operands are not rounded to bfloat16."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)
