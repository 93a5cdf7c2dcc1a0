"""Incremental decoding of rows that differ in length: each row has its own columns of keys and values."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax.models import decode, four_bit_cache
from prm_jax.models.attention_spec import NEGATIVE, soft_capped
from prm_jax.models.config import ModelConfig
from prm_jax.models.decode import KeyValues
from prm_jax.models.four_bit_cache import FourBitKeyValues
from prm_jax.models.transformer import Params

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoundedKeyValues:
    """Keys and values in 8 bits, with one scale per row, head and column: x is about `x8 * scale`, to scale / 2.

    Attributes:
      k: [N, K, head_dim, S] i8, keys after rotation.
      v: [N, K, S, head_dim] i8.
      k_scale, v_scale: [N, K, S] f32, the largest absolute entry divided by 127.
    """

    k: Array
    v: Array
    k_scale: Array
    v_scale: Array


Columns = KeyValues | RoundedKeyValues | FourBitKeyValues
Layers = tuple[Columns, ...]


def init_columns(config: ModelConfig, rows: int, columns: int, dtype: str) -> Layers:
    """Zeros for the keys and values of B = `rows` rows of at most C = `columns` tokens: N = B and S = C.

    `dtype` "int8" gives `RoundedKeyValues`, "int4" `FourBitKeyValues`.
    """
    if dtype == "int4":
        return tuple(four_bit_cache.empty(config, rows, columns) for _ in range(config.num_layers))
    heads, size = config.num_kv_heads, config.head_dim
    k, v = (rows, heads, size, columns), (rows, heads, columns, size)
    if dtype == "int8":
        scale = (rows, heads, columns)
        return tuple(
            RoundedKeyValues(jnp.zeros(k, dtype), jnp.zeros(v, dtype), jnp.zeros(scale), jnp.zeros(scale))
            for _ in range(config.num_layers)
        )
    return tuple(KeyValues(jnp.zeros(k, dtype), jnp.zeros(v, dtype)) for _ in range(config.num_layers))


def copy_columns(layers: Layers, prefix: Layers, into: Array, source: Array) -> Layers:
    """Copies rows of a prefill into the first columns of rows.

    Args:
      layers: N = B and S = C.
      prefix: N = P and at most C columns.
      into: [F] i32, the rows to overwrite; B for none.
      source: [F] i32 in [0, P), the row of the prefill that goes there.
    """
    columns = prefix[0].k.shape[-1]

    def copy(own: KeyValues, new: Any) -> KeyValues:
        k, v = new.k[source].astype(own.k.dtype), new.v[source].astype(own.v.dtype)
        return KeyValues(
            own.k.at[into, :, :, :columns].set(k, mode="drop"), own.v.at[into, :, :columns].set(v, mode="drop")
        )

    def rounded(own: RoundedKeyValues, new: Any) -> RoundedKeyValues:
        (k, k_scale), (v, v_scale) = _round(new.k[source], 2), _round(new.v[source], 3)
        return RoundedKeyValues(
            own.k.at[into, :, :, :columns].set(k, mode="drop"), own.v.at[into, :, :columns].set(v, mode="drop"),
            own.k_scale.at[into, :, :columns].set(k_scale, mode="drop"),
            own.v_scale.at[into, :, :columns].set(v_scale, mode="drop"),
        )  # fmt: skip

    def any_kind(own: Columns, new: Any) -> Columns:
        if isinstance(own, FourBitKeyValues):
            return own.copied(new, into, source)
        return rounded(own, new) if isinstance(own, RoundedKeyValues) else copy(own, new)

    return tuple(any_kind(own, new) for own, new in zip(layers, prefix, strict=True))


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
        own = _append(layers[layer], k, v, rows, columns)
        grown.append(own)
        return _attend(config, q, own, seen[config.windows[layer]]).astype(q.dtype)

    return decode.run_layers(config, params, tokens, columns, mix), tuple(grown)


def _append(own: Columns, k: Array, v: Array, rows: Array, columns: Array) -> Columns:
    """Writes k and v [B, K, head_dim] of each row's token at its column."""
    if isinstance(own, FourBitKeyValues):
        return own.appended(k, v, rows, columns)
    if isinstance(own, RoundedKeyValues):
        (k, k_scale), (v, v_scale) = _round(k, 2), _round(v, 2)
        return RoundedKeyValues(
            own.k.at[rows, :, :, columns].set(k, mode="drop", unique_indices=True),
            own.v.at[rows, :, columns].set(v, mode="drop", unique_indices=True),
            own.k_scale.at[rows, :, columns].set(k_scale, mode="drop", unique_indices=True),
            own.v_scale.at[rows, :, columns].set(v_scale, mode="drop", unique_indices=True),
        )
    return KeyValues(
        own.k.at[rows, :, :, columns].set(k.astype(own.k.dtype), mode="drop", unique_indices=True),
        own.v.at[rows, :, columns].set(v.astype(own.v.dtype), mode="drop", unique_indices=True),
    )


def _round(x: Array, axis: int) -> tuple[Array, Array]:
    """(i8, scale without the axis): symmetric, so that the largest absolute entry along the axis is 127."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(axis, keepdims=True) / 127
    return jnp.round(x / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8), scale.squeeze(axis)


def _attend(config: ModelConfig, q: Array, own: Columns, seen: Array) -> Array:
    """Attention of q [B, H, head_dim] over its row's columns where seen [B, C] -> [B, H * head_dim]."""
    rows, heads, size = q.shape
    kv_heads = own.k.shape[1]
    if isinstance(own, FourBitKeyValues):
        grouped = q.reshape(rows, kv_heads, heads // kv_heads, size)
        return own.attend(config, grouped, seen, config.score_scale).reshape(rows, heads * size)
    dtype = q.dtype if isinstance(own, RoundedKeyValues) else own.k.dtype
    grouped = (q * config.score_scale).astype(dtype).reshape(rows, kv_heads, heads // kv_heads, size)
    scores = jnp.einsum("bkqd,bkdc->bkqc", grouped, own.k.astype(dtype), preferred_element_type=jnp.float32)
    if isinstance(own, RoundedKeyValues):
        scores = scores * own.k_scale[:, :, None]
    scores = jnp.where(seen[:, None, None], soft_capped(scores, config.attn_softcap), NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1)
    if isinstance(own, RoundedKeyValues):
        weights = weights * own.v_scale[:, :, None]
    return jnp.einsum("bkqc,bkcd->bkqd", weights.astype(dtype), own.v.astype(dtype)).reshape(rows, heads * size)
