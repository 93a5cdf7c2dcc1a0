"""Vocabulary-parallel log-probs under ``shard_map``: the collectives are outside the custom VJP.

Each device computes the statistics of its own columns, and automatic differentiation goes through the sums that combine
them; the cotangent that reaches a device's log-sum-exp is then its share of the softmax. (A custom VJP with the sums
inside scales the head's gradient by the number of devices, or by its inverse, and is right on a square mesh only.)
"""

import jax
import jax.numpy as jnp

from prm_jax.pallas.linear_logprob.problem import Outputs
from prm_jax.varying import varying_axes


def check_axes(head: jax.Array, vocab_axis: str | None, gather_axes: tuple[str, ...]) -> None:
    """Checks that the head varies over the axes that should split it, as far as ``shard_map`` tracks it.

    Raises:
      ValueError: outside ``shard_map``, under one that does not check varying axes, or for a head that is whole.
    """
    if vocab_axis is not None and vocab_axis not in varying_axes(head):
        raise ValueError(
            f"vocab_axis={vocab_axis!r} needs a head that is split over this mesh axis, under jax.shard_map with "
            "check_vma=True (the default): gradients would be scaled without it"
        )
    known = set(jax.sharding.get_abstract_mesh().manual_axes)
    for axis in gather_axes:
        if axis not in known:
            raise ValueError(f"gather_axes names {axis!r}, which is not an axis of a jax.shard_map around this call")


def local_tokens(tokens: jax.Array, vocab_axis: str, size: int) -> tuple[jax.Array, jax.Array]:
    """Token ids within this device's columns (0 for others'), and a mask of its own."""
    own = tokens - jax.lax.axis_index(vocab_axis) * size
    inside = (own >= 0) & (own < size)
    return jnp.where(inside, own, 0), inside


def join(local: Outputs, inside: jax.Array, tokens: jax.Array, vocab_axis: str, size: int) -> Outputs:
    """The statistics of whole rows from every device's; finite inputs, results equal on all devices of the axis."""
    top = jax.lax.pmax(jax.lax.stop_gradient(local.lse), vocab_axis)
    lse = top + jnp.log(jax.lax.psum(jnp.exp(local.lse - top), vocab_axis))
    target = jax.lax.psum(jnp.where(inside, local.target, 0.0), vocab_axis)
    total = size * jax.lax.axis_size(vocab_axis)
    target = jnp.where((tokens >= 0) & (tokens < total), target, jnp.nan)
    entropy = None
    if local.entropy is not None:
        mean = jnp.exp(local.lse - lse) * (local.lse - local.entropy)  # this device's part of sum_v p l
        entropy = lse - jax.lax.psum(mean, vocab_axis)
    return Outputs(lse, target, entropy)
