"""Small random checkpoints of every family, for the tests of this folder."""

import math
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from prm_jax.models import ModelConfig
from prm_jax.models.checkpoint_layout import leaves, slots
from prm_jax.models.rope_scaling import RopeScaling

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4,
    "num_kv_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
LLAMA3 = RopeScaling(
    kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
CONFIGS = {
    "llama": ModelConfig(rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=LLAMA3, **_SHAPE),
    "llama_biased": ModelConfig(attention_bias=True, mlp_bias=True, **_SHAPE),
    "qwen2": ModelConfig(architecture="qwen2", attention_bias=True, tie_word_embeddings=True, rope_theta=1e6, **_SHAPE),
    "qwen3": ModelConfig(architecture="qwen3", qk_norm=True, rope_theta=1e6, **{**_SHAPE, "head_dim": 16}),
}

_LONG = {"max_position_embeddings": 256}
LONGROPE = RopeScaling(
    kind="longrope", factor=2.0, original_max_position_embeddings=128, short_factor=(1.0, 1.5, 2.5),
    long_factor=(2.0, 4.0, 8.0),
)  # fmt: skip
FAMILIES = {
    "mistral": ModelConfig(architecture="mistral", sliding_window=7, **_SHAPE),
    "gemma2": ModelConfig(
        architecture="gemma2", layer_windows=(5, None), attn_softcap=3.0, logit_softcap=4.0, attn_scale=12**-0.5,
        embed_scale=math.sqrt(32), tie_word_embeddings=True, **_SHAPE,
    ),
    "gemma3": ModelConfig(
        architecture="gemma3", qk_norm=True, layer_windows=(5, 5, None), rope_theta=1e6, rope_local_theta=1e4,
        rope_scaling=RopeScaling(kind="linear", factor=8.0), attn_scale=0.25, embed_scale=math.sqrt(32),
        tie_word_embeddings=True, **{**_SHAPE, "num_layers": 3},
    ),
    "olmo2": ModelConfig(architecture="olmo2", qk_norm=True, rms_norm_eps=1e-5, **_SHAPE),
    "granite": ModelConfig(
        architecture="granite", embed_scale=12.0, residual_scale=0.22, attn_scale=0.2, logit_divisor=4.0, mlp_bias=True,
        attention_bias=True, **_SHAPE,
    ),
    "smollm3": ModelConfig(
        architecture="smollm3", unrotated_layers=(1,), tie_word_embeddings=True, **{**_SHAPE, "num_layers": 3}
    ),
    "phi3": ModelConfig(
        architecture="phi3", sliding_window=40, rotary_dim=6, rope_scaling=LONGROPE, **{**_SHAPE, **_LONG}
    ),
    "qwen3_moe": ModelConfig(
        architecture="qwen3_moe", qk_norm=True, num_experts=6, experts_per_token=3, norm_topk=False, **_SHAPE
    ),
    "mixtral": ModelConfig(architecture="mixtral", num_experts=4, experts_per_token=2, **_SHAPE),
}  # fmt: skip
"""Of the families beyond those of ``CONFIGS``, with every switch in use."""


def random_params(config: ModelConfig, *, dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
    """Normal numbers of a size that keeps activations near 1; norms around 1."""
    rng = np.random.default_rng(seed)
    params: dict[str, Any] = {}
    for slot in slots(config):
        leaf = rng.normal(size=slot.leaf_shape) * (0.3 if len(slot.shape) == 2 else 0.1)
        node = params
        for key in slot.path[:-1]:
            node = node.setdefault(key, {})
        node[slot.path[-1]] = (leaf + (slot.path[-1] == "scale")).astype(DTYPES[dtype])
    return params


def same_bits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two parameter trees are equal in structure, dtypes and bits (NaNs too)."""
    a, b = leaves(a), leaves(b)
    return a.keys() == b.keys() and all(
        np.asarray(a[k]).dtype == np.asarray(b[k]).dtype and np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes()
        for k in a
    )


def write_raw_safetensors(path: pathlib.Path, header: str, data: bytes) -> None:
    """A safetensors file with whatever header, true or not."""
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def add_sizes(writer: Any, config: ModelConfig) -> None:
    """The metadata of a GGUF file that all families have."""
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def write_gguf(
    path: pathlib.Path,
    config: ModelConfig,
    params: dict[str, Any],
    *,
    kind: str = "F32",
    metadata: dict[str, Any] | None = None,
    rope_factors: np.ndarray | None = None,
) -> dict[str, Any]:
    """A GGUF file of the model, kernels and embeddings stored as ``kind``; the tree that is then to be read."""
    gguf = pytest.importorskip("gguf")
    quantisation = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, config.architecture)
    add_sizes(writer, config)
    for key, value in (metadata or {}).items():
        {bool: writer.add_bool, str: writer.add_string, int: writer.add_uint32, float: writer.add_float32,
         list: writer.add_array}[type(value)](key, value)  # fmt: skip
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.astype(np.float32))
    expected: dict[str, Any] = {}
    for slot in slots(config):
        node, target = params, expected
        for key in slot.path[:-1]:
            node, target = node[key], target.setdefault(key, {})
        leaf = node[slot.path[-1]].copy()
        for index, name in zip(slot.places, slot.names, strict=True):
            tensor = np.ascontiguousarray(leaf[index])
            tensor = np.ascontiguousarray(tensor.T) if slot.transposed else tensor
            if slot.path[-2] in ("q", "k") and config.architecture == "llama":
                tensor = _interleave(tensor, config.num_heads if slot.path[-2] == "q" else config.num_kv_heads)
            if tensor.ndim == 2 and kind != "F32":
                raw = gguf.quants.quantize(tensor, quantisation)
                writer.add_tensor(_gguf_name(name), raw, raw_dtype=quantisation)
                rounded = gguf.quants.dequantize(raw, quantisation).astype(np.float32)
            else:
                writer.add_tensor(_gguf_name(name), tensor)
                rounded = tensor
            if slot.path[-2] in ("q", "k") and config.architecture == "llama":
                rounded = _separate(rounded, config.num_heads if slot.path[-2] == "q" else config.num_kv_heads)
            rounded = rounded.T if slot.transposed else rounded
            leaf[index] = rounded
        target[slot.path[-1]] = leaf
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _interleave(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (0..h/2, h/2..h) to pairs (0, h/2, 1, h/2 + 1, ...), row by row."""
    size = len(tensor) // heads
    order = [h * size + j + half * size // 2 for h in range(heads) for j in range(size // 2) for half in (0, 1)]
    return np.ascontiguousarray(tensor[order])


def _separate(tensor: np.ndarray, heads: int) -> np.ndarray:
    order = _interleave(np.arange(len(tensor)), heads)
    out = np.empty_like(tensor)
    out[order] = tensor
    return out


def _gguf_name(name: str) -> str:
    for old, new in [
        ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"),
        ("model.layers.", "blk."), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"), ("self_attn.", "attn_"), ("mlp.", "ffn_"), ("_proj", ""),
    ]:  # fmt: skip
        name = name.replace(old, new)
    return name
