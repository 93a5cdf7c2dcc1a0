"""Heads on hidden states: state values, step scores, ensembles; small multi-layer perceptrons over plain dicts."""

import math

import jax
import jax.numpy as jnp

from prm_jax.models.config import ModelConfig
from prm_jax.models.transformer import Params


def init_value_head(config: ModelConfig, key: jax.Array, *, num_outputs: int = 1, layers: int = 1) -> Params:
    """Parameters of a head with ``layers`` linear layers; the last one is zero, so that the initial output is 0.

    Args:
      config: gives D; inner layers are D wide.
      key: typed PRNG key, consumed.
      num_outputs: outputs per token.
      layers: at least 1.

    Returns:
      ``{"layer_0": {"kernel": [D, D], "bias": [D]}, ..., "layer_<layers - 1>": {"kernel": [D, num_outputs],
      "bias": [num_outputs]}}``, float32.

    Raises:
      ValueError: when ``layers`` or ``num_outputs`` is below 1.
    """
    if layers < 1 or num_outputs < 1:
        raise ValueError(f"layers and num_outputs must be at least 1, found {layers} and {num_outputs}")
    width = config.hidden_size
    params: Params = {}
    for i, one_key in enumerate(jax.random.split(key, layers)):
        last = i == layers - 1
        shape = (width, num_outputs if last else width)
        kernel = jax.random.normal(one_key, shape, jnp.float32) / math.sqrt(width)
        params[f"layer_{i}"] = {
            "kernel": jnp.zeros_like(kernel) if last else kernel,
            "bias": jnp.zeros(shape[1:], jnp.float32),
        }
    return params


def value_head(params: Params, hidden: jax.Array) -> jax.Array:
    """Linear layers with SiLU between them, in float32.

    Args:
      params: from ``init_value_head``; receives gradients.
      hidden: [..., D], any float dtype; receives gradients (use ``stop_gradient`` for a probe).

    Returns:
      [..., num_outputs] float32, unbounded; entry t belongs to the state after token t.
    """
    x = hidden.astype(jnp.float32)
    count = len(params)
    for i in range(count):
        layer = params[f"layer_{i}"]
        x = x @ layer["kernel"].astype(jnp.float32) + layer["bias"].astype(jnp.float32)
        if i < count - 1:
            x = jax.nn.silu(x)
    return x
