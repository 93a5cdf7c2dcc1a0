"""Families of decoders: one file each, with what its files say and what it computes differently from the others."""

from prm_jax.models.families import (
    gemma2,
    gemma3,
    granite,
    llama,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from prm_jax.models.families.description import ExpertNames, Family

_MODULES = (llama, qwen2, qwen3, mistral, gemma2, gemma3, olmo2, granite, smollm3, phi3, qwen3_moe, mixtral)

FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}
"""By ``ModelConfig.architecture``."""

__all__ = ["FAMILIES", "ExpertNames", "Family"]
