"""Incremental decoding: one prefill per prompt, then one token per row and step.

The keys and values of a prompt are kept once, however many samples share it; each sample keeps its own only
for the tokens it has generated.  Activations are feature-major, [D, B], so that every product has the large
matrix on its left, which is fastest on a CPU when B is small.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from prm_jax.models import rope
from prm_jax.models.attention_choice import resolve
from prm_jax.models.attention_spec import NEGATIVE, soft_capped
from prm_jax.models.blockwise_attention import block_size
from prm_jax.models.config import ModelConfig
from prm_jax.models.decoder_layers import norm_factor, scaled
from prm_jax.models.experts import activate, mix_experts, route
from prm_jax.models.qtensor import QTensor, take, with_wide_scales
from prm_jax.models.quantized_product import product, table_product
from prm_jax.models.transformer import Params, finished_logits, keys_and_values
from prm_jax.target_device import platform_and_kind

Array = jax.Array

# Attention scores of a prefill that exist at the same time: half a gigabyte in float32.
_MAX_SCORES = 2**27

Mix = Callable[[int, Array, Array, Array], Array]
"""(layer, q [B, num_heads, head_dim], k and v [B, num_kv_heads, head_dim]) -> [B, num_heads * head_dim]."""

_QKV, _O, _GATE_UP, _DOWN = ("q", "k", "v"), ("o",), ("gate", "up"), ("down",)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys (after rotation) and values of one layer, laid out for the two products of attention.

    Attributes:
      k: [N, num_kv_heads, head_dim, S].
      v: [N, num_kv_heads, S, head_dim].
    """

    k: Array
    v: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Keys and values of P prompts of at most S tokens, right-padded.

    Attributes:
      layers: one `KeyValues` per layer with N = P.
      lengths: [P] i32, tokens of each prompt; later columns are ignored.
    """

    layers: tuple[KeyValues, ...]
    lengths: Array


def prepare(config: ModelConfig, params: Params, *, repack: bool) -> Params:
    """Converts parameters to the form that `decode_step` reads fastest; once, before the loop.

    Args:
      config: the model.
      params: its parameters.
      repack: copy the kernels to the compute dtype, transposed to [out, in], kernels with a common input fused,
        and adapters merged if the dtype is float32.  On a CPU this halves the time of a step; on an accelerator
        it would only cost memory.  Quantised kernels stay as they are.

    Returns:
      The parameters with the layers as a tuple of dicts instead of stacked leaves.
    """
    layers = params["layers"]
    if repack:
        params = with_wide_scales({**params, "embed": _cast(config, params["embed"])})
        if not config.tie_word_embeddings:
            params["head"] = _cast(config, params["head"])
        layers = _repack(config, params["layers"])
    # Slices are taken here, once: inside the loop they would be copied in every step.
    slices = [jax.tree.map(operator.itemgetter(i), layers) for i in range(config.num_layers)]
    return {**params, "layers": tuple(slices)}


def prefill(config: ModelConfig, params: Params, tokens: Array, lengths: Array) -> tuple[Array, Prefix]:
    """Runs the prompts through the model, in parts that bound the memory of attention scores.

    Args:
      config: the model.
      params: its parameters.
      tokens: [P, S] i32, right-padded with any valid token.
      lengths: [P] i32 in [0, S]; a prompt of length 0 gives arbitrary finite values.

    Returns:
      (hidden [D, P] of each prompt's last token, the prompts' `Prefix`).
    """
    prompts, columns = tokens.shape
    chosen = resolve(
        config.attention, platform=platform_and_kind(tokens)[0], dtype=config.compute_dtype, head_dim=config.head_dim,
        length=columns, softcap=config.attn_softcap is not None,
    )  # fmt: skip
    scores = columns if chosen == "naive" else block_size(columns)  # per token and head
    at_once = max(1, _MAX_SCORES // (config.num_heads * columns * scores))
    parts = next(n for n in range(1, prompts + 1) if prompts % n == 0 and prompts // n <= at_once)

    def split(x: Array) -> Array:  # every part takes rows from every device
        return x.reshape(prompts // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def join(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(prompts, *x.shape[2:])

    if parts == 1:
        last, layers = _prefill(config, params, (tokens, lengths))
    else:
        by_part = lax.map(functools.partial(_prefill, config, params), (split(tokens), split(lengths)))
        last, layers = jax.tree.map(join, by_part)
    return last.T, Prefix(layers, lengths)


def init_suffix(config: ModelConfig, rows: int, steps: int) -> tuple[KeyValues, ...]:
    """Zeros for the keys and values of R = `steps` generated tokens of B = `rows` rows: N = B and S = R."""
    k, v = ((rows, config.num_kv_heads, *ends) for ends in ((config.head_dim, steps), (steps, config.head_dim)))
    zeros = [KeyValues(*(jnp.zeros(s, config.compute_dtype) for s in (k, v))) for _ in range(config.num_layers)]
    return tuple(zeros)


def decode_step(
    config: ModelConfig,
    params: Params,
    prefix: Prefix,
    suffix: tuple[KeyValues, ...],
    tokens: Array,
    step: Array,
) -> tuple[Array, tuple[KeyValues, ...]]:
    """Feeds one token per row.

    Args:
      config: the model.
      params: its parameters, from `prepare`.
      prefix: of the P prompts; row b belongs to prompt b // (B / P).
      suffix: one `KeyValues` per layer, of the tokens generated before.
      tokens: [B] i32, the token of generation step `step`.
      step: [] i32 in [0, R).

    Returns:
      (hidden [D, B] after the final norm, the suffix with this token's keys and values in column `step`).
    """
    groups = tokens.shape[0] // prefix.lengths.shape[0]
    columns, steps = jnp.arange(prefix.layers[0].k.shape[-1]), jnp.arange(suffix[0].k.shape[-1])
    seen, written = columns < prefix.lengths[:, None], steps <= step
    grown = []

    def masks(window: int | None) -> tuple[Array, Array]:
        if window is None:
            return seen, written
        return seen & (columns > prefix.lengths[:, None] + step - window), written & (steps > step - window)

    by_window = {window: masks(window) for window in config.window_kinds}

    def mix(layer: int, q: Array, k: Array, v: Array) -> Array:
        own = KeyValues(
            lax.dynamic_update_slice_in_dim(suffix[layer].k, k[..., None], step, axis=3),
            lax.dynamic_update_slice_in_dim(suffix[layer].v, v[:, :, None], step, axis=2),
        )
        grown.append(own)
        return _attend(config, q, (prefix.layers[layer], own), by_window[config.windows[layer]])

    hidden = run_layers(config, params, tokens, jnp.repeat(prefix.lengths, groups) + step, mix)
    return hidden, tuple(grown)


def run_layers(config: ModelConfig, params: Params, tokens: Array, positions: Array, mix: Mix) -> Array:
    """One token per row through all layers; where keys and values are kept is the caller's choice.

    Args:
      config: the model.
      params: its parameters, from `prepare`.
      tokens: [B] i32.
      positions: [B] i32, each token's position in its row.
      mix: the attention; called once per layer, in order.

    Returns:
      hidden [D, B] after the final norm.
    """
    rotations = {kind: rope.table(config, positions[:, None], kind) for kind in config.rotation_kinds}
    table = params["embed"]["embedding"]
    rows = take(table, tokens, config.compute_dtype) if isinstance(table, QTensor) else jnp.take(table, tokens, axis=0)
    x = scaled(rows.astype(config.compute_dtype).T, config.embed_scale)
    for number, layer in enumerate(params["layers"]):

        def normed(name: str, y: Array, layer: Params = layer) -> Array:
            return _norm(config, layer[name], y) if name in config.family.norms else y

        q, k, v = _project(config, layer["attn"], normed("attn_norm", x), rotations[config.rotations[number]])
        y = _linear(config, layer["attn"], _O, mix(number, q, k, v).T)
        x = x + scaled(normed("attn_post_norm", y), config.residual_scale)
        y = _mlp(config, layer["mlp"], normed("mlp_norm", x))
        x = x + scaled(normed("mlp_post_norm", y), config.residual_scale)
    return _norm(config, params["final_norm"], x)


def next_logits(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """Logits of the next token: [D, B] -> [B, V] f32."""
    stored = params["embed"]["embedding"] if config.tie_word_embeddings else params["head"]["kernel"]
    if isinstance(stored, QTensor):
        products = table_product(stored, hidden)
    else:
        products = jnp.dot(stored.astype(hidden.dtype), hidden, preferred_element_type=jnp.float32)
    scores = finished_logits(config, products)
    # Equal to scores.T, but written so that XLA does not swap the factors of the product to save the copy: with
    # the large matrix on the right a CPU takes twice as long.
    vocab, rows = scores.shape
    width = next(n for n in (256, 64, 2, 1) if vocab % n == 0)
    return scores.reshape(vocab // width, width, rows).transpose(2, 0, 1).reshape(rows, vocab)


def _prefill(config: ModelConfig, params: Params, prompts: tuple[Array, Array]) -> tuple[Array, tuple[KeyValues, ...]]:
    """(tokens [P, S], lengths [P]) -> (hidden [P, D] of the last tokens, keys and values of each layer)."""
    tokens, lengths = prompts
    hidden, keys, values = keys_and_values(config, params, tokens)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    return last, tuple(
        KeyValues(k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)) for k, v in zip(keys, values, strict=True)
    )


def _cast(config: ModelConfig, params: Params) -> Params:
    dtype = config.compute_dtype
    return {name: leaf if isinstance(leaf, QTensor) else leaf.astype(dtype) for name, leaf in params.items()}


def _repack(config: ModelConfig, layers: Params) -> Params:
    """Adds fused kernels, which `_linear` prefers to single ones, to stacked layers."""
    blocks = dict(layers)
    dense = () if config.num_experts else (("mlp", _GATE_UP), ("mlp", _DOWN))
    for block, names in (("attn", _QKV), ("attn", _O), *dense):
        fused = _fuse(config, [layers[block][name] for name in names])
        if fused is not None:
            blocks[block] = {**blocks[block], "+".join(names): fused}
    return blocks


def _fuse(config: ModelConfig, parts: Sequence[Params]) -> Params | None:
    """Linear layers that share their input as one: "rows" [sum of out, in], "bias" [sum of out]."""
    if any(isinstance(part["kernel"], QTensor) for part in parts):
        return None
    dtype = jnp.dtype(config.compute_dtype)
    kernels = []
    for part in parts:
        kernel = part["kernel"].astype(dtype)
        if "lora_a" in part:
            if dtype != jnp.float32:
                return None  # in half precision the adapters would be lost in the sum
            a, b = part["lora_a"].astype(dtype), part["lora_b"].astype(dtype)
            scale = config.lora_alpha / a.shape[-1]
            kernel = kernel + jnp.matmul(a, b, precision=lax.Precision.HIGHEST) * scale
        kernels.append(kernel)
    # The barrier keeps XLA from fusing the copies into one loop with strided access.
    kernel = lax.optimization_barrier(jnp.concatenate(kernels, axis=-1))
    fused = {"rows": jnp.swapaxes(kernel, -1, -2)}
    if "bias" in parts[0]:
        fused["bias"] = jnp.concatenate([part["bias"] for part in parts], axis=-1)
    return fused


def _mlp(config: ModelConfig, mlp: Params, x: Array) -> Array:
    """The MLP, or the experts, of one layer: [D, B] -> [D, B]."""
    if config.num_experts:
        routing = route(config, mlp["router"]["kernel"], x.T)
        kernels = {name: mlp[name]["kernel"] for name in ("gate", "up", "down")}
        return mix_experts(config, kernels, routing, x.T).T
    gate, up = jnp.split(_linear(config, mlp, _GATE_UP, x), 2)
    return _linear(config, mlp, _DOWN, activate(config, gate) * up)


def _norm(config: ModelConfig, params: Params, x: Array, axis: int = 0) -> Array:
    """RMS norm over the feature axis."""
    wide = x.astype(jnp.float32)
    factor = lax.rsqrt(jnp.mean(wide * wide, axis=axis, keepdims=True) + config.rms_norm_eps)
    scale = norm_factor(params["scale"], config.family.norm_offset)
    return (wide * factor * (scale[:, None] if axis == 0 else scale)).astype(x.dtype)


def _linear(config: ModelConfig, params: Params, names: tuple[str, ...], x: Array) -> Array:
    """Outputs of linear layers that share their input, concatenated: [in, B] -> [sum of out, B]."""
    fused = params.get("+".join(names), {})
    if "rows" not in fused:
        return jnp.concatenate([_single(config, params[name], x) for name in names])
    y = jnp.dot(fused["rows"], x)
    return y + fused["bias"].astype(x.dtype)[:, None] if "bias" in fused else y


def _single(config: ModelConfig, params: Params, x: Array) -> Array:
    def dense(kernel: Array, x: Array) -> Array:
        return lax.dot_general(kernel.astype(x.dtype), x, (((0,), (0,)), ((), ())))

    quantized = isinstance(params["kernel"], QTensor)
    y = product(x.T, params["kernel"]).T if quantized else dense(params["kernel"], x)
    if "bias" in params:
        y = y + params["bias"].astype(x.dtype)[:, None]
    if "lora_a" in params:
        scale = config.lora_alpha / params["lora_a"].shape[-1]
        y = y + dense(params["lora_b"], dense(params["lora_a"], x)) * scale
    return y


def _project(config: ModelConfig, attn: Params, x: Array, rotation: Any) -> tuple[Array, Array, Array]:
    """[D, B] -> q [B, num_heads, head_dim], k and v [B, num_kv_heads, head_dim]."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    qkv = _linear(config, attn, _QKV, x).reshape(-1, config.head_dim, x.shape[1]).transpose(2, 0, 1)
    q, k, v = jnp.split(qkv, [heads, heads + kv_heads], axis=1)
    if config.family.qk_norm == "width":
        q, k = (
            _norm(config, attn[name], y.reshape(len(y), -1), -1).reshape(y.shape)
            for name, y in (("q_norm", q), ("k_norm", k))
        )
    if config.family.qk_norm == "head":
        q, k = _norm(config, attn["q_norm"], q, -1), _norm(config, attn["k_norm"], k, -1)
    cos, sin = rotation
    turned = rope.rotate(jnp.concatenate([q, k], axis=1)[:, None], cos, sin)[:, 0]
    return turned[:, :heads], turned[:, heads:], v


def _attend(config: ModelConfig, q: Array, caches: tuple[KeyValues, KeyValues], masks: tuple[Array, Array]) -> Array:
    """Attention of q [B, H, Hd] over its prompt's and its row's tokens, where the masks are True -> [B, H * Hd]."""
    (shared, own), (seen, written) = caches, masks
    prompts, kv_heads, head_dim, columns = shared.k.shape
    rows, heads, _ = q.shape
    groups, share = rows // prompts, heads // kv_heads
    q = q * config.score_scale
    # Samples of a prompt are further queries to the same keys: [P, K, G * share, Hd].
    flat = q.reshape(rows, kv_heads, share, head_dim)
    gathered = flat.reshape(prompts, groups, kv_heads, share * head_dim).swapaxes(1, 2)
    gathered = gathered.reshape(prompts, kv_heads, groups * share, head_dim)
    first = jnp.einsum("pkqd,pkds->pkqs", gathered, shared.k, preferred_element_type=jnp.float32)
    first = jnp.where(seen[:, None, None], soft_capped(first, config.attn_softcap), NEGATIVE)
    first = first.reshape(prompts, kv_heads, groups, share * columns).swapaxes(1, 2)
    second = jnp.einsum("bkqd,bkdr->bkqr", flat, own.k, preferred_element_type=jnp.float32)
    second = jnp.where(written, soft_capped(second, config.attn_softcap), NEGATIVE)
    scores = jnp.concatenate([first.reshape(rows, kv_heads, share, columns), second], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(own.v.dtype)
    first, second = jnp.split(weights, [columns], axis=-1)
    first = first.reshape(prompts, groups, kv_heads, share * columns).swapaxes(1, 2)
    first = first.reshape(prompts, kv_heads, groups * share, columns)
    out = jnp.einsum("pkqs,pksd->pkqd", first, shared.v)
    out = out.reshape(prompts, kv_heads, groups, share * head_dim).swapaxes(1, 2)
    out = out.reshape(rows, kv_heads, share, head_dim) + jnp.einsum("bkqr,bkrd->bkqd", second, own.v)
    return out.reshape(rows, heads * head_dim)
