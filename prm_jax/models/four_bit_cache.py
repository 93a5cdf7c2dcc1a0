"""Keys and values in 4 bits, keys smoothed first (QServe, arXiv:2405.04532, sections 4.2 and 5.3).

A few channels of the keys are much larger than the others and would decide the scale of every vector. Each row divides
its keys by the square root of the largest absolute key of its prefill, by channel, and multiplies its queries instead.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax.models.attention_spec import NEGATIVE, soft_capped
from prm_jax.models.config import ModelConfig
from prm_jax.models.qtensor import pack, unpack

Array = jax.Array
_TOP = 15


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FourBitKeyValues:
    """Keys and values of one layer; a vector is ``low + scale * integers``, to half a scale.

    Attributes:
      k: [N, K, head_dim / 2, S] u8, smoothed keys after rotation, two neighbouring channels per byte.
      v: [N, K, S, head_dim / 2] u8.
      k_scale, k_low, v_scale, v_low: [N, K, S] bf16.
      smooth: [N, K, head_dim] f32, by which keys are divided.
    """

    k: Array
    v: Array
    k_scale: Array
    k_low: Array
    v_scale: Array
    v_low: Array
    smooth: Array

    def copied(self, prefix: Any, into: Array, source: Array) -> "FourBitKeyValues":
        """With rows of a prefill in the first columns of rows, see ``decode_rows.copy_columns``."""
        columns = prefix.k.shape[-1]
        keys = prefix.k[source].astype(jnp.float32)
        largest = jnp.abs(keys).max(-1)
        smooth = jnp.sqrt(jnp.where(largest > 0, largest, 1.0))
        k, k_scale, k_low = _round(keys / smooth[..., None], 2)
        v, v_scale, v_low = _round(prefix.v[source], 3)
        scalars = {"k_scale": k_scale, "k_low": k_low, "v_scale": v_scale, "v_low": v_low}
        return FourBitKeyValues(
            k=self.k.at[into, :, :, :columns].set(k, mode="drop"),
            v=self.v.at[into, :, :columns].set(v, mode="drop"),
            smooth=self.smooth.at[into].set(smooth, mode="drop"),
            **{name: getattr(self, name).at[into, :, :columns].set(x, mode="drop") for name, x in scalars.items()},
        )

    def appended(self, k: Array, v: Array, rows: Array, columns: Array) -> "FourBitKeyValues":
        """With k and v [N, K, head_dim] of each row's token at its column."""
        k, k_scale, k_low = _round(k / self.smooth, 2)
        v, v_scale, v_low = _round(v, 2)
        scalars = {"k_scale": k_scale, "k_low": k_low, "v_scale": v_scale, "v_low": v_low}
        return FourBitKeyValues(
            k=self.k.at[rows, :, :, columns].set(k, mode="drop", unique_indices=True),
            v=self.v.at[rows, :, columns].set(v, mode="drop", unique_indices=True),
            smooth=self.smooth,
            **{
                name: getattr(self, name).at[rows, :, columns].set(x, mode="drop", unique_indices=True)
                for name, x in scalars.items()
            },
        )

    def attend(self, config: ModelConfig, q: Array, seen: Array, scale: Any) -> Array:
        """Attention of q [N, K, G, head_dim] over its row's columns where seen [N, S] -> [N, K, G, head_dim]."""
        keys, values = unpack(self.k, 4).astype(q.dtype), _unpack_last(self.v).astype(q.dtype)
        q = (q * scale * self.smooth[:, :, None]).astype(q.dtype)
        scores = jnp.einsum("bkqd,bkdc->bkqc", q, keys, preferred_element_type=jnp.float32)
        k_scale, k_low, v_scale, v_low = (
            x[:, :, None].astype(jnp.float32) for x in (self.k_scale, self.k_low, self.v_scale, self.v_low)
        )
        scores = scores * k_scale + q.astype(jnp.float32).sum(-1, keepdims=True) * k_low
        scores = jnp.where(seen[:, None, None], soft_capped(scores, config.attn_softcap), NEGATIVE)
        weights = jax.nn.softmax(scores, axis=-1)
        out = jnp.einsum("bkqc,bkcd->bkqd", (weights * v_scale).astype(q.dtype), values)
        return out + (weights * v_low).sum(-1, keepdims=True).astype(q.dtype)


def empty(config: ModelConfig, rows: int, columns: int) -> FourBitKeyValues:
    """Zeros for one layer of N = `rows` rows and S = `columns` columns."""
    heads, size = config.num_kv_heads, config.head_dim
    scalar = jnp.zeros((rows, heads, columns), jnp.bfloat16)
    k = jnp.zeros((rows, heads, size // 2, columns), jnp.uint8)
    return FourBitKeyValues(
        k, jnp.swapaxes(k, 2, 3), scalar, scalar, scalar, scalar, smooth=jnp.ones((rows, heads, size))
    )


def cache_bytes(config: ModelConfig, rows: int, columns: int) -> int:
    """Bytes of the keys and values of all layers."""
    per_layer = 2 * columns * (config.head_dim // 2 + 4) + 4 * config.head_dim
    return config.num_layers * config.num_kv_heads * rows * per_layer


def _round(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """(packed along the axis, scale and low without it), from the least to the largest entry along the axis."""
    x = x.astype(jnp.float32)
    low = x.min(axis, keepdims=True).astype(jnp.bfloat16)
    scale = ((x.max(axis, keepdims=True) - low) / _TOP).astype(jnp.bfloat16)
    wide = scale.astype(jnp.float32)
    integers = jnp.round((x - low.astype(jnp.float32)) / jnp.where(wide > 0, wide, 1.0))
    integers = jnp.clip(integers, 0, _TOP).astype(jnp.uint8)
    moved = jnp.moveaxis(integers, axis, -2) if integers.ndim > 3 else integers[..., None]
    packed = pack(moved, 4)
    packed = jnp.moveaxis(packed, -2, axis) if integers.ndim > 3 else packed[..., 0]
    return packed, scale.squeeze(axis), low.squeeze(axis)


def _unpack_last(packed: Array) -> Array:
    """[..., D / 2] -> [..., D]."""
    return unpack(packed[..., None], 4)[..., 0]
