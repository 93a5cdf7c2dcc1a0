"""OLMo 2: norms after attention and MLP, and over all heads of queries and keys at once (arXiv:2501.00656)."""

from prm_jax.models.families.description import Family, Fields, GgufForm, Given
from prm_jax.models.families.windows import no_windows


def _read(config: Given) -> Fields:
    no_windows(config, "olmo2")
    return {}


FAMILY = Family(
    name="olmo2",
    classes=("Olmo2ForCausalLM",),
    model_type="olmo2",
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    read=_read,
    norms={"attn_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"},
    qk_norm="width",
    gguf=GgufForm(architecture="olmo2"),
)
