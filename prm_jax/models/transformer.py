"""A decoder language model for Llama, Qwen2 and Qwen3: Flax Linen used as init/apply over plain dicts.

The layers' parameters are stacked on a leading axis and run by one scan.  The model returns hidden states
after the final norm; logits are made only where they are needed (see ``logprobs`` and ``generate``).
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from prm_jax.models import rope
from prm_jax.models.attention import attend
from prm_jax.models.cache import KVCache
from prm_jax.models.config import ModelConfig

Params = dict[str, Any]
Rotation = tuple[jax.Array, jax.Array]


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * scale`` over the last axis, in float32 (arXiv:1910.07467)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.dtype(self.config.dtype))
        return _rms_norm(x, scale, self.config.rms_norm_eps)


# Recomputed in the backward pass.  It costs nothing, and XLA then fuses the forward pass in the same way whether or
# not it is differentiated: a policy and its reference get the same bits.
@functools.partial(jax.checkpoint, static_argnums=2)
def _rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class Linear(nn.Module):
    """``x @ kernel (+ bias)``, plus ``(x @ lora_a) @ lora_b * lora_alpha / rank`` where there are adapters."""

    config: ModelConfig
    features: int
    use_bias: bool
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, dtype = x.shape[-1], jnp.dtype(self.config.dtype)
        initializer = nn.initializers.normal(self.gain / math.sqrt(width))
        kernel = self.param("kernel", initializer, (width, self.features), dtype)
        # Products of matrices, not of [B, T, D]: XLA on a CPU takes twice as long over the kernel's gradient then.
        shape, x = x.shape, x.reshape(-1, width)
        y = x @ kernel.astype(x.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), dtype).astype(x.dtype)
        if self.has_variable("params", "lora_a"):
            lora_a: jax.Array = self.get_variable("params", "lora_a").astype(x.dtype)
            lora_b: jax.Array = self.get_variable("params", "lora_b").astype(x.dtype)
            y = y + ((x @ lora_a) @ lora_b) * (self.config.lora_alpha / lora_a.shape[-1])
        return y.reshape(*shape[:-1], self.features)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation,
        mask: jax.Array | None,
        extend: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None,
    ) -> jax.Array:
        """``extend`` takes the new keys and values and returns all that the queries look at."""
        config = self.config
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim

        def project(name: str, count: int) -> jax.Array:
            y = Linear(config, count * head_dim, config.attention_bias, name=name)(x)
            return y.reshape(*x.shape[:-1], count, head_dim)

        q, k, v = project("q", heads), project("k", kv_heads), project("v", kv_heads)
        if config.qk_norm:
            q, k = RMSNorm(config, name="q_norm")(q), RMSNorm(config, name="k_norm")(k)
        q, k = rope.rotate(q, *rotation), rope.rotate(k, *rotation)
        if extend is not None:
            k, v = extend(k, v)
        out = attend(q, k, v, mask, implementation=config.attention)
        out = out.reshape(*x.shape[:-1], heads * head_dim)
        gain = 1.0 / math.sqrt(2 * config.num_layers)
        return Linear(config, config.hidden_size, config.out_bias, gain, name="o")(out)


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (arXiv:2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        gate = Linear(config, config.intermediate_size, config.mlp_bias, name="gate")(x)
        up = Linear(config, config.intermediate_size, config.mlp_bias, name="up")(x)
        gain = 1.0 / math.sqrt(2 * config.num_layers)
        return Linear(config, config.hidden_size, config.mlp_bias, gain, name="down")(nn.silu(gate) * up)


class Block(nn.Module):
    """One pre-norm layer."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation,
        mask: jax.Array | None,
        extend: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None,
    ) -> jax.Array:
        """``[B, T, D] -> [B, T, D]``; arguments as in ``Attention``."""
        normed = RMSNorm(self.config, name="attn_norm")(x)
        x = x + Attention(self.config, name="attn")(normed, rotation, mask, extend)
        return x + MLP(self.config, name="mlp")(RMSNorm(self.config, name="mlp_norm")(x))


class _Embed(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        config = self.config
        initializer = nn.initializers.normal(1.0 / math.sqrt(config.hidden_size))
        shape = (config.vocab_size, config.hidden_size)
        embedding = self.param("embedding", initializer, shape, jnp.dtype(config.dtype))
        return jnp.take(embedding, tokens, axis=0).astype(config.compute_dtype)


class _Head(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        config = self.config
        initializer = nn.initializers.normal(1.0 / math.sqrt(config.hidden_size))
        return self.param(
            "kernel", initializer, (config.vocab_size, config.hidden_size), jnp.dtype(config.dtype)
        )


class Transformer(nn.Module):
    """The whole model up to the final norm."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
    ) -> Any:
        """Hidden states of every token.

        Args:
          tokens: [B, T] int, in [0, vocab_size); a token outside gives NaN.
          positions: [B, T] int32 rotary positions.  Default: 0 .. T-1; restarting at 0 in every segment with
            ``segment_ids``; counted from each row's ``start`` with ``cache``.
          segment_ids: [B, T] int32 of packed rows: a token sees only earlier tokens with its own id.  Runs of
            one id are contiguous.  Padding is any id of its own (0 by custom).
          cache: keys and values so far; the tokens are appended to it.  Not together with ``segment_ids``.

        Returns:
          ``hidden [B, T, D]`` in the compute dtype, after the final norm; with ``cache``,
          ``(hidden, new cache)``.  What left-padding columns give is finite and means nothing.
        """
        config = self.config
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be [B, T], found shape {tokens.shape}")
        if cache is not None and segment_ids is not None:
            raise ValueError("cache and segment_ids cannot be used together")
        columns = tokens.shape[1] if cache is None else cache.length
        scaling = config.rope_scaling
        if scaling is not None and scaling.kind == "dynamic" and columns > config.max_position_embeddings:
            raise ValueError(
                f"dynamic rope scaling: {columns} columns are more than "
                f"max_position_embeddings={config.max_position_embeddings}"
            )
        x = _Embed(config, name="embed")(tokens)
        rotation = rope.table(config, _positions(tokens, positions, segment_ids, cache))
        mask = _mask(tokens, segment_ids, cache)
        if self.is_initializing():
            layers = self.param("layers", functools.partial(_init_layers, config, x, rotation))
        else:
            layers = self.get_variable("params", "layers")
        x, new_cache = _run_layers(config, layers, x, rotation, mask, cache)
        x = RMSNorm(config, name="final_norm")(x)
        if self.is_initializing() and not config.tie_word_embeddings:
            _Head(config, name="head")()
        return x if cache is None else (x, new_cache)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random parameters: normal with variance 1 / fan-in; 1 / (2 L fan-in) for what feeds the residual stream.

    Args:
      config: the model.
      key: typed PRNG key, consumed.

    Returns:
      A nested dict of arrays of ``config.dtype``; the layers' leaves carry a leading axis L.
    """
    return _init_params(config, key)


@functools.partial(jax.jit, static_argnums=0)
def _init_params(config: ModelConfig, key: jax.Array) -> Params:
    return Transformer(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
) -> jax.Array:
    """``Transformer(config).apply`` without a cache: tokens [B, T] -> hidden [B, T, D], final norm included."""
    return Transformer(config).apply(
        {"params": params}, tokens, positions=positions, segment_ids=segment_ids
    )  # type: ignore[return-value]


def head_matrix(config: ModelConfig, params: Params) -> jax.Array:
    """The output head [V, D]: the embedding matrix when the two are tied."""
    return params["embed"]["embedding"] if config.tie_word_embeddings else params["head"]["kernel"]


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """``hidden @ head^T``: [..., D] -> [..., V] float32.  For sampling; scoring is ``token_logprobs``."""
    head = head_matrix(config, params).astype(hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)


def unstack_layers(params: Params) -> Params:
    """Parameters with the layers as a tuple of dicts instead of stacked leaves.

    The model takes both.  A decoding loop should unstack once, outside: slicing a layer out of the stack in
    every step copies the weights.
    """
    layers = params["layers"]
    if isinstance(layers, tuple):
        return params
    count = jax.tree.leaves(layers)[0].shape[0]
    slices = [jax.tree.map(operator.itemgetter(i), layers) for i in range(count)]
    return {**params, "layers": tuple(slices)}


def _positions(
    tokens: jax.Array, positions: jax.Array | None, segment_ids: jax.Array | None, cache: KVCache | None
) -> jax.Array:
    if positions is not None:
        return positions
    column = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    if cache is not None:
        return jnp.maximum(cache.index + column - cache.start[:, None], 0)
    if segment_ids is None:
        return column[None]
    first = jnp.ones_like(segment_ids[:, :1], bool)
    begins = jnp.concatenate([first, segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1)
    return column - jax.lax.cummax(jnp.where(begins, column, 0), axis=1)


def _mask(tokens: jax.Array, segment_ids: jax.Array | None, cache: KVCache | None) -> jax.Array | None:
    if cache is not None:
        column = jnp.arange(cache.length, dtype=jnp.int32)
        query = cache.index + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        visible = column[None, None, :] <= query[None, :, None]
        return visible & (column[None, None, :] >= cache.start[:, None, None])
    if segment_ids is None:
        return None
    causal = jnp.tril(jnp.ones((1, tokens.shape[1], tokens.shape[1]), bool))
    return causal & (segment_ids[:, :, None] == segment_ids[:, None, :])


def _init_layers(config: ModelConfig, x: jax.Array, rotation: Rotation, key: jax.Array) -> Params:
    def one(layer_key: jax.Array) -> Params:
        return Block(config, parent=None).init(layer_key, x, rotation, None)["params"]

    return jax.vmap(one)(jax.random.split(key, config.num_layers))


def _run_layers(
    config: ModelConfig,
    layers: Any,
    x: jax.Array,
    rotation: Rotation,
    mask: jax.Array | None,
    cache: KVCache | None,
) -> tuple[jax.Array, KVCache | None]:
    """All layers, stacked (one scan) or a tuple (a Python loop)."""
    if isinstance(layers, tuple) != (cache is not None and isinstance(cache.k, tuple)) and cache is not None:
        raise ValueError("cache and parameters must both be stacked, or both be tuples of layers")
    if cache is not None:
        return _run_cached(config, layers, x, rotation, mask, cache)

    def block(layer: Params, x: jax.Array) -> jax.Array:
        return Block(config, parent=None).apply({"params": layer}, x, rotation, mask)  # type: ignore[return-value]

    block = _remat(config, block, scanned=config.scan_unroll < config.num_layers)
    if isinstance(layers, tuple):
        for layer in layers:
            x = block(layer, x)
    else:
        x, _ = jax.lax.scan(lambda x, layer: (block(layer, x), None), x, layers, unroll=config.scan_unroll)
    return x, None


def _run_cached(
    config: ModelConfig, layers: Any, x: jax.Array, rotation: Rotation, mask: jax.Array | None, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    """As ``_run_layers``; a stacked cache is carried, not scanned over, so that it is updated in place."""
    count = x.shape[1]

    def block(layer: Params, x: jax.Array, stores: tuple[Any, Any], where: tuple[Any, ...]) -> tuple[Any, Any]:
        """``where`` is the layer's place in the stores: ``()``, or ``(i,)`` when they are stacked."""
        written: list[jax.Array] = []

        def write(store: jax.Array, new: jax.Array) -> jax.Array:
            update = new.astype(store.dtype).reshape((1,) * len(where) + new.shape)
            written.append(jax.lax.dynamic_update_slice(store, update, (*where, 0, cache.index, 0, 0)))
            return written[-1][where].astype(new.dtype)

        def extend(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            return write(stores[0], k), write(stores[1], v)

        out = Block(config, parent=None).apply({"params": layer}, x, rotation, mask, extend)
        return out, tuple(written)

    if isinstance(layers, tuple):
        stores = list(zip(cache.k, cache.v, strict=True))
        for i, layer in enumerate(layers):
            x, stores[i] = block(layer, x, stores[i], ())
        k, v = zip(*stores, strict=True)
    else:

        def step(carry: Any, xs: Any) -> tuple[Any, None]:
            (x, stores), (layer, i) = carry, xs
            return block(layer, x, stores, (i,)), None

        indices = jnp.arange(config.num_layers, dtype=jnp.int32)
        start = (x, (cache.k, cache.v))
        (x, (k, v)), _ = jax.lax.scan(step, start, (layers, indices), unroll=config.scan_unroll)
    return x, dataclasses.replace(cache, k=k, v=v, index=cache.index + count)


def _remat(config: ModelConfig, block: Callable[..., Any], *, scanned: bool) -> Callable[..., Any]:
    if config.remat == "none":
        return block
    policy = None
    if config.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    # Inside a scan the loop itself keeps XLA from merging the recomputation with the first computation.
    return jax.checkpoint(block, policy=policy, prevent_cse=not scanned)
