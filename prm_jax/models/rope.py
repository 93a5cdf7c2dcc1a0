"""Rotary position embeddings in the rotate-half layout of Hugging Face, with its frequency scalings."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.models.config import ModelConfig, Rotation
from prm_jax.models.rope_scaling import RopeScaling


def frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Angular frequencies of the rotary pairs, and the factor on cosines and sines.

    Sources: arXiv:2104.09864 eq. 15 (plain), arXiv:2306.15595 (linear), arXiv:2309.00071 section 3 (yarn),
    arXiv:2402.13753 (longrope), and the Llama 3.1 release for ``llama3``.

    Returns:
      ``(inverse frequencies [rotary_dim / 2] float64, factor)``.
    """
    plain = _plain(config, config.rope_theta)
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "dynamic":
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    if scaling.kind == "longrope":
        return plain / np.asarray(scaling.short_factor, np.float64), _longrope_attention_factor(scaling)
    return _yarn(plain, scaling, config), _yarn_attention_factor(scaling)


def table(config: ModelConfig, positions: jax.Array, kind: Rotation = "plain") -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of every position.

    Args:
      config: gives the frequencies.
      positions: int32 of any shape.
      kind: of the layer.

    Returns:
      ``(cos, sin)``, each ``[*positions.shape, rotary_dim / 2]`` float32; (1, 0) for ``kind`` "none".
    """
    if kind == "none":
        ones = jnp.ones((*positions.shape, (config.rotary_dim or config.head_dim) // 2), jnp.float32)
        return ones, 0 * ones
    inverse, factor = frequencies(config) if kind == "plain" else (_plain(config, config.rope_local_theta), 1.0)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(inverse, jnp.float32)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates feature i of each head together with feature i + rotary_dim / 2, in float32.

    Args:
      x: ``[B, T, heads, head_dim]``; features from ``rotary_dim`` on are left as they are.
      cos: ``[B or 1, T, rotary_dim / 2]`` float32, from ``table``.
      sin: the same shape.

    Returns:
      An array like ``x``.
    """
    cos, sin = cos[..., None, :], sin[..., None, :]
    size = 2 * cos.shape[-1]
    first, second = jnp.split(x[..., :size].astype(jnp.float32), 2, axis=-1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if size < x.shape[-1]:
        parts.append(x[..., size:].astype(jnp.float32))
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def _plain(config: ModelConfig, theta: float | None) -> np.ndarray:
    assert theta is not None
    half = (config.rotary_dim or config.head_dim) // 2
    return theta ** (-np.arange(half, dtype=np.float64) / half)


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    assert scaling.original_max_position_embeddings is not None
    turns = scaling.original_max_position_embeddings * plain / (2 * np.pi)  # rotations within the old context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def _yarn(plain: np.ndarray, scaling: RopeScaling, config: ModelConfig) -> np.ndarray:
    old = scaling.original_max_position_embeddings or config.max_position_embeddings

    size = 2 * plain.size

    def pair_with(rotations: float) -> float:
        return size * math.log(old / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = np.clip((np.arange(plain.size) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return plain / scaling.factor * ramp + plain * (1 - ramp)


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def _longrope_attention_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    assert scaling.original_max_position_embeddings is not None
    if scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_position_embeddings))
