"""Flash attention on TPUs by JAX's splash kernels, for any row length, packed or windowed, under any ``shard_map``."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from prm_jax.models.attention_spec import SAVED, AttentionSpec
from prm_jax.varying import align, mark, varying_axes

_LANES = 128
_LARGEST = {"queries": 512, "keys": 1024}


class Blocks(NamedTuple):
    """Tokens per block of the kernels; both divide the padded row."""

    queries: int
    keys: int


class _Problem(NamedTuple):
    """Everything static about a call, the padded lengths included."""

    spec: AttentionSpec
    heads: int
    queries: int
    keys: int
    blocks: Blocks
    interpret: bool


def splash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None, spec: AttentionSpec, *,
    interpret: bool = False,
) -> jax.Array:  # fmt: skip
    """As ``attention.attend``, with the keys and values of exactly the columns before ``offset + T``.

    Rows are padded to a multiple of the block, in a segment of their own.  The backward pass is two kernels: a fused
    one would keep the gradient of the queries once per key block, which is quadratic in the length.

    Args:
      q: [B, T, num_heads, head_dim] float32 or bfloat16.
      k: [B, offset + T, num_kv_heads, head_dim].
      v: like ``k``.
      segment_ids: [B, offset + T] int32, or None.
      spec: the rest; ``block`` is a multiple of 128.
      interpret: run in the Pallas interpreter, on any platform; for tests.
    """
    length, columns = q.shape[1], k.shape[1]
    blocks = block_sizes(length, columns) if spec.block is None else Blocks(spec.block, spec.block)
    padding = -length % blocks.queries
    behind = -(columns + padding) % blocks.keys + padding  # a further query sees at least its own column
    if segment_ids is not None:
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, behind)), constant_values=-1)
    q = jnp.pad(q * jnp.asarray(spec.scale, q.dtype), ((0, 0), (0, padding), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, behind), (0, 0), (0, 0))) for x in (k, v))
    problem = _Problem(spec, q.shape[2], length + padding, columns + behind, blocks, interpret)
    q, k, v = align(tuple(x.swapaxes(1, 2) for x in (q, k, v)), segment_ids)
    return _attention(problem, q, k, v, segment_ids).swapaxes(1, 2)[:, :length]


def block_sizes(length: int, columns: int) -> Blocks:
    """Blocks of up to 512 queries and 1,024 keys, smaller where padding would add more than an eighth to the row.

    Args:
      length: queries per row.
      columns: keys per row.
    """

    def largest(count: int, most: int) -> int:
        least = -(-count // _LANES) * _LANES
        sizes = [size for size in (1024, 512, 256) if size <= most and 8 * -(-count // size) * size <= 9 * least]
        return max(sizes, default=_LANES)

    return Blocks(largest(length, _LARGEST["queries"]), largest(columns, _LARGEST["keys"]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(problem: _Problem, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array | None) -> jax.Array:
    return _on_one_device(functools.partial(_run, problem))(q, k, v, ids)


def _forward(
    problem: _Problem, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array | None
) -> tuple[jax.Array, Any]:
    def run(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array | None) -> Any:
        return jax.vjp(lambda q, k, v: _run(problem, q, k, v, ids), q, k, v)

    return _on_one_device(run)(q, k, v, ids)


def _backward(_: _Problem, back: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    return (*_on_one_device(lambda back, cotangent: back(cotangent))(back, cotangent), None)


_attention.defvjp(_forward, _backward)


def _run(problem: _Problem, q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array | None) -> jax.Array:
    """[B, heads, T, D] and [B, T + offset] -> [B, heads, T, D]."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # takes a while to import

    kernel = _kernel(problem)
    if ids is None:
        return jax.vmap(kernel)(q, k, v)
    offset = problem.spec.offset

    def row(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        of_queries = jax.lax.slice_in_dim(ids, offset, offset + problem.queries)
        return kernel(q, k, v, segment_ids=splash.SegmentIds(of_queries, ids))

    return jax.vmap(row)(q, k, v, ids)


@functools.lru_cache(maxsize=64)
def _kernel(problem: _Problem) -> Callable[..., jax.Array]:
    """The kernel; its tables of blocks are computed in NumPy, which takes a while for long rows."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    spec, blocks = problem.spec, problem.blocks
    shape = (problem.queries, problem.keys)
    if spec.window is None:
        mask: Any = splash.CausalMask(shape, offset=spec.offset)
    else:
        mask = splash.LocalMask(shape, (spec.window - 1, 0), offset=spec.offset)
    sizes = splash.BlockSizes(
        block_q=blocks.queries, block_kv=blocks.keys,
        block_q_dkv=blocks.queries, block_kv_dkv=blocks.keys,
        block_q_dq=blocks.queries, block_kv_dq=blocks.keys,
    )  # fmt: skip
    with jax.ensure_compile_time_eval():
        kernel = splash.make_splash_mha_single_device(
            splash.MultiHeadMask([mask] * problem.heads), block_sizes=sizes, attn_logits_soft_cap=spec.softcap,
            residual_checkpoint_name=SAVED, interpret=problem.interpret,
        )  # fmt: skip
        return jax.tree.map(np.asarray, kernel)


def _on_one_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` on arrays without the types of an enclosing ``shard_map``, which these kernels do not declare."""

    def run(*args: Any) -> Any:
        axes = varying_axes(args)
        if not axes:
            return function(*args)

        def plain(*args: Any) -> Any:
            # In here, any operation returns a plain array.
            return function(*jax.tree.map(lambda x: x[None].reshape(x.shape), args))

        out = jax.shard_map(plain, in_specs=P(), out_specs=P(), axis_names=set(), check_vma=False)(*args)
        return jax.tree.map(mark(axes), out)

    return run
