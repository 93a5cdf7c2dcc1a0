"""Gemma 2: soft caps, windows in every other layer, norms before and after each block (arXiv:2408.00118)."""

import math

from prm_jax.errors import UserError
from prm_jax.models.families.description import Family, Fields, GgufForm, Given
from prm_jax.models.families.fields import cap, integer, number, refuse
from prm_jax.models.families.windows import FULL, SLIDING, typed_windows, written_windows

NORMS = {
    "attn_norm": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
"""Of Gemma 2 and 3."""
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
READS = ("query_pre_attn_scalar", "use_bidirectional_attention", "sliding_window_pattern", *CAPS)
GGUF_KEYS = ("attention.sliding_window", "attention.sliding_window_pattern", *CAPS)
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


def read_windows(config: Given, *, pattern: int) -> Fields:
    """The windows: every ``pattern``-th layer has none, unless the file says otherwise."""
    every = integer(config, "sliding_window_pattern", default=pattern)
    asked = config.get("sliding_window") is not None
    return {"layer_windows": typed_windows(config, lambda layer: (layer + 1) % every != 0, asked=asked)}


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
    return read_common(config) | read_windows(config, pattern=2)


def read_gguf(given: Given, *, largest: int) -> Fields:
    """Windows, caps and the scale of scores, which files leave to the number of layers of the largest model."""
    heads = given["num_attention_heads"]
    largest_model = given["num_hidden_layers"] == largest
    scalar = given["hidden_size"] // heads if largest_model else given["head_dim"]
    found = {"sliding_window": given.get("attention.sliding_window") or None, "query_pre_attn_scalar": scalar}
    found |= {name: given.get(name) for name in CAPS}
    pattern = given.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        found["layer_types"] = [SLIDING if one else FULL for one in pattern]
    elif pattern:
        found["sliding_window_pattern"] = pattern
    return found


FAMILY = Family(
    name="gemma2",
    classes=("Gemma2ForCausalLM",),
    model_type="gemma2",
    defaults={
        "max_position_embeddings": 8192, "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True,
        "sliding_window": 4096,
    },
    reads=READS,
    read=_read,
    write=write_common,
    holds=("layer_windows", "attn_softcap", "logit_softcap", "attn_scale", "embed_scale"),
    activations=ACTIVATIONS,
    activation_field="hidden_activation",
    activation="gelu_tanh",
    norms=NORMS,
    norm_offset=1.0,
    gguf=GgufForm(architecture="gemma2", keys=GGUF_KEYS, read=lambda given: read_gguf(given, largest=46)),
)  # fmt: skip
