"""Qwen3: norms over each query and key head (arXiv:2505.09388)."""

from prm_jax.models.families.description import Family, GgufForm
from prm_jax.models.families.qwen2 import read_windows, write_windows

FAMILY = Family(
    name="qwen3",
    classes=("Qwen3ForCausalLM",),
    model_type="qwen3",
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
    read=read_windows,
    write=write_windows,
    holds=("layer_windows",),
    qk_norm="head",
    gguf=GgufForm(architecture="qwen3"),
)
