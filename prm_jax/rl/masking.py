"""Helpers shared by `rl` and `stats`: masks, float32, groups, and recurrences along the last axis.

Conventions. Masked values are ignored, even NaN, because they are replaced before any arithmetic. Results are float32
for every input dtype. `axis_name` names the mapped axis (of `shard_map`, `vmap` or `pmap`) over which the batch is
split; statistics are then those of the whole batch.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

AxisName: TypeAlias = str | tuple[str, ...] | None


def as_f32(x: ArrayLike) -> jax.Array:
    """Any real dtype (bool and int included) as float32, so that fractions are never truncated."""
    return jnp.asarray(x).astype(jnp.float32)


def as_mask(mask: ArrayLike) -> jax.Array:
    """A bool mask; 0/1 masks of any dtype are accepted."""
    mask = jnp.asarray(mask)
    return mask if mask.dtype == jnp.bool_ else mask != 0


def masked(x: ArrayLike, mask: jax.Array) -> jax.Array:
    """`x` as float32 where `mask`, else 0; masked values pass neither NaN nor a gradient."""
    return jnp.where(mask, as_f32(x), 0.0)


def check_option(name: str, value: str, options: Sequence[str]) -> None:
    """Raises ValueError when `value` is not one of `options`."""
    if value not in options:
        raise ValueError(f"{name}={value!r}; expected one of {', '.join(map(repr, options))}")


def psum(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Sum over the devices of `axis_name`; `x` itself when there is none."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def pmax(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Maximum over the devices of `axis_name`; `x` itself when there is none."""
    return x if axis_name is None else jax.lax.pmax(x, axis_name)


def pmin(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Minimum over the devices of `axis_name`; `x` itself when there is none."""
    return x if axis_name is None else jax.lax.pmin(x, axis_name)


def gather(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The parts of all devices of `axis_name`, joined along the first axis; `x` itself when there is none.

    For statistics that need all data in one place (ranks, sorted sums). Each device writes its part into zeros and the
    parts are summed, so that `shard_map` knows the result to be replicated, unlike that of an all-gather.
    """
    if axis_name is None:
        return x
    bits = x.astype(jnp.int32) if x.dtype == jnp.bool_ else x
    whole = jnp.zeros((jax.lax.psum(1, axis_name) * x.shape[0], *x.shape[1:]), bits.dtype)
    start = [jax.lax.axis_index(axis_name) * x.shape[0], *(jnp.int32(0) for _ in x.shape[1:])]
    return jax.lax.psum(jax.lax.dynamic_update_slice(whole, bits, start), axis_name).astype(x.dtype)


def safe_divide(numerator: ArrayLike, denominator: ArrayLike) -> jax.Array:
    """`numerator / denominator`, 0 (with gradient 0) where the denominator is 0."""
    numerator, denominator = as_f32(numerator), as_f32(denominator)
    zero = denominator == 0
    return jnp.where(zero, 0.0, numerator / jnp.where(zero, 1.0, denominator))


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Square root whose gradient at 0 (and below) is 0 instead of infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def mean_last(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the last axis of the entries where `mask`; 0 where there is none. `x` must be masked already."""
    return jnp.sum(x, -1) / jnp.maximum(jnp.sum(mask, -1), 1)


def share(hit: jax.Array, mask: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """Share of the selected entries that are hits, over the whole batch; 0 when none is selected."""
    hits = psum(jnp.sum((hit & mask).astype(jnp.float32)), axis_name)
    return hits / jnp.maximum(psum(jnp.sum(mask.astype(jnp.float32)), axis_name), 1)


def is_last(mask: jax.Array) -> jax.Array:
    """True on the last selected position of the last axis, and nowhere in an empty row."""
    later = jax.lax.cumsum(mask.astype(jnp.int32), axis=mask.ndim - 1, reverse=True)
    return mask & (later == 1)


def reverse_cumsum(x: jax.Array) -> jax.Array:
    """Sum of this and all later entries of the last axis."""
    return jax.lax.cumsum(x, axis=x.ndim - 1, reverse=True)


def reverse_recurrence(decay: jax.Array, x: jax.Array) -> jax.Array:
    """y_t = x_t + decay_t * y_{t+1} along the last axis (y = 0 after the end), in log depth."""

    def combine(later: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return later[0] * now[0], now[1] + now[0] * later[1]

    return jax.lax.associative_scan(combine, (decay, x), reverse=True, axis=x.ndim - 1)[1]


def next_valid(x: jax.Array, mask: jax.Array, *, end: ArrayLike = 0.0) -> jax.Array:
    """`x` at the next selected position of the last axis; `end` where there is none (broadcast over rows).

    For a mask without holes this is a shift by one; with holes it skips them, so that a row with holes behaves
    like the same row with the holes cut out.
    """
    end = jnp.broadcast_to(as_f32(end), x.shape[:-1])[..., None]
    here = jnp.concatenate([jnp.where(mask, x, 0.0), end], -1)
    skip = jnp.concatenate([jnp.where(mask, 0.0, 1.0), jnp.zeros_like(end)], -1)
    return reverse_recurrence(skip, here)[..., 1:]


def previous_valid(x: jax.Array, mask: jax.Array, *, start: ArrayLike = 0.0) -> jax.Array:
    """`x` at the previous selected position of the last axis; `start` where there is none."""
    return jnp.flip(next_valid(jnp.flip(x, -1), jnp.flip(mask, -1), end=start), -1)


def group_members(group_ids: ArrayLike, num_groups: int, mask: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """(ids, member): `member` is False for rows outside `mask` or whose id is not in [0, num_groups)."""
    ids = jnp.asarray(group_ids)
    member = (ids >= 0) & (ids < num_groups)
    return ids, member if mask is None else member & as_mask(mask)


def group_sum(
    x: jax.Array, ids: jax.Array, num_groups: int, member: jax.Array, axis_name: AxisName = None
) -> jax.Array:
    """[num_groups] sums of `x` [B] over the members of each group, over all devices of `axis_name`."""
    dropped = jnp.where(member, ids, num_groups)  # out of range: segment_sum leaves it out
    return psum(jax.ops.segment_sum(jnp.where(member, x, 0.0), dropped, num_groups), axis_name)


def of_group(statistic: jax.Array, ids: jax.Array, member: jax.Array) -> jax.Array:
    """[B]: each member's own group's entry of `statistic` [num_groups]; 0 for the others."""
    return jnp.where(member, statistic[jnp.where(member, ids, 0)], 0.0)


def same_group(ids: jax.Array, member: jax.Array) -> jax.Array:
    """[B, B] bool: row and column are members of one group (a member is in its own group)."""
    return (ids[:, None] == ids[None, :]) & member[:, None] & member[None, :]
