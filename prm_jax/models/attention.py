"""Causal grouped-query attention without repeated keys and values; softmax in float32."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from prm_jax.models.blockwise_attention import blockwise_attention
from prm_jax.models.rows import mesh_of, over_rows_and_heads
from prm_jax.target_device import platform_and_kind

Implementation = Literal["auto", "naive", "blockwise", "cudnn"]
_BLOCKWISE_FROM = 256


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    implementation: Implementation = "auto",
) -> jax.Array:
    """``softmax(q k^T / sqrt(head_dim)) v`` over the tokens up to each query's own, for every query head.

    Args:
      q: ``[B, T, num_heads, head_dim]``.
      k: ``[B, T, num_kv_heads, head_dim]``; query head h reads key head ``h // (num_heads / num_kv_heads)``.
      v: like ``k``.
      segment_ids: ``[B, T]`` int32 of packed rows, contiguous runs of one id; a query sees its own segment only.
      implementation: "naive" computes all scores as one ``[B, num_heads, T, T]`` array; "blockwise" never does (see
        ``blockwise_attention``); "cudnn" is flash attention on NVIDIA GPUs, for half-precision inputs, and makes a
        ``[B, 1, T, T]`` array for packed rows; "auto" see ``resolve``.

    Returns:
      An array like ``q``.
    """
    chosen = resolve(implementation, platform=platform_and_kind(q)[0], length=q.shape[1])
    local: Callable[..., jax.Array] = functools.partial(_attend, chosen)
    mesh = mesh_of(q, k, v)
    if mesh is not None:
        local = over_rows_and_heads(local, mesh, rows=q.shape[0], heads=(q.shape[2], k.shape[2]))
    return local(q, k, v, segment_ids)


def resolve(implementation: Implementation, *, platform: str, length: int) -> Implementation:
    """Resolves "auto": "blockwise" on CPUs from 256 tokens, otherwise "naive".

    The choice depends on static values only and is made before tracing, so that policy, reference and reward model,
    which see the same rows, use the same one and agree bit for bit.

    Args:
      implementation: as asked for; anything but "auto" is returned as it is.
      platform: "cpu", "gpu" or "tpu".
      length: T.
    """
    if implementation != "auto":
        return implementation
    return "blockwise" if platform == "cpu" and length >= _BLOCKWISE_FROM else "naive"


def _attend(
    chosen: Implementation, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None
) -> jax.Array:
    if chosen == "blockwise":
        return blockwise_attention(q, k, v, segment_ids)
    if chosen == "cudnn":
        mask = None if segment_ids is None else _mask(q.shape[1], segment_ids)[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=mask is None, implementation="cudnn")
    return _naive(q, k, v, segment_ids)


def _naive(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    rows, length, num_heads, head_dim = q.shape
    num_kv = k.shape[2]
    grouped = q.reshape(rows, length, num_kv, num_heads // num_kv, head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k, preferred_element_type=jnp.float32)
    scores = scores * (1.0 / math.sqrt(head_dim))
    scores = jnp.where(_mask(length, segment_ids)[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, v)
    return out.reshape(rows, length, num_heads, head_dim)


def _mask(length: int, segment_ids: jax.Array | None) -> jax.Array:
    """[B or 1, T, T] bool, True where a query may look."""
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    if segment_ids is None:
        return causal
    return causal & (segment_ids[:, :, None] == segment_ids[:, None, :])
