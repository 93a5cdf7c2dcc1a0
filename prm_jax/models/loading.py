"""Models that options name, with the options' run-time fields, and fresh ones."""

import dataclasses
from typing import Any

import jax

from prm_jax.models.config import ModelConfig
from prm_jax.models.hub import find_model
from prm_jax.models.model_options import ModelOptions
from prm_jax.models.tokenizer import Tokenizer
from prm_jax.models.transformer import init_params
from prm_jax.models.weights import load_weights

_UNROLL_UP_TO = 8  # layers; a deeper model is scanned, since unrolling costs compilation time


def load_model(options: ModelOptions) -> tuple[ModelConfig, Any, Any]:
    """(config with the options' run-time fields, parameters, tokenizer) of ``options.path``; see ``find_model``."""
    path = find_model(options.path)
    config, params = load_weights(path)
    return _with_runtime(config, options), params, Tokenizer.load(path)


def fresh_config(options: ModelOptions, vocab_size: int) -> ModelConfig:
    """The architecture of a fresh model."""
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        num_layers=options.num_layers,
        num_heads=options.num_heads,
        num_kv_heads=options.num_kv_heads,
        head_dim=options.hidden_size // options.num_heads,
    )
    return _with_runtime(config, options)


def fresh_params(config: ModelConfig, key: jax.Array) -> Any:
    """Random parameters, compiled so that the same key gives the same bits."""
    return jax.jit(init_params, static_argnums=0)(config, key)


def _with_runtime(config: ModelConfig, options: ModelOptions) -> ModelConfig:
    unroll = options.scan_unroll or (config.num_layers if config.num_layers <= _UNROLL_UP_TO else 1)
    return dataclasses.replace(
        config,
        compute_dtype=options.compute_dtype,
        remat=options.remat,
        scan_unroll=unroll,
        lora_alpha=options.lora_alpha,
    )
