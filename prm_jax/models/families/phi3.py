"""Phi-3, Phi-3.5 and Phi-4: fused projections, rotary embeddings that may be partial or LongRoPE (arXiv:2404.14219)."""

from prm_jax.models.families.description import Family, Fields, GgufForm, Given
from prm_jax.models.families.mistral import write_window
from prm_jax.models.families.windows import shared_window

_GGUF_KEYS = ("attention.sliding_window", "rope.dimension_count", "rope.scaling.attn_factor")


def _read(config: Given) -> Fields:
    return {"sliding_window": shared_window(config, "phi3")}


def _write(fields: Given) -> Fields:
    found = write_window(fields)
    if fields["rope_scaling"] is not None:
        found["original_max_position_embeddings"] = fields["rope_scaling"].original_max_position_embeddings
    return found


def _read_gguf(given: Given) -> Fields:
    rotated = given.get("rope.dimension_count") or given["head_dim"]
    found = {"sliding_window": given.get("attention.sliding_window") or None}
    # With LongRoPE the scaling has it.
    return found if given["rope_scaling"] else {**found, "partial_rotary_factor": rotated / given["head_dim"]}


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
    gguf=GgufForm(architecture="phi3", keys=_GGUF_KEYS, read=_read_gguf),
)
