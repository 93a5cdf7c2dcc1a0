"""Attention by one array of scores, [B, num_heads, T, S]: the fastest way for short rows, on every platform."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from prm_jax.models.attention_spec import NEGATIVE, SAVED, AttentionSpec


def naive_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None, spec: AttentionSpec
) -> jax.Array:
    """As ``attention.attend``, with the keys and values of exactly the columns before ``offset + T``."""
    rows, length, num_heads, head_dim = q.shape
    columns, num_kv = k.shape[1:3]
    grouped = q.reshape(rows, length, num_kv, num_heads // num_kv, head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k, preferred_element_type=jnp.float32)
    scores = spec.capped(scores * spec.scale)
    seen = spec.visible(spec.offset + jnp.arange(length), jnp.arange(columns))[None]
    if segment_ids is not None:
        seen = seen & (segment_ids[:, spec.offset :, None] == segment_ids[:, None, :])
    scores = jnp.where(seen[:, None, None], scores, NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, v)
    return checkpoint_name(out.reshape(rows, length, num_heads, head_dim), SAVED)
