"""Phi-3, Phi-3.5 and Phi-4: fused projections, rotary embeddings that may be partial or LongRoPE (arXiv:2404.14219)."""

from prm_jax.models.families.description import Family, Fields, Given
from prm_jax.models.families.mistral import write_window
from prm_jax.models.families.windows import shared_window


def _read(config: Given) -> Fields:
    return {"sliding_window": shared_window(config, "phi3")}


def _write(fields: Given) -> Fields:
    found = write_window(fields)
    if fields["rope_scaling"] is not None:
        found["original_max_position_embeddings"] = fields["rope_scaling"].original_max_position_embeddings
    return found


FAMILY = Family(
    name="phi3",
    classes=("Phi3ForCausalLM",),
    model_type="phi3",
    defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    reads=("partial_rotary_factor",),
    read=_read,
    write=_write,
    holds=("sliding_window", "rotary_dim"),
    attention_bias="never",
    fused={"self_attn.qkv_proj": ("q", "k", "v"), "mlp.gate_up_proj": ("gate", "up")},
)
