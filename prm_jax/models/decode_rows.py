"""Incremental decoding of rows that differ in length: each row has its own columns of keys and values."""

import math

import jax
import jax.numpy as jnp

from prm_jax.models import decode
from prm_jax.models.attention_spec import NEGATIVE, soft_capped
from prm_jax.models.config import ModelConfig
from prm_jax.models.decode import KeyValues
from prm_jax.models.transformer import Params

Array = jax.Array
Layers = tuple[KeyValues, ...]


def init_columns(config: ModelConfig, rows: int, columns: int, dtype: str) -> Layers:
    """Zeros for the keys and values of B = `rows` rows of at most C = `columns` tokens: N = B and S = C."""
    heads, size = config.num_kv_heads, config.head_dim

    def layer() -> KeyValues:
        return KeyValues(jnp.zeros((rows, heads, size, columns), dtype), jnp.zeros((rows, heads, columns, size), dtype))

    return tuple(layer() for _ in range(config.num_layers))


def copy_columns(layers: Layers, prefix: Layers, into: Array, source: Array) -> Layers:
    """Copies rows of a prefill into the first columns of rows.

    Args:
      layers: N = B and S = C.
      prefix: N = P and at most C columns.
      into: [F] i32, the rows to overwrite; B for none.
      source: [F] i32 in [0, P), the row of the prefill that goes there.
    """
    columns = prefix[0].k.shape[-1]

    def copy(own: KeyValues, new: KeyValues) -> KeyValues:
        k, v = new.k[source].astype(own.k.dtype), new.v[source].astype(own.v.dtype)
        return KeyValues(
            own.k.at[into, :, :, :columns].set(k, mode="drop"), own.v.at[into, :, :columns].set(v, mode="drop")
        )

    return tuple(copy(own, new) for own, new in zip(layers, prefix, strict=True))


def decode_rows(
    config: ModelConfig, params: Params, layers: Layers, tokens: Array, columns: Array
) -> tuple[Array, Layers]:
    """Feeds one token per row, each at its own column.

    Args:
      config: the model.
      params: its parameters, from ``decode.prepare``.
      layers: keys and values of the rows, N = B and S = C.
      tokens: [B] i32.
      columns: [B] i32, the token's column, which is its position; C for a row whose token is not kept.

    Returns:
      (hidden [D, B] after the final norm, the layers with the tokens' keys and values); hidden states of rows at
      column C are arbitrary.
    """
    rows = jnp.arange(tokens.shape[0])
    distance = columns[:, None] - jnp.arange(layers[0].k.shape[-1])
    seen = {w: (distance >= 0) & (True if w is None else distance < w) for w in config.window_kinds}
    grown = []

    def mix(layer: int, q: Array, k: Array, v: Array) -> Array:
        own = layers[layer]
        own = KeyValues(
            own.k.at[rows, :, :, columns].set(k.astype(own.k.dtype), mode="drop", unique_indices=True),
            own.v.at[rows, :, columns].set(v.astype(own.v.dtype), mode="drop", unique_indices=True),
        )
        grown.append(own)
        return _attend(config, q, own, seen[config.windows[layer]]).astype(q.dtype)

    return decode.run_layers(config, params, tokens, columns, mix), tuple(grown)


def _attend(config: ModelConfig, q: Array, own: KeyValues, seen: Array) -> Array:
    """Attention of q [B, H, head_dim] over its row's columns where seen [B, C] -> [B, H * head_dim]."""
    rows, heads, size = q.shape
    kv_heads = own.k.shape[1]
    grouped = (q / math.sqrt(size)).astype(own.k.dtype).reshape(rows, kv_heads, heads // kv_heads, size)
    scores = jnp.einsum("bkqd,bkdc->bkqc", grouped, own.k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen[:, None, None], soft_capped(scores, config.attn_softcap), NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1).astype(own.v.dtype)
    return jnp.einsum("bkqc,bkcd->bkqd", weights, own.v).reshape(rows, heads * size)
