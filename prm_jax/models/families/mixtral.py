"""Mixtral: a Mistral whose MLPs are sparse mixtures of experts (arXiv:2401.04088)."""

from prm_jax.models.families.description import ExpertNames, Family, Fields, GgufForm, Given
from prm_jax.models.families.fields import integer
from prm_jax.models.families.mistral import write_window
from prm_jax.models.families.windows import shared_window


def _read(config: Given) -> Fields:
    return {
        "sliding_window": shared_window(config, "mixtral"),
        "num_experts": integer(config, "num_local_experts", default=8),
        "experts_per_token": integer(config, "num_experts_per_tok", default=2),
    }


def _write(fields: Given) -> Fields:
    experts = {"num_local_experts": fields["num_experts"], "num_experts_per_tok": fields["experts_per_token"]}
    return write_window(fields) | experts


def _read_gguf(given: Given) -> Fields:
    return {"num_local_experts": given.get("expert_count"), "num_experts_per_tok": given.get("expert_used_count")}


FAMILY = Family(
    name="mixtral",
    classes=("MixtralForCausalLM",),
    model_type="mixtral",
    defaults={
        "max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0,
    },
    reads=("num_local_experts", "num_experts_per_tok"),
    read=_read,
    write=_write,
    holds=("sliding_window",),
    attention_bias="never",
    experts=ExpertNames(
        router="block_sparse_moe.gate",
        gate="block_sparse_moe.experts.{}.w1",
        up="block_sparse_moe.experts.{}.w3",
        down="block_sparse_moe.experts.{}.w2",
    ),
    gguf=GgufForm(
        architecture="llama", interleaved=True, keys=("expert_count", "expert_used_count"), read=_read_gguf
    ),
)  # fmt: skip
