"""Llama 2, 3 and their relatives, SmolLM2 among them (arXiv:2302.13971, arXiv:2407.21783)."""

from prm_jax.models.families.description import Family, Fields, GgufForm, Given
from prm_jax.models.families.windows import no_windows


def _read(config: Given) -> Fields:
    no_windows(config, "llama")
    return {}


FAMILY = Family(
    name="llama",
    classes=("LlamaForCausalLM",),
    model_type="llama",
    defaults={"max_position_embeddings": 2048},
    read=_read,
    mlp_bias=True,
    gguf=GgufForm(architecture="llama", interleaved=True),
)
