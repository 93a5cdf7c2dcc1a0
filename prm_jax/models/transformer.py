"""A decoder language model for Llama, Qwen2 and Qwen3: Flax Linen modules, applied to plain dicts of parameters.

The layers' parameters are stacked on a leading axis and applied by one scan.  The model returns hidden states
after the final norm; logits are computed only where they are needed (see ``logprobs`` and ``generate``).
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from prm_jax.models import manual_layers, rope
from prm_jax.models.attention import attend
from prm_jax.models.config import ModelConfig
from prm_jax.models.qtensor import QTensor, dequantize, product
from prm_jax.models.rows import embed, mesh_of, split_over_rows
from prm_jax.models.tensor_split import TensorSplit

Params = dict[str, Any]
Rotation = tuple[jax.Array, jax.Array]


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * scale`` over the last axis, in float32 (arXiv:1910.07467)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.dtype(self.config.dtype))
        return _rms_norm(x, scale, self.config.rms_norm_eps)


# Recomputed in the backward pass at no cost, so that XLA fuses the forward pass in the same way whether or not it is
# differentiated: a policy and its reference get the same bits.
@functools.partial(jax.checkpoint, static_argnums=2)
def _rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


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
        """``[B, T, D] -> [B, T, D]``; ``segment_ids`` as in ``attend``, ``kind`` [] i32 as in ``_windowed``."""
        config = self.config
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        x = x if self.split is None else self.split.enter(x)

        def project(name: str, count: int) -> jax.Array:
            y = Linear(config, count * head_dim, config.attention_bias, name=name)(x)
            return y.reshape(*x.shape[:-1], count, head_dim)

        q, k, v = project("q", heads), project("k", kv_heads), project("v", kv_heads)
        if config.qk_norm:
            q, k = RMSNorm(config, name="q_norm")(q), RMSNorm(config, name="k_norm")(k)
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
    """``attend`` with the window ``config.window_kinds[kind]``; None where there is only one kind of layer."""
    windows = [
        functools.partial(
            attend, segment_ids=segment_ids, window=window, softcap=config.attn_softcap, implementation=config.attention
        )
        for window in config.window_kinds
    ]
    if kind is None:
        return windows[0](q, k, v)
    return jax.lax.switch(kind, windows, q, k, v)


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (arXiv:2002.05202)."""

    config: ModelConfig
    split: TensorSplit | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        x = x if self.split is None else self.split.enter(x)
        gate = Linear(config, config.intermediate_size, config.mlp_bias, name="gate")(x)
        up = Linear(config, config.intermediate_size, config.mlp_bias, name="up")(x)
        gain = 1.0 / math.sqrt(2 * config.num_layers)
        return Linear(config, config.hidden_size, config.mlp_bias, gain, self.split, name="down")(nn.silu(gate) * up)


class Block(nn.Module):
    """One pre-norm layer, as the body of a scan; ``split`` under ``shard_map`` only, with a device's own config."""

    config: ModelConfig
    split: TensorSplit | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, rotation: Rotation, segment_ids: jax.Array | None, kind: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """``[B, T, D] -> ([B, T, D], None)``; arguments as in ``Attention``."""
        x = split_over_rows(x)
        normed = RMSNorm(self.config, name="attn_norm")(x)
        attention = Attention(self.config, self.split, name="attn")
        x = split_over_rows(x + attention(normed, rotation, segment_ids, kind))
        x = x + MLP(self.config, self.split, name="mlp")(RMSNorm(self.config, name="mlp_norm")(x))
        return split_over_rows(x), None


class _Embed(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        config = self.config
        stored: Any = self.get_variable("params", "embedding")
        if isinstance(stored, QTensor):
            return embed(stored, tokens, config.compute_dtype)
        initializer = nn.initializers.normal(1.0 / math.sqrt(config.hidden_size))
        shape = (config.vocab_size, config.hidden_size)
        embedding = self.param("embedding", initializer, shape, jnp.dtype(config.dtype))
        return embed(embedding, tokens, config.compute_dtype)


class _Head(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        config = self.config
        initializer = nn.initializers.normal(1.0 / math.sqrt(config.hidden_size))
        return self.param("kernel", initializer, (config.vocab_size, config.hidden_size), jnp.dtype(config.dtype))


class Transformer(nn.Module):
    """The whole model up to the final norm."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, positions: jax.Array | None = None, segment_ids: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states of every token.

        With ``mutable=["kv"]``, ``apply`` also returns the layers' keys (after rotation) and values, see
        ``keys_and_values``.

        Args:
          tokens: [B, T] int, in [0, vocab_size); a token outside gives NaN.
          positions: [B, T] int32 rotary positions.  Default: 0 .. T-1, restarting at 0 in every segment.
          segment_ids: [B, T] int32 of packed rows: a token sees only earlier tokens with its own id.  Runs of
            one id are contiguous.  Padding has an id of its own, by convention 0.

        Returns:
          ``[B, T, D]`` in the compute dtype, after the final norm.
        """
        config = self.config
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be [B, T], found shape {tokens.shape}")
        scaling, columns = config.rope_scaling, tokens.shape[1]
        if scaling is not None and scaling.kind == "dynamic" and columns > config.max_position_embeddings:
            raise ValueError(
                f"dynamic rope scaling: {columns} columns are more than "
                f"max_position_embeddings={config.max_position_embeddings}"
            )
        x = _Embed(config, name="embed")(tokens)
        rotation = rope.table(config, _positions(tokens, segment_ids) if positions is None else positions)
        if self.is_initializing():  # without running the layers
            self.param("layers", functools.partial(_init_layers, config, x, rotation))
        else:
            x = self._layers(x, rotation, segment_ids)
        x = split_over_rows(RMSNorm(config, name="final_norm")(x))
        if self.is_initializing() and not config.tie_word_embeddings:
            _Head(config, name="head")()
        return x

    def _layers(self, x: jax.Array, rotation: Rotation, segment_ids: jax.Array | None) -> jax.Array:
        config = self.config
        params: Params = self.get_variable("params", "layers")
        kinds = _layer_kinds(config)
        mesh = None if self.is_mutable_collection("kv") else mesh_of(x, params)
        if mesh is not None and manual_layers.applies(config, mesh, x.shape[0]):
            return manual_layers.run_layers(
                _apply_block, config, mesh, params, x, rotation=rotation, segment_ids=segment_ids, kinds=kinds
            )
        return _scanned_layers(config)(config, name="layers")(x, rotation, segment_ids, kinds)[0]


def _apply_block(
    config: ModelConfig,
    split: TensorSplit | None,
    params: Params,
    x: jax.Array,
    rotation: Rotation,
    segment_ids: jax.Array | None,
    kind: jax.Array | None,
) -> jax.Array:
    out: Any = Block(config, split, parent=None).apply({"params": params}, x, rotation, segment_ids, kind)
    return out[0]


def _scanned_layers(config: ModelConfig) -> Any:
    """``Block`` as a module with stacked parameters, rematerialised as the config says."""
    block: Any = Block
    if config.remat != "none":
        policy = manual_layers.remat_policy(config)
        # Inside a loop, XLA cannot merge the recomputation with the first computation.
        block = nn.remat(Block, policy=policy, prevent_cse=config.scan_unroll >= config.num_layers)
    return nn.scan(
        block,
        variable_axes={"params": 0, "kv": 0},
        split_rngs={},
        in_axes=(nn.broadcast, nn.broadcast, 0),
        length=config.num_layers,
        unroll=config.scan_unroll,
    )


def _layer_kinds(config: ModelConfig) -> jax.Array | None:
    """[L] i32: each layer's place in ``config.window_kinds``; None where all are of one kind."""
    kinds = config.window_kinds
    if len(kinds) == 1:
        return None
    return jnp.array([kinds.index(window) for window in config.windows], jnp.int32)


def _init_layers(config: ModelConfig, x: jax.Array, rotation: Rotation, key: jax.Array) -> Params:
    """Stacked parameters; those of layer i depend on the i-th of the keys split from ``key`` alone."""

    def one(layer_key: jax.Array) -> Params:
        return Block(config, parent=None).init(layer_key, x, rotation, None, None)["params"]

    return jax.vmap(one)(jax.random.split(key, config.num_layers))


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random parameters: normal with variance 1 / fan-in; 1 / (2 L fan-in) for projections into the residual stream.

    Args:
      config: the model.
      key: typed PRNG key, consumed.

    Returns:
      A nested dict of arrays of ``config.dtype``; the layers' leaves have a leading axis L.
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
    """``Transformer(config).apply``: tokens [B, T] -> hidden [B, T, D], final norm included."""
    # On a mesh compiled as a whole, since its blocks need the devices of the parameters; inside ``jax.jit`` the same.
    run = _hidden_states if mesh_of(params, tokens) is None else jax.jit(_hidden_states, static_argnums=0, inline=True)
    return run(config, params, tokens, positions, segment_ids)


def _hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array | None,
    segment_ids: jax.Array | None,
) -> jax.Array:
    return Transformer(config).apply({"params": params}, tokens, positions=positions, segment_ids=segment_ids)  # type: ignore[return-value]


def head_matrix(config: ModelConfig, params: Params) -> jax.Array:
    """The output head [V, D]: the embedding matrix when the two are tied; a quantised one in the compute dtype."""
    head = params["embed"]["embedding"] if config.tie_word_embeddings else params["head"]["kernel"]
    return dequantize(head, config.compute_dtype) if isinstance(head, QTensor) else head


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """``hidden @ head^T``: [..., D] -> [..., V] float32.  For sampling; scoring is ``token_logprobs``."""
    head = head_matrix(config, params).astype(hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)


def keys_and_values(config: ModelConfig, params: Params, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One forward pass, and what incremental decoding needs from it.

    Returns:
      ``(hidden [B, T, D], keys, values)``, the last two ``[L, B, T, num_kv_heads, head_dim]`` in the compute dtype,
      keys after rotation.
    """
    outputs: Any = Transformer(config).apply({"params": params}, tokens, mutable=["kv"])
    hidden, collected = outputs
    kv = collected["kv"]["layers"]["attn"]
    return hidden, kv["keys"][0], kv["values"][0]


def _positions(tokens: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    column = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    if segment_ids is None:
        return column[None]
    first = jnp.ones_like(segment_ids[:, :1], bool)
    begins = jnp.concatenate([first, segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1)
    return column - jax.lax.cummax(jnp.where(begins, column, 0), axis=1)
