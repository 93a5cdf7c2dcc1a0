"""The decoder once more, in float64 NumPy with loops over rows, heads and positions: what the tests compare with."""

from typing import Any

import numpy as np

from prm_jax.models.config import ModelConfig


def _rms_norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


def _linear(config: ModelConfig, params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    y = x @ params["kernel"]
    if "bias" in params:
        y = y + params["bias"]
    if "lora_a" in params:
        y = y + x @ params["lora_a"] @ params["lora_b"] * (config.lora_alpha / params["lora_a"].shape[-1])
    return y


def _rotate(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    """Pairs (i, i + half) turn by position * theta^(-i / half)."""
    half = len(x) // 2
    angle = position * theta ** (-np.arange(half) / half)
    first, second = x[:half], x[half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)]
    )


def _attention(
    config: ModelConfig, params: dict[str, Any], x: np.ndarray, positions: np.ndarray, window: int | None
) -> np.ndarray:
    length, size = len(x), config.head_dim
    q = _linear(config, params["q"], x).reshape(length, config.num_heads, size)
    k = _linear(config, params["k"], x).reshape(length, config.num_kv_heads, size)
    v = _linear(config, params["v"], x).reshape(length, config.num_kv_heads, size)
    if config.qk_norm:
        q = _rms_norm(q, params["q_norm"]["scale"], config.rms_norm_eps)
        k = _rms_norm(k, params["k_norm"]["scale"], config.rms_norm_eps)
    out = np.zeros_like(q)
    for head in range(config.num_heads):
        shared = head // (config.num_heads // config.num_kv_heads)
        keys = np.stack([_rotate(k[t, shared], positions[t], config.rope_theta) for t in range(length)])
        for t in range(length):
            first = 0 if window is None else max(0, t + 1 - window)
            scores = keys[first : t + 1] @ _rotate(q[t, head], positions[t], config.rope_theta) / np.sqrt(size)
            if config.attn_softcap is not None:
                scores = config.attn_softcap * np.tanh(scores / config.attn_softcap)
            weights = np.exp(scores - scores.max())
            out[t, head] = weights / weights.sum() @ v[first : t + 1, shared]
    return _linear(config, params["o"], out.reshape(length, -1))


def hidden_states(config: ModelConfig, params: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Tokens [T] -> [T, D] float64, after the final norm; ``params`` has stacked layers."""
    params = _double(params)
    x = params["embed"]["embedding"][tokens]
    for i in range(config.num_layers):
        layer = _layer(params["layers"], i)
        normed = _rms_norm(x, layer["attn_norm"]["scale"], config.rms_norm_eps)
        x = x + _attention(config, layer["attn"], normed, np.arange(len(tokens)), config.windows[i])
        normed = _rms_norm(x, layer["mlp_norm"]["scale"], config.rms_norm_eps)
        gate = _linear(config, layer["mlp"]["gate"], normed)
        up = _linear(config, layer["mlp"]["up"], normed)
        x = x + _linear(config, layer["mlp"]["down"], gate / (1 + np.exp(-gate)) * up)
    return _rms_norm(x, params["final_norm"]["scale"], config.rms_norm_eps)


def log_softmax(config: ModelConfig, params: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Tokens [T] -> [T, V] float64: row t is the distribution of token t + 1."""
    params = _double(params)
    head = params["embed"]["embedding"] if config.tie_word_embeddings else params["head"]["kernel"]
    logits = hidden_states(config, params, tokens) @ head.T
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _double(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _double(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)


def _layer(tree: Any, index: int) -> Any:
    if isinstance(tree, dict):
        return {name: _layer(value, index) for name, value in tree.items()}
    return tree[index]
