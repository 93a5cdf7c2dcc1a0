"""Qwen3 with sparse mixtures of experts in every layer (arXiv:2505.09388)."""

from prm_jax.models.families.description import ExpertNames, Family, Fields, GgufForm, Given
from prm_jax.models.families.fields import boolean, integer, refuse
from prm_jax.models.families.windows import shared_window

_GGUF_KEYS = ("expert_count", "expert_used_count", "expert_feed_forward_length")


def _read(config: Given) -> Fields:
    if config.get("mlp_only_layers"):
        refuse("mlp_only_layers", config["mlp_only_layers"], "expected [], since layers are either all sparse or none")
    if config.get("decoder_sparse_step", 1) != 1:
        refuse("decoder_sparse_step", config["decoder_sparse_step"], "expected 1: every layer is sparse")
    window = shared_window(config, "qwen3_moe")
    return {
        "sliding_window": window if boolean(config, "use_sliding_window") else None,
        "intermediate_size": integer(config, "moe_intermediate_size", default=768),
        "num_experts": integer(config, "num_experts" if "num_experts" in config else "num_local_experts", default=128),
        "experts_per_token": integer(config, "num_experts_per_tok", default=8),
        "norm_topk": boolean(config, "norm_topk_prob"),
    }


def _write(fields: Given) -> Fields:
    return {
        "use_sliding_window": fields["sliding_window"] is not None,
        "sliding_window": fields["sliding_window"],
        "moe_intermediate_size": fields["intermediate_size"],
        "num_experts": fields["num_experts"],
        "num_experts_per_tok": fields["experts_per_token"],
        "norm_topk_prob": fields["norm_topk"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _read_gguf(given: Given) -> Fields:
    names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
    return dict(zip(names, (given.get(key) for key in _GGUF_KEYS), strict=True)) | {"norm_topk_prob": True}


FAMILY = Family(
    name="qwen3_moe",
    classes=("Qwen3MoeForCausalLM",),
    model_type="qwen3_moe",
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 4},
    reads=(
        "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
        "mlp_only_layers", "decoder_sparse_step",
    ),
    read=_read,
    write=_write,
    holds=("sliding_window", "norm_topk"),
    qk_norm="head",
    experts=ExpertNames(),
    gguf=GgufForm(architecture="qwen3moe", keys=_GGUF_KEYS, read=_read_gguf),
)  # fmt: skip
