"""Decoder language models: forward pass, log-probs, weights, tokenizers, generation, LoRA, heads.

Names are imported when they are first used, so that importing this package costs nothing.
"""

from typing import TYPE_CHECKING, Any

from prm_jax.lazy_names import lazy_attribute

_HOME = {
    "ModelConfig": "config",
    "compiler_options": "compilation",
    "RopeScaling": "rope_scaling",
    "Transformer": "transformer",
    "init_params": "transformer",
    "hidden_states": "transformer",
    "head_matrix": "transformer",
    "logits": "transformer",
    "finished_logits": "transformer",
    "expert_balance": "transformer",
    "token_logprobs": "logprobs",
    "token_logprobs_and_entropy": "logprobs",
    "token_statistics": "logprobs",
    "TokenStatistics": "logprobs",
    "ExpertLoad": "expert_load",
    "LoRAConfig": "lora",
    "init_lora": "lora",
    "join": "lora",
    "split": "lora",
    "merge": "lora",
    "QTensor": "qtensor",
    "quantize": "quantization",
    "dequantized": "qtensor",
    "round_through": "straight_through",
    "init_value_head": "heads",
    "value_head": "heads",
    "load_weights": "weights",
    "save_weights": "weights_writing",
    "save_adapter": "peft_export",
    "save_gguf": "gguf_export",
    "generate": "generation",
    "DecodeOptions": "generation",
    "PrefixStore": "prefixes",
    "Samples": "responses",
    "pack": "responses",
    "response_texts": "responses",
    "Tokenizer": "tokenizer",
    "CharTokenizer": "tokenizer",
    "SpecialTokens": "special_tokens",
    "check_same_vocabulary": "tokenizer",
    "check_fits": "tokenizer",
    "TextStream": "text_stream",
    "render_chat": "chat",
    "find_smollm2": "smollm2",
    "find_model": "hub",
    "ModelOptions": "model_options",
    "MeshOptions": "mesh_options",
    "load_model": "loading",
    "make_mesh": "sharding",
    "shard_params": "sharding",
    "shard_batch": "sharding",
    "shardings_for": "sharding",
    "batch_sharding": "sharding",
}

__all__ = [
    "ModelConfig",
    "compiler_options",
    "RopeScaling",
    "Transformer",
    "init_params",
    "hidden_states",
    "head_matrix",
    "logits",
    "finished_logits",
    "expert_balance",
    "token_logprobs",
    "token_logprobs_and_entropy",
    "token_statistics",
    "TokenStatistics",
    "ExpertLoad",
    "LoRAConfig",
    "init_lora",
    "join",
    "split",
    "merge",
    "QTensor",
    "quantize",
    "dequantized",
    "round_through",
    "init_value_head",
    "value_head",
    "load_weights",
    "save_weights",
    "save_adapter",
    "save_gguf",
    "generate",
    "DecodeOptions",
    "PrefixStore",
    "Samples",
    "pack",
    "response_texts",
    "Tokenizer",
    "CharTokenizer",
    "SpecialTokens",
    "check_same_vocabulary",
    "check_fits",
    "TextStream",
    "render_chat",
    "find_smollm2",
    "find_model",
    "ModelOptions",
    "MeshOptions",
    "load_model",
    "make_mesh",
    "shard_params",
    "shard_batch",
    "shardings_for",
    "batch_sharding",
]

if TYPE_CHECKING:
    from prm_jax.models.chat import render_chat
    from prm_jax.models.compilation import compiler_options
    from prm_jax.models.config import ModelConfig
    from prm_jax.models.expert_load import ExpertLoad
    from prm_jax.models.generation import DecodeOptions, generate
    from prm_jax.models.gguf_export import save_gguf
    from prm_jax.models.heads import init_value_head, value_head
    from prm_jax.models.hub import find_model
    from prm_jax.models.loading import load_model
    from prm_jax.models.logprobs import (
        TokenStatistics,
        token_logprobs,
        token_logprobs_and_entropy,
        token_statistics,
    )
    from prm_jax.models.lora import LoRAConfig, init_lora, join, merge, split
    from prm_jax.models.mesh_options import MeshOptions
    from prm_jax.models.model_options import ModelOptions
    from prm_jax.models.peft_export import save_adapter
    from prm_jax.models.prefixes import PrefixStore
    from prm_jax.models.qtensor import QTensor, dequantized
    from prm_jax.models.quantization import quantize
    from prm_jax.models.responses import Samples, pack, response_texts
    from prm_jax.models.rope_scaling import RopeScaling
    from prm_jax.models.sharding import batch_sharding, make_mesh, shard_batch, shard_params, shardings_for
    from prm_jax.models.smollm2 import find_smollm2
    from prm_jax.models.special_tokens import SpecialTokens
    from prm_jax.models.straight_through import round_through
    from prm_jax.models.text_stream import TextStream
    from prm_jax.models.tokenizer import CharTokenizer, Tokenizer, check_fits, check_same_vocabulary
    from prm_jax.models.transformer import (
        Transformer,
        expert_balance,
        finished_logits,
        head_matrix,
        hidden_states,
        init_params,
        logits,
    )
    from prm_jax.models.weights import load_weights
    from prm_jax.models.weights_writing import save_weights


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
