"""A decoder language model for every family of ``families``: Flax Linen modules, applied to plain dicts of parameters.

The layers' parameters are stacked on a leading axis and applied by one scan.  The model returns hidden states
after the final norm; logits are computed only where they are needed (see ``logprobs`` and ``generate``).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from prm_jax.models import manual_layers, rope
from prm_jax.models.attention_spec import soft_capped
from prm_jax.models.config import ModelConfig
from prm_jax.models.decoder_layers import Block, RMSNorm, Rotation, scaled
from prm_jax.models.expert_load import ExpertLoad, require_experts
from prm_jax.models.expert_split import ExpertSplit
from prm_jax.models.qtensor import QTensor, dequantize
from prm_jax.models.rows import embed, mesh_of, split_over_rows
from prm_jax.models.tensor_split import TensorSplit

Params = dict[str, Any]


class _Embed(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        config = self.config
        stored: Any = self.get_variable("params", "embedding")
        if isinstance(stored, QTensor):
            return scaled(embed(stored, tokens, config.compute_dtype), config.embed_scale)
        initializer = nn.initializers.normal(1.0 / math.sqrt(config.hidden_size))
        shape = (config.vocab_size, config.hidden_size)
        embedding = self.param("embedding", initializer, shape, jnp.dtype(config.dtype))
        return scaled(embed(embedding, tokens, config.compute_dtype), config.embed_scale)


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
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        counted: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states of every token.

        With ``mutable=["kv"]``, ``apply`` also returns the layers' keys (after rotation) and values, see
        ``keys_and_values``; with ``mutable=["router"]`` the experts' load, see ``hidden_states_and_load``.

        Args:
          tokens: [B, T] int, in [0, vocab_size); a token outside gives NaN.
          positions: [B, T] int32 rotary positions.  Default: 0 .. T-1, restarting at 0 in every segment.
          segment_ids: [B, T] int32 of packed rows: a token sees only earlier tokens with its own id.  Runs of
            one id are contiguous.  Padding has an id of its own, by convention 0.
          counted: [B, T] bool, tokens whose experts are counted; None for no load.

        Returns:
          ``[B, T, D]`` in the compute dtype, after the final norm.
        """
        config = self.config
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be [B, T], found shape {tokens.shape}")
        columns = tokens.shape[1]
        if config.longest_row is not None and columns > config.longest_row:
            raise ValueError(
                f"{columns} columns are more than {config.longest_row}, up to which the model's "
                f"{config.rope_scaling.kind} rope scaling does not depend on the length of a row"  # type: ignore[union-attr]
            )
        x = _Embed(config, name="embed")(tokens)
        rotation = _rotation(config, _positions(tokens, segment_ids) if positions is None else positions)
        if self.is_initializing():  # without running the layers
            self.param("layers", functools.partial(_init_layers, config, x, rotation))
        else:
            x = self._layers(x, rotation, segment_ids, counted)
        x = split_over_rows(RMSNorm(config, name="final_norm")(x))
        if self.is_initializing() and not config.tie_word_embeddings:
            _Head(config, name="head")()
        return x

    def _layers(
        self, x: jax.Array, rotation: Rotation, segment_ids: jax.Array | None, counted: jax.Array | None
    ) -> jax.Array:
        config = self.config
        params: Params = self.get_variable("params", "layers")
        kinds = _layer_kinds(config)
        mesh = None if self.is_mutable_collection("kv") else mesh_of(x, params)
        if mesh is not None and manual_layers.applies(config, mesh, x.shape[0]):
            x, load = manual_layers.run_layers(
                _apply_block, config, mesh, params, x, rotation=rotation, segment_ids=segment_ids, counted=counted,
                kinds=kinds,
            )  # fmt: skip
        else:
            x, load = _scanned_layers(config)(config, name="layers")(x, rotation, segment_ids, counted, kinds)
        self.sow("router", "load", load)
        return x


def _apply_block(
    config: ModelConfig,
    split: TensorSplit | None,
    experts: ExpertSplit | None,
    params: Params,
    x: jax.Array,
    rotation: Rotation,
    segment_ids: jax.Array | None,
    counted: jax.Array | None,
    kind: jax.Array | None,
) -> tuple[jax.Array, ExpertLoad | None]:
    block = Block(config, split, experts, parent=None)
    return block.apply({"params": params}, x, rotation, segment_ids, counted, kind)  # type: ignore[return-value]


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
        in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
        length=config.num_layers,
        unroll=config.scan_unroll,
    )


def _layer_kinds(config: ModelConfig) -> jax.Array | None:
    """[L, 2] i32: each layer's places in ``window_kinds`` and ``rotation_kinds``; None where all are of one kind."""
    windows, rotations = config.window_kinds, config.rotation_kinds
    if len(windows) == len(rotations) == 1:
        return None
    pairs = zip(config.windows, config.rotations, strict=True)
    return jnp.array([(windows.index(window), rotations.index(kind)) for window, kind in pairs], jnp.int32)


def _rotation(config: ModelConfig, positions: jax.Array) -> Rotation:
    """Cosines and sines of every kind of layer."""
    tables = [rope.table(config, positions, kind) for kind in config.rotation_kinds]
    if len(tables) == 1:
        return tables[0]
    cos, sin = (jnp.stack(parts, axis=1) for parts in zip(*tables, strict=True))
    return cos, sin


def _init_layers(config: ModelConfig, x: jax.Array, rotation: Rotation, key: jax.Array) -> Params:
    """Stacked parameters; those of layer i depend on the i-th of the keys split from ``key`` alone."""
    kinds = _layer_kinds(config)
    kind = None if kinds is None else kinds[0]

    def one(layer_key: jax.Array) -> Params:
        return Block(config, parent=None).init(layer_key, x, rotation, None, None, kind)["params"]

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
    return _on_mesh(_hidden_states, config, params, tokens, positions, segment_ids)


def hidden_states_and_load(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    counted: jax.Array,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
) -> tuple[jax.Array, ExpertLoad]:
    """``hidden_states`` of a sparse model, and how its layers spread tokens over experts.

    Args:
      config: of a model with experts.
      params: its parameters, which receive gradients through both results.
      tokens: [B, T] int.
      counted: [B, T] bool, the tokens of the load.
      positions: [B, T] int32; see ``Transformer``.
      segment_ids: [B, T] int32; see ``Transformer``.

    Returns:
      (hidden [B, T, D], the load of every layer, summed over the devices of a mesh).

    Raises:
      ValueError: a dense model.
    """
    require_experts(config)
    return _on_mesh(_hidden_states_and_load, config, params, tokens, positions, segment_ids, counted)


def _on_mesh(run: Callable[..., Any], config: ModelConfig, params: Params, tokens: jax.Array, *more: Any) -> Any:
    """Calls ``run``; on a mesh compiled as a whole, since its blocks need the devices: inside ``jax.jit`` the same."""
    run = run if mesh_of(params, tokens) is None else jax.jit(run, static_argnums=0, inline=True)
    return run(config, params, tokens, *more)


def _hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array | None,
    segment_ids: jax.Array | None,
) -> jax.Array:
    return Transformer(config).apply({"params": params}, tokens, positions=positions, segment_ids=segment_ids)  # type: ignore[return-value]


def _hidden_states_and_load(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array | None,
    segment_ids: jax.Array | None,
    counted: jax.Array,
) -> tuple[jax.Array, ExpertLoad]:
    outputs: Any = Transformer(config).apply(
        {"params": params}, tokens, positions=positions, segment_ids=segment_ids, counted=counted, mutable=["router"]
    )
    return outputs[0], outputs[1]["router"]["load"][0]


def head_matrix(config: ModelConfig, params: Params) -> jax.Array:
    """The output head [V, D]: the embedding matrix when the two are tied; a quantised one in the compute dtype."""
    head = params["embed"]["embedding"] if config.tie_word_embeddings else params["head"]["kernel"]
    return dequantize(head, config.compute_dtype) if isinstance(head, QTensor) else head


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """``hidden @ head^T``, scaled and capped: [..., D] -> [..., V] float32.

    For sampling; scoring is ``token_logprobs``.
    """
    head = head_matrix(config, params).astype(hidden.dtype)
    return finished_logits(config, jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32))


def finished_logits(config: ModelConfig, products: jax.Array) -> jax.Array:
    """Logits from products with the rows of the head: divided by ``logit_divisor``, then soft-capped."""
    products = products if config.logit_divisor == 1 else products / config.logit_divisor
    return soft_capped(products, config.logit_softcap)


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


def expert_balance(
    config: ModelConfig, params: Params, tokens: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """How evenly a sparse model spreads tokens over its experts, layer by layer; see ``ExpertLoad``.

    Args:
      config: of a model with experts.
      params: its parameters.
      tokens: [B, T] int.
      mask: [B, T] bool, which tokens count; None for all.

    Returns:
      (each expert's share of the assignments [L, E], the layers' balance [L], 1 for an even spread), float32.

    Raises:
      ValueError: a dense model.
    """
    counted = jnp.ones(tokens.shape, bool) if mask is None else mask
    _, load = hidden_states_and_load(config, params, tokens, counted)
    return load.shares(), load.balance()


def _positions(tokens: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    column = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    if segment_ids is None:
        return column[None]
    first = jnp.ones_like(segment_ids[:, :1], bool)
    begins = jnp.concatenate([first, segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1)
    return column - jax.lax.cummax(jnp.where(begins, column, 0), axis=1)
