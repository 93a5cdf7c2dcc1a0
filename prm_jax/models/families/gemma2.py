"""Gemma 2: soft caps, windows in every other layer, norms before and after each block (arXiv:2408.00118)."""

import math

from prm_jax.errors import UserError
from prm_jax.models.families.description import Family, Fields, Given
from prm_jax.models.families.fields import cap, number, refuse
from prm_jax.models.families.windows import typed_windows, written_windows

NORMS = {
    "attn_norm": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
"""Of Gemma 2 and 3."""
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
ACTIVATIONS = ("gelu_pytorch_tanh",)


def read_common(config: Given) -> Fields:
    """What Gemma 2 and 3 share: the scales of embeddings and scores, and the soft caps."""
    if config.get("use_bidirectional_attention"):
        refuse("use_bidirectional_attention", config["use_bidirectional_attention"], "expected false")
    return {
        "embed_scale": math.sqrt(number(config, "hidden_size", positive=True)),
        "attn_scale": number(config, "query_pre_attn_scalar", default=256, positive=True) ** -0.5,
        "attn_softcap": cap(config, CAPS[0]),
        "logit_softcap": cap(config, CAPS[1]),
    }


def write_common(fields: Given) -> Fields:
    """The inverse of ``read_common``, with the windows."""
    if not math.isclose(fields["embed_scale"], math.sqrt(fields["hidden_size"])):
        raise UserError(
            f"model config: embed_scale of {fields['architecture']} is the root of hidden_size, found "
            f"{fields['embed_scale']}"
        )
    scale = fields["attn_scale"] or fields["head_dim"] ** -0.5
    windows = fields["layer_windows"] or (None,) * fields["num_layers"]
    return {
        "query_pre_attn_scalar": _whole(scale**-2),
        CAPS[0]: fields["attn_softcap"],
        CAPS[1]: fields["logit_softcap"],
        **written_windows(windows),
    }


def _whole(value: float) -> float | int:
    """The integer that a number is up to rounding, or the number."""
    return round(value) if math.isclose(value, round(value), rel_tol=1e-9) else value


def _read(config: Given) -> Fields:
    windows = typed_windows(config, lambda layer: layer % 2 == 0, asked=config.get("sliding_window") is not None)
    return read_common(config) | {"layer_windows": windows}


FAMILY = Family(
    name="gemma2",
    classes=("Gemma2ForCausalLM",),
    model_type="gemma2",
    defaults={
        "max_position_embeddings": 8192, "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True,
        "sliding_window": 4096,
    },
    reads=("query_pre_attn_scalar", "use_bidirectional_attention", *CAPS),
    read=_read,
    write=write_common,
    holds=("layer_windows", "attn_softcap", "logit_softcap", "attn_scale", "embed_scale"),
    activations=ACTIVATIONS,
    activation_field="hidden_activation",
    activation="gelu_tanh",
    norms=NORMS,
    norm_offset=1.0,
)  # fmt: skip
