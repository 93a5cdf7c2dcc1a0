"""Causal attention over blocks of queries and keys: no array of scores is larger than one block by one block.

A scan over query blocks; inside it a loop over the key blocks up to the diagonal with a running softmax
(arXiv:2112.05682, arXiv:2205.14135), so that the blocks above the diagonal, before the window and before the segment
cost nothing.  The backward pass keeps the output and the log-sum-exps and recomputes the weights.  Plain XLA: it runs
on every platform and is made for CPUs, where it takes a fraction of the time and memory of a full matrix of scores
from some 256 tokens on.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from prm_jax.models.attention_spec import NEGATIVE, SAVED, AttentionSpec
from prm_jax.varying import align


def block_size(length: int) -> int:
    """Tokens per block: at most 64 and a multiple of 8, so that rows are padded little; 128 above 4,096 tokens."""
    if length > 4096:
        return 128
    blocks = -(-length // 64)
    return -(-length // (8 * blocks)) * 8


def blockwise_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None, spec: AttentionSpec
) -> jax.Array:
    """As ``attention.attend``, with the keys and values of exactly the columns before ``offset + T``."""
    q, k, v = align((q, k, v), segment_ids)
    length, columns = q.shape[1], k.shape[1]
    size = spec.block or block_size(length)
    padding = -length % size
    behind = -(spec.offset + length + padding) % size + padding  # key columns that no query sees
    if padding:  # the cotangents of further queries are zero
        q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    if behind:
        k, v = (jnp.pad(x, ((0, 0), (0, behind), (0, 0), (0, 0))) for x in (k, v))
        if segment_ids is not None:
            segment_ids = jnp.pad(segment_ids, ((0, 0), (0, behind)), mode="edge")
    assert k.shape[1] == columns + behind and not k.shape[1] % size
    return _attention(q, k, v, segment_ids, spec, size)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, spec: AttentionSpec, block: int
) -> jax.Array:
    return _forward(q, k, v, segments, spec, block)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, spec: AttentionSpec, block: int
) -> tuple[jax.Array, tuple[Any, ...]]:
    queries = _query_blocks(q, k.shape[2], block)
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
    first = _first_blocks(segments, spec, block, len(queries))

    def one(_: None, inputs: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        query, i, start = inputs

        def visit(j: jax.Array, carry: tuple[jax.Array, ...], diagonal: bool = False) -> tuple[jax.Array, ...]:
            top, total, mixed = carry
            scores, _ = _scores(query, keys, segments, spec, (i, j), diagonal=diagonal)
            new_top = jnp.maximum(top, scores.max(-1))
            shrink = jnp.exp(top - new_top)
            weights = jnp.exp(scores - new_top[..., None])
            part = _product("bkgts,bksd->bkgtd", weights.astype(v.dtype), _rows(values, j, block))
            return new_top, total * shrink + weights.sum(-1), mixed * shrink[..., None] + part

        shape = query.shape[:-1]
        blank = align((jnp.full(shape, NEGATIVE), jnp.zeros(shape), jnp.zeros(query.shape)), query)
        top, total, mixed = _over_key_blocks(visit, blank, spec, block, i, start)
        return None, ((mixed / total[..., None]).astype(q.dtype), top + jnp.log(total))

    _, (blocks, lse) = lax.scan(one, None, (queries, jnp.arange(len(queries)), first))
    out = checkpoint_name(_from_query_blocks(blocks, q.shape), SAVED)
    return out, (q, k, v, segments, out, checkpoint_name(lse, SAVED))


def _backward(spec: AttentionSpec, block: int, residuals: tuple[Any, ...], cotangent: jax.Array) -> tuple[Any, ...]:
    q, k, v, segments, out, lse = residuals
    queries, cotangents, outs = (_query_blocks(x, k.shape[2], block) for x in (q, cotangent, out))
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
    delta = (cotangents.astype(jnp.float32) * outs.astype(jnp.float32)).sum(-1)
    first = _first_blocks(segments, spec, block, len(queries))

    def one(carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        query, d_out, query_lse, query_delta, i, start = inputs

        def visit(j: jax.Array, carry: tuple[jax.Array, ...], diagonal: bool = False) -> tuple[jax.Array, ...]:
            d_keys, d_values, d_query = carry
            scores, slope = _scores(query, keys, segments, spec, (i, j), diagonal=diagonal)
            weights = jnp.exp(scores - query_lse[..., None])
            d_weights = _product("bkgtd,bksd->bkgts", d_out, _rows(values, j, block))
            d_scores = weights * (d_weights - query_delta[..., None]) * spec.scale
            d_scores = (d_scores if slope is None else d_scores * slope).astype(q.dtype)
            d_values = _add_rows(d_values, j, _product("bkgts,bkgtd->bksd", weights.astype(q.dtype), d_out))
            d_keys = _add_rows(d_keys, j, _product("bkgts,bkgtd->bksd", d_scores, query))
            return d_keys, d_values, d_query + _product("bkgts,bksd->bkgtd", d_scores, _rows(keys, j, block))

        start_carry = (*carry, align(jnp.zeros(query.shape), query))
        d_keys, d_values, d_query = _over_key_blocks(visit, start_carry, spec, block, i, start)
        return (d_keys, d_values), d_query.astype(q.dtype)

    zeros = align(jnp.zeros(keys.shape), keys)
    inputs = (queries, cotangents, lse, delta, jnp.arange(len(queries)), first)
    (d_keys, d_values), d_queries = lax.scan(one, (zeros, zeros), inputs)
    d_k, d_v = (x.swapaxes(1, 2).astype(k.dtype) for x in (d_keys, d_values))
    return _from_query_blocks(d_queries, q.shape), d_k, d_v, None


_attention.defvjp(_forward, _backward)


def _over_key_blocks(
    visit: Callable[..., Any], carry: Any, spec: AttentionSpec, block: int, i: jax.Array, start: jax.Array
) -> Any:
    """Calls ``visit(j, carry)`` for the key blocks that query block i sees, from ``start`` on.

    The last one, or two where ``offset`` is not a multiple of the block, are on the diagonal.
    """
    whole = spec.offset // block + i
    carry = visit(whole, lax.fori_loop(start, whole, visit, carry), diagonal=True)
    return visit(whole + 1, carry, diagonal=True) if spec.offset % block else carry


def _scores(
    query: jax.Array,
    keys: jax.Array,
    segments: jax.Array | None,
    spec: AttentionSpec,
    blocks: tuple[jax.Array, jax.Array],
    *,
    diagonal: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Scores of query block i and key block j, and the derivative of the soft cap (None without one).

    Both are [B, K, G, b, b] float32; scores are ``NEGATIVE`` where a query may not look.
    """
    (i, j), block = blocks, query.shape[-2]
    scores = spec.capped(_product("bkgtd,bksd->bkgts", query, _rows(keys, j, block)) * spec.scale)
    slope = None if spec.softcap is None else 1 - (scores / spec.softcap) ** 2
    if segments is not None:
        starts = (spec.offset + i * block, j * block)
        of_queries, of_keys = (lax.dynamic_slice_in_dim(segments, at, block, 1) for at in starts)
        scores = jnp.where((of_queries[:, :, None] == of_keys[:, None, :])[:, None, None], scores, NEGATIVE)
    if diagonal or spec.window is not None:
        column = jnp.arange(block)
        scores = jnp.where(spec.visible(spec.offset + i * block + column, j * block + column), scores, NEGATIVE)
    return scores, slope


def _first_blocks(segments: jax.Array | None, spec: AttentionSpec, block: int, count: int) -> jax.Array:
    """[n] int32: the first key block that query block i of any row sees a part of."""
    first = jnp.zeros((count,), jnp.int32)
    if spec.window is not None:
        first = jnp.maximum(spec.offset + jnp.arange(count, dtype=jnp.int32) * block - spec.window + 1, 0) // block
    if segments is None:
        return first
    column = jnp.arange(segments.shape[1], dtype=jnp.int32)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    run_start = lax.cummax(jnp.where(begins, column, 0), axis=1)
    return jnp.maximum(run_start[:, spec.offset :: block][:, :count].min(axis=0) // block, first)


def _query_blocks(x: jax.Array, kv_heads: int, block: int) -> jax.Array:
    """[B, T, H, D] -> [n, B, K, G, b, D]."""
    rows, length, heads, width = x.shape
    blocks = x.reshape(rows, length // block, block, kv_heads, heads // kv_heads, width)
    return blocks.transpose(1, 0, 3, 4, 2, 5)


def _from_query_blocks(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return blocks.transpose(1, 0, 4, 2, 3, 5).reshape(shape)


def _rows(x: jax.Array, j: jax.Array, block: int) -> jax.Array:
    """Block j of [B, K, T, D]."""
    return lax.dynamic_slice_in_dim(x, j * block, block, 2)


def _add_rows(x: jax.Array, j: jax.Array, update: jax.Array) -> jax.Array:
    block = update.shape[2]
    return lax.dynamic_update_slice_in_dim(x, _rows(x, j, block) + update, j * block, 2)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)
