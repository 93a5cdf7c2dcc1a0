"""Granite 3: a Llama with constant factors on embeddings, residual branches, scores and logits (arXiv:2405.04324)."""

from prm_jax.models.families.description import Family, Fields, Given
from prm_jax.models.families.fields import number
from prm_jax.models.families.windows import no_windows

_MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def _read(config: Given) -> Fields:
    no_windows(config, "granite")
    embed, residual, attention, logits = (number(config, name, default=1.0, positive=True) for name in _MULTIPLIERS)
    return {"embed_scale": embed, "residual_scale": residual, "attn_scale": attention, "logit_divisor": logits}


def _write(fields: Given) -> Fields:
    attention = fields["attn_scale"] or fields["head_dim"] ** -0.5
    values = (fields["embed_scale"], fields["residual_scale"], attention, fields["logit_divisor"])
    return dict(zip(_MULTIPLIERS, values, strict=True))


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
)
