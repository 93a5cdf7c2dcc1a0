"""Which implementation of attention a call uses: decided in Python from static values, before tracing.

Policy, reference and reward model see the same rows, so they get the same implementation and agree bit for bit.
"""

from typing import Any

import jax.numpy as jnp

from prm_jax.errors import UserError
from prm_jax.models.config import Implementation

_NAIVE_BELOW = {"cpu": 256, "tpu": 256, "gpu": 1024}
"""Tokens below which one array of scores is small: measured on CPUs, chosen by its size elsewhere."""

_HALF = ("bfloat16", "float16")


def resolve(
    implementation: Implementation,
    *,
    platform: str,
    dtype: Any,
    head_dim: int,
    length: int,
    packed: bool = False,
    softcap: bool = False,
    offset: int = 0,
) -> Implementation:
    """The implementation that computes a call.

    "auto" is "cudnn" on GPUs and "splash" on TPUs where they can compute the call, "naive" for short rows (fewer than
    256 tokens; 1,024 on GPUs), otherwise "blockwise". No name but "auto" is ever replaced by another one.

    Args:
      implementation: as asked for.
      platform: "cpu", "gpu" or "tpu".
      dtype: of queries, keys and values.
      head_dim: features per head.
      length: T, queries per row.
      packed: whether there are segment ids.
      softcap: whether scores are soft-capped.
      offset: see ``attend``.

    Raises:
      UserError: an implementation that cannot compute the call was asked for by name; says which condition failed.
    """
    objections = {
        "splash": _against_splash(platform, jnp.dtype(dtype).name),
        "cudnn": _against_cudnn(platform, jnp.dtype(dtype).name, head_dim, packed, softcap, offset),
    }
    if implementation != "auto":
        objection = objections.get(implementation)
        if objection:
            raise UserError(f"attention {implementation!r} {objection}; use --model.attention auto, naive or blockwise")
        return implementation
    if length < _NAIVE_BELOW.get(platform, _NAIVE_BELOW["cpu"]):
        short: Implementation = "naive"
        return short if objections["cudnn"] else "cudnn"
    if not objections["splash"]:
        return "splash"
    return "blockwise" if objections["cudnn"] else "cudnn"


def _against_splash(platform: str, dtype: str) -> str:
    """Why splash attention cannot compute a call; "" if it can."""
    if platform != "tpu":
        return f"runs on TPUs; found platform {platform!r}"
    return "" if dtype in ("float32", "bfloat16") else f"takes float32 and bfloat16; found {dtype}"


def _against_cudnn(platform: str, dtype: str, head_dim: int, packed: bool, softcap: bool, offset: int) -> str:
    if platform != "gpu":
        return f"runs on NVIDIA GPUs; found platform {platform!r}"
    if dtype not in _HALF:
        return f"takes bfloat16 and float16; found {dtype} (--model.compute-dtype bfloat16)"
    if head_dim % 8 or head_dim > 256:
        return f"takes head sizes that are multiples of 8 up to 256; found {head_dim}"
    if packed:
        return "does not take packed rows"
    if softcap:
        return "does not take soft-capped scores"
    return "does not take queries that start after the first key" if offset else ""
