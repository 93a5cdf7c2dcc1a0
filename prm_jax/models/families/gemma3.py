"""Gemma 3, text only: five layers with windows and frequencies of their own to one without (arXiv:2503.19786)."""

from prm_jax.models.families.description import Family, Fields, Given
from prm_jax.models.families.fields import integer
from prm_jax.models.families.gemma2 import ACTIVATIONS, CAPS, NORMS, read_common, write_common
from prm_jax.models.families.windows import typed_windows

_LOCAL_THETA = 10_000.0


def _read(config: Given) -> Fields:
    pattern = integer(config, "sliding_window_pattern", default=6)
    asked = config.get("sliding_window") is not None
    windows = typed_windows(config, lambda layer: (layer + 1) % pattern != 0, asked=asked)
    return read_common(config) | {"layer_windows": windows}


def _write(fields: Given) -> Fields:
    return {**write_common(fields), "rope_local_base_freq": fields["rope_local_theta"] or fields["rope_theta"]}


FAMILY = Family(
    name="gemma3",
    classes=("Gemma3ForCausalLM",),
    model_type="gemma3_text",
    defaults={
        "max_position_embeddings": 131072, "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True,
        "sliding_window": 4096, "rope_theta": 1_000_000.0, "rope_local_base_freq": _LOCAL_THETA,
    },
    reads=("query_pre_attn_scalar", "use_bidirectional_attention", "sliding_window_pattern", *CAPS),
    read=_read,
    write=_write,
    holds=("layer_windows", "attn_softcap", "logit_softcap", "attn_scale", "embed_scale", "rope_local_theta"),
    activations=ACTIVATIONS,
    activation_field="hidden_activation",
    activation="gelu_tanh",
    norms=NORMS,
    norm_offset=1.0,
    qk_norm="head",
)  # fmt: skip
