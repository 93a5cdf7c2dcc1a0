"""The op over a mesh: rows, vocabulary and features of the head split over its axes."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from prm_jax.pallas.linear_logprob.api import linear_lse_and_target
from prm_jax.pallas.linear_logprob.logprob_options import LogprobOptions
from prm_jax.varying import mark


@dataclasses.dataclass(frozen=True)
class Partition:
    """How the arrays of a call are split over a mesh; the defaults fit ``models.make_mesh``.

    Attributes:
      mesh: the mesh.
      token_axes: mesh axes that split T; their product divides it.
      vocab_axis: the axis that splits V, or None.
      gather_axes: axes that split D of the head, outermost first, or none; each must be among ``token_axes``.
      gather_once: gather the device's columns of the head before the call, in hidden's dtype, instead of one block at
        a time inside it: V / vocab_axis * D values of memory, but the least communication where an implementation
        reads the head many times, and any implementation can be used.

    Raises:
      ValueError: for gather axes that are not token axes.
    """

    mesh: Mesh | AbstractMesh
    token_axes: tuple[str, ...] = ("data", "fsdp")
    vocab_axis: str | None = "tensor"
    gather_axes: tuple[str, ...] = ("fsdp",)
    gather_once: bool = False

    def __post_init__(self) -> None:
        if not set(self.gather_axes) <= set(self.token_axes):
            raise ValueError(f"gather_axes must be among token_axes, found {self.gather_axes} and {self.token_axes}")

    def check(self, what: str, size: int, axes: tuple[str, ...]) -> None:
        """Raises ValueError for axes that the mesh lacks, or that do not divide ``size``."""
        for axis in axes:
            if axis not in self.mesh.shape:
                raise ValueError(f"the mesh has axes {tuple(self.mesh.shape)}, not {axis!r}, which should split {what}")
        parts = self.parts(axes)
        if size % parts:
            raise ValueError(f"{what}={size} cannot be split into {parts} equal parts (axes {axes})")

    def parts(self, axes: tuple[str, ...]) -> int:
        """Into how many parts the axes split a dimension."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def head_spec(self, layout: str) -> P:
        """Of the head."""
        features = self.gather_axes or None
        return P(self.vocab_axis, features) if layout == "vd" else P(features, self.vocab_axis)


def sharded_lse_and_target(
    partition: Partition,
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    *,
    mask: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    softcap: float | None = None,
    bias: jax.Array | None = None,
    options: LogprobOptions = LogprobOptions(),
) -> tuple[jax.Array, ...]:
    """``linear_lse_and_target`` of arrays on a mesh, in ``shard_map``.

    Every device has its share of the rows and its columns of the head; of its columns it holds its share of the
    features and gathers the rest one block at a time. Communication forward: those blocks, and two numbers per token
    over ``vocab_axis``; backward: the blocks again, their gradients scattered, and [T, D] summed over ``vocab_axis``.

    Args:
      partition: the mesh, and which of its axes split what.
      hidden: [T, D] float32, bfloat16 or float16.
      head: [V, D] (or [D, V]).
      tokens: [T] int in [0, V).
      mask: [T] bool, or None.
      temperature: a positive scalar or [T]; no gradient.
      softcap: positive, or None.
      bias: [V], or None.
      options: see ``LogprobOptions``; ``vocab_axis`` and ``gather_axes`` come from the partition. With ``compact``
        every device does work in proportion to its own valid tokens.

    Returns:
      As ``linear_lse_and_target``, split over ``token_axes``.

    Raises:
      ValueError: for axes that the mesh lacks or that do not divide their dimension, and as there.
    """
    if hidden.ndim != 2 or head.ndim != 2:
        raise ValueError(f"hidden and head must have two dimensions, found {hidden.shape} and {head.shape}")
    own = "it is set by the partition"
    options.refuse("sharded_lse_and_target", vocab_axis=own, gather_axes=own)
    layout, vocab = options.head_layout, () if partition.vocab_axis is None else (partition.vocab_axis,)
    partition.check("T", tokens.shape[0], partition.token_axes)
    partition.check("V", head.shape[layout.index("v")], vocab)
    partition.check("D", head.shape[layout.index("d")], partition.gather_axes)
    inside = () if partition.gather_once else partition.gather_axes
    whole_first = partition.gather_once and bool(partition.gather_axes)
    # A reduce-scatter over the minor dimension becomes an all-reduce of twice the bytes on TPUs.
    turned = whole_first and layout == "vd" and head.shape[0] // partition.parts(vocab) % 64 == 0
    local_options = dataclasses.replace(
        options, vocab_axis=partition.vocab_axis, gather_axes=inside, head_layout="dv" if turned else layout
    )
    each = jnp.ndim(temperature) > 0

    def local(hidden: Any, head: Any, tokens: Any, mask: Any, bias: Any, temperatures: Any) -> tuple[jax.Array, ...]:
        if whole_first:
            head = mark(frozenset(partition.token_axes))(head.astype(hidden.dtype))
            head = head.T if turned else head
            for axis in reversed(partition.gather_axes):
                head = jax.lax.all_gather(head, axis, axis=local_options.head_layout.index("d"), tiled=True)
        return linear_lse_and_target(
            hidden, head, tokens, mask=mask, temperature=temperatures if each else temperature,
            softcap=softcap, bias=bias, options=local_options,
        )  # fmt: skip

    rows, columns = P(partition.token_axes), P(partition.vocab_axis)
    specs = (rows, partition.head_spec(layout), rows, rows, columns, rows)
    arrays = (hidden, head, tokens, mask, bias, temperature if each else None)
    return jax.shard_map(local, mesh=partition.mesh, in_specs=specs, out_specs=rows)(*arrays)
