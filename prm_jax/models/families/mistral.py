"""Mistral: a Llama whose layers may all have one attention window (arXiv:2310.06825)."""

from prm_jax.models.families.description import Family, Fields, Given
from prm_jax.models.families.windows import shared_window

_WINDOW = 4096  # what the class assumes where the field is left out


def _read(config: Given) -> Fields:
    return {"sliding_window": shared_window({"sliding_window": _WINDOW, **config}, "mistral")}


def write_window(fields: Given) -> Fields:
    """``sliding_window``, null for none."""
    return {"sliding_window": fields["sliding_window"]}


FAMILY = Family(
    name="mistral",
    classes=("MistralForCausalLM",),
    model_type="mistral",
    defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8},
    read=_read,
    write=write_window,
    holds=("sliding_window",),
    attention_bias="never",
)
