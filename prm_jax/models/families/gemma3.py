"""Gemma 3, text only: five layers with windows and frequencies of their own to one without (arXiv:2503.19786)."""

from prm_jax.models.families.description import Family, Fields, GgufForm, Given
from prm_jax.models.families.gemma2 import (
    ACTIVATIONS,
    GGUF_KEYS,
    NORMS,
    READS,
    read_common,
    read_gguf,
    read_windows,
    write_common,
)

_LOCAL_THETA = 10_000.0


def _read(config: Given) -> Fields:
    return read_common(config) | read_windows(config, pattern=6)


def _write(fields: Given) -> Fields:
    return {**write_common(fields), "rope_local_base_freq": fields["rope_local_theta"] or fields["rope_theta"]}


def _read_gguf(given: Given) -> Fields:
    local = given.get("rope.freq_base_swa") or _LOCAL_THETA
    return {**read_gguf(given, largest=62), "rope_local_base_freq": local}


FAMILY = Family(
    name="gemma3",
    classes=("Gemma3ForCausalLM",),
    model_type="gemma3_text",
    defaults={
        "max_position_embeddings": 131072, "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True,
        "sliding_window": 4096, "rope_theta": 1_000_000.0, "rope_local_base_freq": _LOCAL_THETA,
    },
    reads=READS,
    read=_read,
    write=_write,
    holds=("layer_windows", "attn_softcap", "logit_softcap", "attn_scale", "embed_scale", "rope_local_theta"),
    activations=ACTIVATIONS,
    activation_field="hidden_activation",
    activation="gelu_tanh",
    norms=NORMS,
    norm_offset=1.0,
    qk_norm="head",
    gguf=GgufForm(architecture="gemma3", keys=(*GGUF_KEYS, "rope.freq_base_swa"), read=_read_gguf),
)  # fmt: skip
