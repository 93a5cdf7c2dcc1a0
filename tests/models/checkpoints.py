"""Small random checkpoints of every family, for the tests of this folder."""

import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from prm_jax.models import ModelConfig
from prm_jax.models.config import RopeScaling
from prm_jax.models.layout import slots

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
    "qwen2": ModelConfig(
        architecture="qwen2", attention_bias=True, tie_word_embeddings=True, rope_theta=1e6, **_SHAPE
    ),
    "qwen3": ModelConfig(architecture="qwen3", qk_norm=True, rope_theta=1e6, **{**_SHAPE, "head_dim": 16}),
}


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


def write_raw_safetensors(path: pathlib.Path, header: str, data: bytes) -> None:
    """A safetensors file with whatever header, true or not."""
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
