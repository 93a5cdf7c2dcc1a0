"""The key-value cache of incremental decoding: a pytree that jit and ``lax.while_loop`` can carry."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax.models.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of all layers; every row is filled up to one common column.

    Rows of unequal length are padded on the left: row b's first token stands in column ``start[b]``, so that
    all rows write the same column at each step.

    Attributes:
      k: keys ``[L, B, S, num_kv_heads, head_dim]`` after rotation, or a tuple of L arrays ``[B, S, ...]`` when
        the parameters' layers are a tuple too (see ``unstack_layers``).
      v: values, the same layout.
      index: [] int32, columns filled so far; the next tokens go to columns ``index ..``.
      start: [B] int32, the first valid column of each row.
    """

    k: Any
    v: Any
    index: jax.Array
    start: jax.Array

    @property
    def length(self) -> int:
        """S, the number of columns."""
        return self.k[0].shape[1]


def init_cache(
    config: ModelConfig,
    batch: int,
    length: int,
    *,
    start: jax.Array | None = None,
    stacked: bool = True,
    dtype: str | None = None,
) -> KVCache:
    """An empty cache.

    Args:
      config: the model.
      batch: B rows.
      length: S columns; the caller writes no more tokens than that.
      start: [B] int32, number of left-padding columns of each row; 0 when not given.
      stacked: one array for all layers (to go with stacked parameters), or a tuple with one for each.
      dtype: of keys and values; the config's compute dtype by default.

    Returns:
      A ``KVCache`` of zeros with ``index`` 0.
    """
    shape = (batch, length, config.num_kv_heads, config.head_dim)
    kind = jnp.dtype(dtype or config.compute_dtype)

    def zeros() -> Any:
        if stacked:
            return jnp.zeros((config.num_layers, *shape), kind)
        return tuple(jnp.zeros(shape, kind) for _ in range(config.num_layers))

    first = jnp.zeros((batch,), jnp.int32) if start is None else jnp.asarray(start, jnp.int32)
    return KVCache(k=zeros(), v=zeros(), index=jnp.zeros((), jnp.int32), start=first)


def repeat_rows(cache: KVCache, times: int) -> KVCache:
    """Repeats each row (row b becomes rows ``b * times ..``), so that G samples share one prefill."""

    def repeat(x: jax.Array, axis: int) -> jax.Array:
        return jnp.repeat(x, times, axis=axis)

    def both(side: Any) -> Any:
        return tuple(repeat(x, 0) for x in side) if isinstance(side, tuple) else repeat(side, 1)

    return KVCache(k=both(cache.k), v=both(cache.v), index=cache.index, start=repeat(cache.start, 0))
