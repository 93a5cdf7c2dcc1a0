"""The bodies of the TPU kernels, each one program per (token block, vocab block) pair.

No split of D: all features of a block of tokens and of a block of the vocabulary are in VMEM, so that a body is one
basic block, and the compiler overlaps the vector work on one piece of the tile with the matrix work on the next.
For the same reason sums start with a select, not a branch. Statistics are kept for each of the 128 lanes; the
reduction across lanes happens once, at the last block of the vocabulary.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

LANES = 128
MASKED = -1e30  # finite, so that the running maximum never meets inf - inf
# Columns of the rows' scalars.
ROW_LSE, ROW_ENTROPY, ROW_G_LSE, ROW_G_TARGET, ROW_G_ENTROPY, ROW_INVERSE, ROWS = 0, 1, 2, 3, 4, 5, 8


class Shape(NamedTuple):
    """Static parameters of a body."""

    vocab: int
    token_block: int
    vocab_block: int
    row_piece: int  # rows of the tile at a time
    column_piece: int  # columns of the tile at a time, forward
    layout: str
    softcap: float | None
    entropy: bool
    bias: bool
    temperature: bool


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """A product with float32 sums; float32 operands are not rounded to bfloat16."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def forward_body(shape: Shape, *all_refs: Any) -> None:
    """Grid (token blocks, vocab blocks).

    Refs: tokens, rows, hidden, head, bias?; output [token block, 128], its lanes lse, target, entropy; four scratches.
    """
    refs: list[Any] = list(all_refs)
    tokens_ref, rows_ref, hidden_ref, head_ref = refs[:4]
    bias_ref = refs[4] if shape.bias else None
    out_ref, top_ref, total_ref, target_ref, moment_ref = refs[-5:]
    j, last = pl.program_id(1), pl.num_programs(1) - 1

    @pl.when(j == 0)
    def _() -> None:
        top_ref[...] = jnp.full_like(top_ref, MASKED)
        for ref in (total_ref, target_ref, moment_ref):
            ref[...] = jnp.zeros_like(ref)

    lane = lax.broadcasted_iota(jnp.int32, (shape.row_piece, LANES), 1)
    for r in range(shape.token_block // shape.row_piece):
        rows = pl.ds(r * shape.row_piece, shape.row_piece)
        top, total, target, moment = top_ref[rows, :], total_ref[rows, :], target_ref[rows, :], moment_ref[rows, :]
        own = tokens_ref[rows, :] - j * shape.vocab_block
        for start in range(0, shape.vocab_block, shape.column_piece):
            piece = _logits(shape, hidden_ref[rows, :], head_ref, bias_ref, rows_ref[rows, :], start)
            columns = [piece[:, i : i + LANES] for i in range(0, shape.column_piece, LANES)]
            firsts = [start + i for i in range(0, shape.column_piece, LANES)]
            for first, x in zip(firsts, columns, strict=True):
                target = target + jnp.where(lane == own - first, x, 0.0)
            if shape.vocab % shape.vocab_block:
                end = shape.vocab - j * shape.vocab_block
                columns = [jnp.where(lane < end - f, x, MASKED) for f, x in zip(firsts, columns, strict=True)]
            new_top = functools.reduce(jnp.maximum, columns, top)
            scale = jnp.exp(top - new_top)
            total, moment = total * scale, moment * scale
            for x in columns:
                weight = jnp.exp(x - new_top)
                total = total + weight
                if shape.entropy:
                    moment = moment + weight * x
            top = new_top
        top_ref[rows, :], total_ref[rows, :], target_ref[rows, :], moment_ref[rows, :] = top, total, target, moment

    @pl.when(j == last)
    def _() -> None:
        top = jnp.max(top_ref[...], axis=1, keepdims=True)
        scale = jnp.exp(top_ref[...] - top)
        total = jnp.sum(total_ref[...] * scale, axis=1, keepdims=True)
        lse = top + jnp.log(total)
        target = jnp.sum(target_ref[...], axis=1, keepdims=True)
        entropy = lse - jnp.sum(moment_ref[...] * scale, axis=1, keepdims=True) / total
        lane = lax.broadcasted_iota(jnp.int32, out_ref.shape, 1)
        out_ref[...] = jnp.where(lane == 0, lse, jnp.where(lane == 1, target, entropy))


def _logits(shape: Shape, hidden: jax.Array, head_ref: Any, bias_ref: Any, rows: jax.Array, start: int) -> jax.Array:
    """A piece of a tile from column ``start`` on."""
    columns = pl.ds(start, shape.column_piece)
    if shape.layout == "vd":
        piece = _dot(hidden, head_ref[columns, :].astype(hidden.dtype), (1, 1))
    else:
        piece = _dot(hidden, head_ref[:, columns].astype(hidden.dtype), (1, 0))
    return _cap(shape, piece, None if bias_ref is None else bias_ref[:, columns], rows)[0]


def _cap(shape: Shape, piece: jax.Array, bias: jax.Array | None, rows: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    if bias is not None:
        piece = piece + bias
    slope = None
    if shape.softcap is not None:
        squashed = jnp.tanh(piece * (1.0 / shape.softcap))
        piece, slope = shape.softcap * squashed, 1.0 - squashed * squashed
    if shape.temperature:
        piece = piece * rows[:, ROW_INVERSE : ROW_INVERSE + 1]
    return piece, slope


def _clean_head(shape: Shape, j: jax.Array, head_ref: Any, dtype: Any) -> jax.Array:
    """The block of the head with zeros past V: padding may be NaN, and zero times NaN would reach sums."""
    head = head_ref[...].astype(dtype)
    if shape.vocab % shape.vocab_block == 0:
        return head
    column = lax.broadcasted_iota(jnp.int32, head.shape, shape.layout.index("v"))
    return jnp.where(column < shape.vocab - j * shape.vocab_block, head, jnp.zeros_like(head))


def _gradient(
    shape: Shape, j: jax.Array, hidden: jax.Array, head: jax.Array, bias: jax.Array | None, rows: jax.Array, own: Any
) -> jax.Array:
    """``dloss/d(hidden . head + bias)`` of some rows of a tile; see ``tile.gradient``."""
    piece = _dot(hidden, head, (1, shape.layout.index("d")))
    logits, slope = _cap(shape, piece, bias, rows)
    log_p = logits - rows[:, ROW_LSE : ROW_LSE + 1]
    weight = rows[:, ROW_G_LSE : ROW_G_LSE + 1]
    if shape.entropy:
        g_entropy, entropy = (rows[:, i : i + 1] for i in (ROW_G_ENTROPY, ROW_ENTROPY))
        weight = weight - g_entropy * (log_p + entropy)
    column = lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    d = jnp.exp(log_p) * weight + jnp.where(column == own, rows[:, ROW_G_TARGET : ROW_G_TARGET + 1], 0.0)
    if shape.temperature:
        d = d * rows[:, ROW_INVERSE : ROW_INVERSE + 1]
    if slope is not None:
        d = d * slope
    if shape.vocab % shape.vocab_block:
        d = jnp.where(column < shape.vocab - j * shape.vocab_block, d, 0.0)
    return d


def backward_body(shape: Shape, with_hidden: bool, *all_refs: Any) -> None:
    """One pass for all gradients: grid (vocab blocks, token blocks).

    Refs: tokens, rows, hidden, head, bias?, sum of hidden's gradient so far?; outputs: that sum?, head's gradient,
    bias's gradient; scratches: head's sum [.. like a block of head], bias's sum [1, vocab block].
    """
    refs: list[Any] = list(all_refs)
    tokens_ref, rows_ref, hidden_ref, head_ref = refs[:4]
    bias_ref = refs[4] if shape.bias else None
    so_far_ref, d_hidden_ref = refs[4 + shape.bias : 6 + shape.bias] if with_hidden else (None, None)
    d_head_ref, d_bias_ref, head_sum, bias_sum = refs[-4:]
    j, i, last = pl.program_id(0), pl.program_id(1), pl.num_programs(1) - 1
    head = _clean_head(shape, j, head_ref, hidden_ref.dtype)
    bias = None if bias_ref is None else bias_ref[...]
    for r in range(shape.token_block // shape.row_piece):
        rows = pl.ds(r * shape.row_piece, shape.row_piece)
        hidden = hidden_ref[rows, :]
        own = tokens_ref[rows, :] - j * shape.vocab_block
        d = _gradient(shape, j, hidden, head, bias, rows_ref[rows, :], own)
        narrow = d.astype(hidden.dtype)
        if so_far_ref is not None and d_hidden_ref is not None:
            d_hidden_ref[rows, :] = so_far_ref[rows, :] + _dot(narrow, head, (1, shape.layout.index("v")))
        d_head = _dot(narrow, hidden, (0, 0)) if shape.layout == "vd" else _dot(hidden, narrow, (0, 0))
        d_bias = jnp.sum(d, axis=0, keepdims=True)
        first = (i == 0) if r == 0 else None
        head_sum[...] = (head_sum[...] if first is None else jnp.where(first, 0.0, head_sum[...])) + d_head
        bias_sum[...] = (bias_sum[...] if first is None else jnp.where(first, 0.0, bias_sum[...])) + d_bias

    @pl.when(i == last)
    def _() -> None:
        d_head_ref[...] = head_sum[...].astype(d_head_ref.dtype)
        d_bias_ref[...] = bias_sum[...]


def hidden_body(shape: Shape, *all_refs: Any) -> None:
    """Gradient of the hidden states alone: grid (token blocks, vocab blocks).

    Refs: tokens, rows, hidden, head, bias?; output: hidden's gradient; scratch: its sum [token block, D].
    """
    refs: list[Any] = list(all_refs)
    tokens_ref, rows_ref, hidden_ref, head_ref = refs[:4]
    bias = refs[4][...] if shape.bias else None
    d_hidden_ref, hidden_sum = refs[-2:]
    j, last = pl.program_id(1), pl.num_programs(1) - 1
    head = _clean_head(shape, j, head_ref, hidden_ref.dtype)
    for r in range(shape.token_block // shape.row_piece):
        rows = pl.ds(r * shape.row_piece, shape.row_piece)
        own = tokens_ref[rows, :] - j * shape.vocab_block
        d = _gradient(shape, j, hidden_ref[rows, :], head, bias, rows_ref[rows, :], own)
        part = _dot(d.astype(hidden_ref.dtype), head, (1, shape.layout.index("v")))
        hidden_sum[rows, :] = jnp.where(j == 0, 0.0, hidden_sum[rows, :]) + part

    @pl.when(j == last)
    def _() -> None:
        d_hidden_ref[...] = hidden_sum[...].astype(d_hidden_ref.dtype)
