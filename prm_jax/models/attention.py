"""Causal grouped-query attention without repeated keys and values; softmax in float32."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh

from prm_jax.models.attention_choice import resolve
from prm_jax.models.attention_spec import SAVED, AttentionSpec
from prm_jax.models.blockwise_attention import blockwise_attention
from prm_jax.models.config import Implementation
from prm_jax.models.naive_attention import naive_attention
from prm_jax.models.rows import mesh_of, over_rows_and_heads
from prm_jax.models.splash_attention import splash_attention
from prm_jax.target_device import platform_and_kind


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    offset: int = 0,
    implementation: Implementation = "auto",
    block: int | None = None,
    mesh: AbstractMesh | None = None,
) -> jax.Array:
    """``softmax(softcap(scale * q k^T)) v`` over the tokens up to each query's own, for every query head.

    Differentiable in q, k and v, once and in reverse mode only.  Under ``shard_map``, give a device's own rows and
    heads.

    Args:
      q: ``[B, T, num_heads, head_dim]``.
      k: ``[B, S, num_kv_heads, head_dim]``, S >= offset + T; query head h reads key head
        ``h // (num_heads / num_kv_heads)``.
      v: like ``k``.
      segment_ids: ``[B, S]`` int32 of packed rows, contiguous runs of one id; a query sees its own segment only.  A
        negative id is padding: those keys and values are ignored, even NaN, and those outputs are 0.
      window: tokens that a query sees at most, its own included, >= 1; None for all.
      softcap: positive c of ``c * tanh(score / c)``, or None.
      scale: factor of the scores; None for ``1 / sqrt(head_dim)``.
      offset: key column of query 0; static.
      implementation: "naive" computes all scores as one ``[B, num_heads, T, S]`` array; "blockwise" never does (see
        ``blockwise_attention``); "splash" is flash attention on TPUs (see ``splash_attention``), "cudnn" on NVIDIA
        GPUs, in half precision, without packed rows and soft caps; "auto" see ``attention_choice.resolve``.
      block: tokens per block of "blockwise" and "splash"; None chooses.
      mesh: of the arrays, for calls outside ``shard_map``: each device computes its own rows and heads.  None: the
        mesh that their types name, if any.

    Returns:
      An array like ``q``.

    Raises:
      UserError: an implementation asked for by name that cannot compute this, see ``resolve``.
      ValueError: shapes that do not fit, or a window, cap or offset outside its range.
    """
    spec = AttentionSpec(1.0 / math.sqrt(q.shape[-1]) if scale is None else scale, window, softcap, offset, block)
    _check(q, k, v, segment_ids, spec)
    chosen = resolve(
        implementation, platform=platform_and_kind(q)[0], dtype=q.dtype, head_dim=q.shape[-1],
        length=q.shape[1], packed=segment_ids is not None, softcap=softcap is not None, offset=offset,
    )  # fmt: skip
    local: Callable[..., jax.Array] = functools.partial(_attend, chosen, spec)
    mesh = mesh_of(q, k, v) if mesh is None else mesh
    if mesh is not None:
        local = over_rows_and_heads(local, mesh, rows=q.shape[0], heads=(q.shape[2], k.shape[2]))
    return local(q, k, v, segment_ids)


def _attend(
    chosen: Implementation,
    spec: AttentionSpec,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
) -> jax.Array:
    used = spec.offset + q.shape[1]  # no query sees a later column
    if k.shape[1] > used:
        k, v, segment_ids = k[:, :used], v[:, :used], None if segment_ids is None else segment_ids[:, :used]
    if segment_ids is None:
        return _of_segments(chosen, spec, q, k, v, None)
    real = (segment_ids >= 0)[..., None, None]
    q = jnp.where(real[:, spec.offset :], q, 0)
    out = _of_segments(chosen, spec, q, jnp.where(real, k, 0), jnp.where(real, v, 0), segment_ids)
    return jnp.where(real[:, spec.offset :], out, 0)


def _of_segments(
    chosen: Implementation,
    spec: AttentionSpec,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
) -> jax.Array:
    if chosen == "blockwise":
        return blockwise_attention(q, k, v, segment_ids, spec)
    if chosen == "splash":
        return splash_attention(q, k, v, segment_ids, spec)
    if chosen == "naive":
        return naive_attention(q, k, v, segment_ids, spec)
    reach = None if spec.window is None else (spec.window - 1, 0)
    out = jax.nn.dot_product_attention(
        q, k, v, scale=spec.scale, is_causal=True, local_window_size=reach, implementation="cudnn"
    )
    return checkpoint_name(out, SAVED)


def _check(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None, spec: AttentionSpec) -> None:
    if q.ndim != 4 or k.shape != v.shape or k.shape[::3] != q.shape[::3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            "expected q [B, T, num_heads, head_dim], k and v [B, S, num_kv_heads, head_dim], num_kv_heads dividing "
            f"num_heads; found {list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    if spec.offset < 0 or spec.offset + q.shape[1] > k.shape[1]:
        raise ValueError(f"offset {spec.offset} and {q.shape[1]} queries do not fit {k.shape[1]} key columns")
    if segment_ids is not None and segment_ids.shape != k.shape[:2]:
        raise ValueError(f"segment_ids must be {list(k.shape[:2])}, found {list(segment_ids.shape)}")
    for name, value, least in (("window", spec.window, 1), ("block", spec.block, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, found {value}")
    if spec.softcap is not None and spec.softcap <= 0:
        raise ValueError(f"softcap must be positive, found {spec.softcap}")
