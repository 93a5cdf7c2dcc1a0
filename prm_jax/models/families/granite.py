"""Granite 3: a Llama with constant factors on embeddings, residual branches, scores and logits (arXiv:2405.04324)."""

from prm_jax.models.families.description import Family, Fields, GgufForm, Given
from prm_jax.models.families.fields import number
from prm_jax.models.families.windows import no_windows

_MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
_GGUF_KEYS = ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")


def _read(config: Given) -> Fields:
    no_windows(config, "granite")
    embed, residual, attention, logits = (number(config, name, default=1.0, positive=True) for name in _MULTIPLIERS)
    return {"embed_scale": embed, "residual_scale": residual, "attn_scale": attention, "logit_divisor": logits}


def _write(fields: Given) -> Fields:
    attention = fields["attn_scale"] or fields["head_dim"] ** -0.5
    values = (fields["embed_scale"], fields["residual_scale"], attention, fields["logit_divisor"])
    return dict(zip(_MULTIPLIERS, values, strict=True))


def _read_gguf(given: Given) -> Fields:
    return {name: given[key] for key, name in zip(_GGUF_KEYS, _MULTIPLIERS, strict=True) if given.get(key)}


FAMILY = Family(
    name="granite",
    classes=("GraniteForCausalLM",),
    model_type="granite",
    defaults={"max_position_embeddings": 2048},
    reads=_MULTIPLIERS,
    read=_read,
    write=_write,
    holds=("embed_scale", "residual_scale", "attn_scale", "logit_divisor"),
    mlp_bias=True,
    gguf=GgufForm(architecture="granite", interleaved=True, keys=_GGUF_KEYS, read=_read_gguf),
)
