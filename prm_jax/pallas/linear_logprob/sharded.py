"""The op over a mesh: rows, vocabulary and features of the head split over its axes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from prm_jax.pallas.linear_logprob.api import linear_lse_and_target
from prm_jax.pallas.linear_logprob.problem import Layout


def sharded_lse_and_target(
    mesh: Mesh,
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    *,
    token_axes: tuple[str, ...] = ("data", "fsdp"),
    vocab_axis: str | None = "tensor",
    gather_axes: tuple[str, ...] = ("fsdp",),
    mask: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    softcap: float | None = None,
    bias: jax.Array | None = None,
    implementation: str | None = None,
    entropy: bool = False,
    head_layout: Layout = "vd",
    compact: bool = False,
    token_block: int | None = None,
    vocab_block: int | None = None,
) -> tuple[jax.Array, ...]:
    """``linear_lse_and_target`` of arrays on a mesh, in ``shard_map``; the defaults fit ``models.make_mesh``.

    Every device has its share of the rows and its columns of the head; of its columns it holds its share of the
    features and gathers the rest one block at a time.  Communication forward: those blocks, and two numbers a token
    over ``vocab_axis``; backward: the blocks again, their gradients scattered, and [T, D] summed over ``vocab_axis``.

    Args:
      mesh: the mesh; axes that an argument names and it lacks are an error.
      hidden: [T, D].
      head: [V, D] (or [D, V]).
      tokens: [T] int.
      token_axes: mesh axes that split T, together a divisor of it.
      vocab_axis: the one that splits V, or None.
      gather_axes: those that split D of the head, or none; each must be among ``token_axes``.
      compact: every device does work in proportion to its own valid tokens.
      mask: and the rest as in ``linear_lse_and_target``.
      temperature: see there.
      softcap: see there.
      bias: see there.
      implementation: see there.
      entropy: see there.
      head_layout: see there.
      token_block: see there.
      vocab_block: see there.

    Returns:
      As ``linear_lse_and_target``, split over ``token_axes``.

    Raises:
      ValueError: for axes that are not the mesh's or do not divide their dimension, and as there.
    """
    if hidden.ndim != 2 or head.ndim != 2:
        raise ValueError(f"hidden and head must have two dimensions, found {hidden.shape} and {head.shape}")
    v, d = head_layout.index("v"), head_layout.index("d")
    vocab = () if vocab_axis is None else (vocab_axis,)
    for what, size, axes in (
        ("T", tokens.shape[0], token_axes),
        ("V", head.shape[v], vocab),
        ("D", head.shape[d], gather_axes),
    ):
        _check(mesh, what, size, axes)
    if not set(gather_axes) <= set(token_axes):
        raise ValueError(f"gather_axes must be among token_axes, found {gather_axes} and {token_axes}")
    rows, columns = P(token_axes), P(vocab_axis)
    head_spec = P(vocab_axis, gather_axes or None) if head_layout == "vd" else P(gather_axes or None, vocab_axis)
    each = jnp.ndim(temperature) > 0
    arrays: tuple[Any, ...] = (hidden, head, tokens, mask, bias, temperature if each else None)

    def local(hidden: Any, head: Any, tokens: Any, mask: Any, bias: Any, temperatures: Any) -> tuple[jax.Array, ...]:
        return linear_lse_and_target(
            hidden, head, tokens, mask=mask, bias=bias, temperature=temperatures if each else temperature,
            softcap=softcap, implementation=implementation, entropy=entropy, head_layout=head_layout, compact=compact,
            vocab_axis=vocab_axis, gather_axes=gather_axes, token_block=token_block, vocab_block=vocab_block,
        )  # fmt: skip

    specs = (rows, head_spec, rows, rows, columns, rows)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows)(*arrays)


def _check(mesh: Mesh, what: str, size: int, axes: tuple[str, ...]) -> None:
    parts = 1
    for axis in axes:
        if axis not in mesh.shape:
            raise ValueError(f"the mesh has axes {tuple(mesh.shape)}, not {axis!r}, which is to split {what}")
        parts *= mesh.shape[axis]
    if size % parts:
        raise ValueError(f"{what}={size} cannot be split into {parts} equal parts (axes {axes})")
