"""SmolLM3: a Llama whose every fourth layer has no rotary positions (arXiv:2501.18795)."""

from prm_jax.models.families.description import Family, Fields, GgufForm, Given
from prm_jax.models.families.fields import integer, refuse
from prm_jax.models.families.windows import layer_count, optional_windows, written_windows


def _read(config: Given) -> Fields:
    layers, rotated = layer_count(config), config.get("no_rope_layers")
    if rotated is None:
        interval = integer(config, "no_rope_layer_interval", default=4)
        unrotated = tuple(range(interval - 1, layers, interval))
    elif not isinstance(rotated, list) or len(rotated) != layers or any(one not in (0, 1) for one in rotated):
        refuse("no_rope_layers", rotated, "expected one 1 (rotary) or 0 (none) per layer")
    else:
        unrotated = tuple(i for i, one in enumerate(rotated) if not one)
    return {"unrotated_layers": unrotated, "layer_windows": optional_windows(config, unrotated.__contains__)}


def _write(fields: Given) -> Fields:
    unrotated, windows = fields["unrotated_layers"], fields["layer_windows"]
    return {
        "no_rope_layers": [int(i not in unrotated) for i in range(fields["num_layers"])],
        "use_sliding_window": any(windows),
        **(written_windows(windows) if any(windows) else {}),
    }


FAMILY = Family(
    name="smollm3",
    classes=("SmolLM3ForCausalLM",),
    model_type="smollm3",
    defaults={
        "max_position_embeddings": 32768, "num_key_value_heads": 4, "rope_theta": 2_000_000.0,
        "tie_word_embeddings": True,
    },
    reads=("no_rope_layers", "no_rope_layer_interval"),
    read=_read,
    write=_write,
    holds=("unrotated_layers", "layer_windows"),
    mlp_bias=True,
    gguf=GgufForm(architecture="smollm3", interleaved=True),
)  # fmt: skip
