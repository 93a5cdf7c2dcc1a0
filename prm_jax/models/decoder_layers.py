"""The layers of a decoder as Flax Linen modules, and the operations that decoding shares with them."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from prm_jax.models import rope
from prm_jax.models.attention import attend
from prm_jax.models.config import ModelConfig
from prm_jax.models.expert_load import ExpertLoad
from prm_jax.models.expert_split import ExpertSplit
from prm_jax.models.experts import Experts, activate
from prm_jax.models.qtensor import QTensor
from prm_jax.models.quantized_product import product
from prm_jax.models.rows import split_over_rows
from prm_jax.models.tensor_split import TensorSplit

Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines, [B or 1, T, half], or [B or 1, R, T, half] where layers have R kinds of rotations."""


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * (scale + offset)`` over the last axis, in float32 (arXiv:1910.07467).

    The offset is the family's: 0, or 1 where files store the difference from 1.  With ``axis``, each device has an
    equal part of the features, and the mean is taken over the devices as well.
    """

    config: ModelConfig
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        offset = self.config.family.norm_offset
        initializer = nn.initializers.constant(1.0 - offset)
        scale = self.param("scale", initializer, (x.shape[-1],), jnp.dtype(self.config.dtype))
        return _rms_norm(x, scale, self.config.rms_norm_eps, offset, self.axis)


# Recomputed in the backward pass at no cost, so that XLA fuses the forward pass in the same way whether or not it is
# differentiated: a policy and its reference get the same bits.
@functools.partial(jax.checkpoint, static_argnums=(2, 3, 4))
def _rms_norm(x: jax.Array, scale: jax.Array, eps: float, offset: float, axis: str | None) -> jax.Array:
    wide = x.astype(jnp.float32)
    square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    square = square if axis is None else jax.lax.pmean(square, axis)
    normed = wide * jax.lax.rsqrt(square + eps)
    return (normed * norm_factor(scale, offset)).astype(x.dtype)


def norm_factor(scale: jax.Array, offset: float) -> jax.Array:
    """What a norm multiplies by, float32."""
    scale = scale.astype(jnp.float32)
    return scale + offset if offset else scale


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """``x * factor`` in the dtype of ``x``, to which the factor is rounded; ``x`` itself for 1."""
    return x if factor == 1 else x * jnp.asarray(factor, x.dtype)


class Linear(nn.Module):
    """``x @ kernel (+ bias)``, plus ``(x @ lora_a) @ lora_b * lora_alpha / rank`` where there are adapters.

    With ``split``, each device has some of the rows of ``kernel``, and the products are summed over the devices.
    The kernel may be a `QTensor`.
    """

    config: ModelConfig
    features: int
    use_bias: bool
    gain: float = 1.0
    split: TensorSplit | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, dtype = x.shape[-1], jnp.dtype(self.config.dtype)
        # Matrix products instead of products of [B, T, D], for which XLA on CPU takes twice as long in the gradient.
        shape, x = x.shape, x.reshape(-1, width)
        stored: Any = self.get_variable("params", "kernel")
        if isinstance(stored, QTensor):
            y = product(x, stored)
        else:
            initializer = nn.initializers.normal(self.gain / math.sqrt(width))
            y = x @ self.param("kernel", initializer, (width, self.features), dtype).astype(x.dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), dtype).astype(x.dtype)
        if bias is not None and self.split is None:
            y = y + bias
        if self.has_variable("params", "lora_a"):
            lora_a: jax.Array = self.get_variable("params", "lora_a").astype(x.dtype)
            lora_b: jax.Array = self.get_variable("params", "lora_b").astype(x.dtype)
            y = y + ((x @ lora_a) @ lora_b) * (self.config.lora_alpha / lora_a.shape[-1])
        y = y.reshape(*shape[:-1], self.features)
        if self.split is not None:
            y = self.split.leave(y)
            y = y if bias is None else y + bias
        return y


class Attention(nn.Module):
    """Causal self-attention with rotary positions; ``sow``s its keys and values as "kv"."""

    config: ModelConfig
    split: TensorSplit | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, rotation: Rotation, segment_ids: jax.Array | None, kind: jax.Array | None = None
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; ``segment_ids`` as in ``attend``, ``kind`` as in ``_layer_kinds``."""
        config = self.config
        wide, axis = config.family.qk_norm == "width", None if self.split is None else self.split.axis
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim

        def project(name: str, count: int) -> jax.Array:
            y = Linear(config, count * head_dim, config.attention_bias, name=name)(x)
            y = RMSNorm(config, axis, name=f"{name}_norm")(y) if wide and name != "v" else y
            return y.reshape(*x.shape[:-1], count, head_dim)

        q, k, v = project("q", heads), project("k", kv_heads), project("v", kv_heads)
        if config.family.qk_norm == "head":
            q, k = RMSNorm(config, name="q_norm")(q), RMSNorm(config, name="k_norm")(k)
        if kind is not None and len(config.rotation_kinds) > 1:
            rotation = rotation[0][:, kind[1]], rotation[1][:, kind[1]]
        q, k = rope.rotate(q, *rotation), rope.rotate(k, *rotation)
        self.sow("kv", "keys", k)
        self.sow("kv", "values", v)
        out = _windowed(config, kind, q, k, v, segment_ids)
        out = out.reshape(*x.shape[:-1], heads * head_dim)
        gain = 1.0 / math.sqrt(2 * config.num_layers)
        return Linear(config, config.hidden_size, config.out_bias, gain, self.split, name="o")(out)


def _windowed(
    config: ModelConfig,
    kind: jax.Array | None,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
) -> jax.Array:
    """``attend`` with the layer's window; ``kind`` as in ``_layer_kinds``."""
    windows = [
        functools.partial(
            attend, segment_ids=segment_ids, window=window, softcap=config.attn_softcap, scale=config.attn_scale,
            implementation=config.attention,
        )
        for window in config.window_kinds
    ]  # fmt: skip
    if kind is None or len(windows) == 1:
        return windows[0](q, k, v)
    return jax.lax.switch(kind[0], windows, q, k, v)


class MLP(nn.Module):
    """``down(activation(gate(x)) * up(x))`` (arXiv:2002.05202)."""

    config: ModelConfig
    split: TensorSplit | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        gate = Linear(config, config.intermediate_size, config.mlp_bias, name="gate")(x)
        up = Linear(config, config.intermediate_size, config.mlp_bias, name="up")(x)
        gain = 1.0 / math.sqrt(2 * config.num_layers)
        down = Linear(config, config.hidden_size, config.mlp_bias, gain, self.split, name="down")
        return down(activate(config, gate) * up)


class Block(nn.Module):
    """One layer, as the body of a scan; ``split`` and ``experts`` under ``shard_map`` only, with a device's own config.

    Norms stand before attention and MLP, after them, or both, as the family says.
    """

    config: ModelConfig
    split: TensorSplit | None = None
    experts: ExpertSplit | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation,
        segment_ids: jax.Array | None,
        counted: jax.Array | None,
        kind: jax.Array | None,
    ) -> tuple[jax.Array, ExpertLoad | None]:
        """``[B, T, D] -> ([B, T, D], load)``; arguments as in ``Attention`` and ``Experts``."""
        config = self.config

        def normed(name: str, y: jax.Array) -> jax.Array:
            return RMSNorm(config, name=name)(y) if name in config.family.norms else y

        def entered(y: jax.Array) -> jax.Array:
            return y if self.split is None else self.split.enter(y)

        def branch(name: str, y: jax.Array) -> jax.Array:
            return scaled(normed(name, y), config.residual_scale)

        x = split_over_rows(x)
        attention = Attention(config, self.split, name="attn")
        y = attention(entered(normed("attn_norm", x)), rotation, segment_ids, kind)
        x = split_over_rows(x + branch("attn_post_norm", y))
        y, load = entered(normed("mlp_norm", x)), None
        if config.num_experts:
            y, load = Experts(config, self.split, self.experts, name="mlp")(y, counted)
        else:
            y = MLP(config, self.split, name="mlp")(y)
        return split_over_rows(x + branch("mlp_post_norm", y)), load
