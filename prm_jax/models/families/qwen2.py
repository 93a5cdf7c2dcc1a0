"""Qwen2 and Qwen2.5: biases on queries, keys and values (arXiv:2407.10671)."""

from prm_jax.models.families.description import Family, Fields, GgufForm, Given
from prm_jax.models.families.windows import optional_windows, written_windows


def read_windows(config: Given) -> Fields:
    """The windows of Qwen models, by ``layer_types`` or from ``max_window_layers`` on."""
    return {"layer_windows": optional_windows(config)}


def write_windows(fields: Given) -> Fields:
    """The inverse of ``read_windows``."""
    windows = fields["layer_windows"]
    if not any(windows):
        return {"use_sliding_window": False}
    first = next(i for i, window in enumerate(windows) if window is not None)
    return {"use_sliding_window": True, "max_window_layers": first, **written_windows(windows)}


FAMILY = Family(
    name="qwen2",
    classes=("Qwen2ForCausalLM",),
    model_type="qwen2",
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32},
    read=read_windows,
    write=write_windows,
    holds=("layer_windows",),
    attention_bias="always",
    out_bias=False,
    gguf=GgufForm(architecture="qwen2"),
)
