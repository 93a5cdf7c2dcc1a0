"""Rows of activations on a mesh: the compiler splits parameters by itself, but not the work.

Without a constraint, XLA splits the contracted dimension of a product with fsdp-split parameters and keeps every row on
every device. The mesh is that of the arrays, which JAX tracks in their types; arrays without a mesh, or on one device,
are left as they are.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from prm_jax.models.qtensor import QTensor, dequantize, take
from prm_jax.models.sharding import BATCH, AnyMesh


def mesh_of(*arrays: Any) -> AbstractMesh | None:
    """The mesh of the first array on several devices, or None.

    Args:
      *arrays: pytrees of arrays, traced or not.

    Returns:
      None as well under ``shard_map``, where arrays are one device's part already, and for axes of type Explicit.
    """
    for leaf in jax.tree.leaves(arrays):
        mesh = jax.typeof(leaf).sharding.mesh
        if not mesh.empty and mesh.size > 1 and set(mesh.axis_types) == {AxisType.Auto}:
            return mesh
    return None


def row_axes(mesh: AnyMesh, rows: int) -> tuple[str, ...]:
    """The mesh axes that split a batch, those of ``BATCH`` that the mesh has, as far as they divide its rows."""
    axes: tuple[str, ...] = ()
    ways = 1
    for axis in BATCH:
        size = mesh.shape.get(axis, 1)
        if size > 1 and rows % (ways * size) == 0:
            axes, ways = (*axes, axis), ways * size
    return axes


def split_over_rows(x: jax.Array, axis: int = 0) -> jax.Array:
    """Constrains one dimension of an array on a mesh to be split over "data" and "fsdp"; no other one is."""
    mesh = mesh_of(x)
    axes = () if mesh is None else row_axes(mesh, x.shape[axis])
    if mesh is None or not axes:
        return x
    return _constrained(x, NamedSharding(mesh, P(*(None,) * axis, axes)))


def embed(table: jax.Array | QTensor, tokens: jax.Array, dtype: Any = None) -> jax.Array:
    """``table[tokens]``: [V, D], [B, T] -> [B, T, D] in ``dtype`` (None: the table's), NaN for a token outside [0, V).

    On a mesh, where "fsdp" splits D and "tensor" splits V, every device looks up the rows of its fsdp group in its own
    part of the table, and an all-to-all brings each row's features together: the table is never gathered.
    """
    mesh = mesh_of(table, tokens)
    axes = () if mesh is None else row_axes(mesh, tokens.shape[0])
    if mesh is None or not axes:
        if isinstance(table, QTensor):
            return take(table, tokens, dtype or jnp.float32)
        return jnp.take(table, tokens, axis=0).astype(dtype or table.dtype)
    if isinstance(table, QTensor):
        table = dequantize(table, dtype or jnp.float32)
    return _embed_on_mesh(table, tokens, mesh, axes, jnp.dtype(dtype or table.dtype))


def over_rows_and_heads(
    attention: Callable[..., jax.Array], mesh: AbstractMesh, *, rows: int, heads: tuple[int, int]
) -> Callable[..., jax.Array]:
    """``attention(q, k, v, segment_ids)`` under ``shard_map``, so that each device computes its own rows and heads.

    Args:
      attention: on [B, T, heads, head_dim] arrays and [B, T] segment ids or None.
      mesh: of its arrays; "tensor" splits the heads.
      rows: B.
      heads: (query heads, key heads). Fewer key heads than devices are repeated; numbers that "tensor" does not divide
        are not split.
    """
    axes, (query_heads, key_heads) = row_axes(mesh, rows), heads
    tensor = mesh.shape.get("tensor", 1)
    repeats = tensor // key_heads if tensor % key_heads == 0 else 1
    splits = tensor > 1 and query_heads % tensor == 0 and key_heads * max(repeats, 1) % tensor == 0
    spec = P(axes, None, "tensor" if splits else None, None)
    local = jax.shard_map(attention, mesh=mesh, in_specs=(spec, spec, spec, P(axes)), out_specs=spec)

    def run(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        if splits and repeats > 1:
            k, v = (jnp.repeat(x, repeats, axis=2) for x in (k, v))
        return local(q, k, v, segment_ids)

    return jax.jit(run, inline=True)


# Compiled functions, because outside ``jax.jit`` an abstract mesh has no devices.
@functools.partial(jax.jit, static_argnums=1, inline=True)
def _constrained(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, sharding)


@functools.partial(jax.jit, static_argnums=(2, 3, 4), inline=True)
def _embed_on_mesh(
    table: jax.Array, tokens: jax.Array, mesh: AbstractMesh, axes: tuple[str, ...], dtype: Any
) -> jax.Array:
    vocab, width = table.shape
    features = "fsdp" if "fsdp" in axes and width % mesh.shape["fsdp"] == 0 else None
    columns = "tensor" if mesh.shape.get("tensor", 1) > 1 and vocab % mesh.shape["tensor"] == 0 else None

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        if features is not None:
            tokens = jax.lax.all_gather(tokens, features, axis=0, tiled=True)
        if columns is None:
            x = jnp.take(table, tokens, axis=0).astype(dtype)
        else:
            x = _part_of_vocabulary(table, tokens, columns, dtype)
        if features is not None:
            x = jax.lax.all_to_all(x, features, split_axis=0, concat_axis=2, tiled=True)
        return x

    specs = (P(columns, features), P(axes))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(axes))(table, tokens)


def _part_of_vocabulary(table: jax.Array, tokens: jax.Array, axis: str, dtype: Any) -> jax.Array:
    size = table.shape[0]
    own = tokens - jax.lax.axis_index(axis) * size
    inside = (own >= 0) & (own < size)
    x = jnp.where(inside[..., None], jnp.take(table, jnp.where(inside, own, 0), axis=0).astype(dtype), 0)
    known = (tokens >= 0) & (tokens < size * jax.lax.axis_size(axis))
    return jnp.where(known[..., None], jax.lax.psum(x, axis), jnp.nan)
