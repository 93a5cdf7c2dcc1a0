"""Incremental decoding: one prefill a prompt, then one token a row at a time over the same parameters.

The keys and values of a prompt are kept once, however many samples share it; each sample keeps its own only
for the tokens it has generated.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from prm_jax.models import rope
from prm_jax.models.cache import init_cache
from prm_jax.models.config import ModelConfig
from prm_jax.models.transformer import Params, Transformer, head_matrix, unstack_layers

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Keys and values of P prompts, right-padded; a tuple with one array a layer.

    Attributes:
      k: L arrays [P, S, num_kv_heads, head_dim], after rotation.
      v: the same shapes.
      lengths: [P] i32, tokens of each prompt; the columns behind them are never looked at.
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]
    lengths: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Suffix:
    """Keys and values of the tokens generated so far; a tuple with one array a layer.

    Attributes:
      k: L arrays [B, R, num_kv_heads, head_dim], after rotation.
      v: the same shapes.
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]


def prefill(config: ModelConfig, params: Params, tokens: Array, lengths: Array) -> tuple[Array, Prefix]:
    """Runs the prompts through the model.

    Args:
      config: the model.
      params: its parameters, layers stacked or a tuple.
      tokens: [P, S] i32, right-padded with any valid token.
      lengths: [P] i32 in [1, S].

    Returns:
      (hidden [P, D] of each prompt's last token, the prompts' `Prefix`).
    """
    params = unstack_layers(params)
    cache = init_cache(config, tokens.shape[0], tokens.shape[1], stacked=False)
    outputs: Any = Transformer(config).apply({"params": params}, tokens, cache=cache)
    hidden, cache = outputs
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return last, Prefix(cache.k, cache.v, lengths)


def init_suffix(config: ModelConfig, rows: int, steps: int) -> Suffix:
    """An empty `Suffix` for B = `rows` rows of at most R = `steps` tokens."""
    shape = (rows, steps, config.num_kv_heads, config.head_dim)

    def zeros() -> tuple[Array, ...]:
        return tuple(jnp.zeros(shape, config.compute_dtype) for _ in range(config.num_layers))

    return Suffix(zeros(), zeros())


def decode_step(
    config: ModelConfig, params: Params, prefix: Prefix, suffix: Suffix, tokens: Array, step: Array
) -> tuple[Array, Suffix]:
    """Feeds one token a row.

    Args:
      config: the model.
      params: its parameters with the layers as a tuple (`unstack_layers`).
      prefix: of the P prompts; row b belongs to prompt b // (B / P).
      suffix: what the rows have generated before.
      tokens: [B] i32, the token of generation step `step`.
      step: [] i32 in [0, R).

    Returns:
      (hidden [B, D] after the final norm, the suffix with this token's keys and values in column `step`).
    """
    groups = tokens.shape[0] // prefix.lengths.shape[0]
    positions = jnp.repeat(prefix.lengths, groups) + step
    rotation = rope.table(config, positions)
    masks = (
        jnp.arange(prefix.k[0].shape[1])[None] < prefix.lengths[:, None],
        jnp.arange(suffix.k[0].shape[1]) <= step,
    )
    x = jnp.take(params["embed"]["embedding"], tokens, axis=0).astype(config.compute_dtype)
    keys, values = list(suffix.k), list(suffix.v)
    for i, layer in enumerate(params["layers"]):
        normed = _norm(config, layer["attn_norm"], x)
        q, k, v = _project(config, layer["attn"], normed, rotation)
        keys[i] = lax.dynamic_update_slice_in_dim(keys[i], k[:, None], step, axis=1)
        values[i] = lax.dynamic_update_slice_in_dim(values[i], v[:, None], step, axis=1)
        mixed = _attend(q, (prefix.k[i], keys[i]), (prefix.v[i], values[i]), masks)
        x = x + _linear(config, layer["attn"]["o"], mixed)
        normed, mlp = _norm(config, layer["mlp_norm"], x), layer["mlp"]
        gated = jax.nn.silu(_linear(config, mlp["gate"], normed)) * _linear(config, mlp["up"], normed)
        x = x + _linear(config, mlp["down"], gated)
    return _norm(config, params["final_norm"], x), Suffix(tuple(keys), tuple(values))


def next_logits(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """[B, D] -> [B, V] f32."""
    head = head_matrix(config, params).astype(hidden.dtype)
    return lax.dot_general(head, hidden, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32).T


def _norm(config: ModelConfig, params: Params, x: Array) -> Array:
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.rms_norm_eps)
    return (wide * scale * params["scale"].astype(jnp.float32)).astype(x.dtype)


def _linear(config: ModelConfig, params: Params, x: Array) -> Array:
    y = x @ params["kernel"].astype(x.dtype)
    if "bias" in params:
        y = y + params["bias"].astype(x.dtype)
    if "lora_a" in params:
        a, b = params["lora_a"].astype(x.dtype), params["lora_b"].astype(x.dtype)
        y = y + ((x @ a) @ b) * (config.lora_alpha / a.shape[-1])
    return y


def _project(config: ModelConfig, attn: Params, x: Array, rotation: Any) -> tuple[Array, Array, Array]:
    """[B, D] -> q [B, num_heads, head_dim], k and v [B, num_kv_heads, head_dim]."""

    def heads(name: str, count: int) -> Array:
        return _linear(config, attn[name], x).reshape(x.shape[0], count, config.head_dim)

    q, k, v = heads("q", config.num_heads), heads("k", config.num_kv_heads), heads("v", config.num_kv_heads)
    if config.qk_norm:
        q, k = _norm(config, attn["q_norm"], q), _norm(config, attn["k_norm"], k)
    return rope.rotate(q, *rotation), rope.rotate(k, *rotation), v


def _attend(q: Array, keys: Any, values: Any, masks: Any) -> Array:
    """Attention of q [B, H, Hd] over the prompt's keys [P, S, K, Hd] and the row's own [B, R, K, Hd] -> [B, H
    * Hd].
    """
    (prefix_k, own_k), (prefix_v, own_v), (prefix_mask, own_mask) = keys, values, masks
    prompts, kv_heads = prefix_k.shape[0], prefix_k.shape[2]
    rows, heads, head_dim = q.shape
    q = q.reshape(prompts, rows // prompts, kv_heads, heads // kv_heads, head_dim) / math.sqrt(head_dim)
    shared = jnp.einsum("pnkgd,pskd->pnkgs", q, prefix_k, preferred_element_type=jnp.float32)
    flat = q.reshape(rows, kv_heads, heads // kv_heads, head_dim)
    own = jnp.einsum("bkgd,brkd->bkgr", flat, own_k, preferred_element_type=jnp.float32)
    shared = jnp.where(prefix_mask[:, None, None, None], shared, -1e30).reshape(*own.shape[:-1], -1)
    own = jnp.where(own_mask, own, -1e30)
    weights = jax.nn.softmax(jnp.concatenate([shared, own], axis=-1), axis=-1).astype(own_v.dtype)
    first, second = jnp.split(weights, [prefix_k.shape[1]], axis=-1)
    out = jnp.einsum("pnkgs,pskd->pnkgd", first.reshape(*q.shape[:-1], -1), prefix_v).reshape(flat.shape)
    return (out + jnp.einsum("bkgr,brkd->bkgd", second, own_v)).reshape(rows, heads * head_dim)
