"""Grouped-query attention without repeated keys and values; softmax in float32."""

import math
from typing import Literal

import jax
import jax.numpy as jnp


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    *,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> jax.Array:
    """``softmax(q k^T / sqrt(head_dim)) v`` for every query head.

    Args:
      q: ``[B, T, num_heads, head_dim]``.
      k: ``[B, S, num_kv_heads, head_dim]``; query head h reads key head ``h // (num_heads / num_kv_heads)``.
      v: like ``k``.
      mask: ``[B or 1, T, S]`` bool, True where a query may look; a query that may look nowhere gets a finite
        mixture of everything, which the caller must not use.  None is causal, with ``S == T``.
      implementation: "cudnn" is flash attention on NVIDIA GPUs, for half-precision inputs.

    Returns:
      An array like ``q``.
    """
    if implementation == "cudnn":
        mask4 = None if mask is None else mask[:, None]
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask4, is_causal=mask is None, implementation="cudnn"
        )
    rows, length, num_heads, head_dim = q.shape
    num_kv = k.shape[2]
    if mask is None:
        mask = jnp.tril(jnp.ones((1, length, length), bool))
    grouped = q.reshape(rows, length, num_kv, num_heads // num_kv, head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k, preferred_element_type=jnp.float32)
    scores = scores * (1.0 / math.sqrt(head_dim))
    # A large finite value and not -inf: a row with nothing to look at must not become NaN.
    scores = jnp.where(mask[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, v)
    return out.reshape(rows, length, num_heads, head_dim)
