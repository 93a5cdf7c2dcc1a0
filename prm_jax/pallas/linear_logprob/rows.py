"""Rows of a call: their temperatures, and sorting valid ones to the front."""

from typing import Any, cast

import jax
import jax.numpy as jnp

from prm_jax.pallas.linear_logprob.problem import Inputs


def inverse_temperatures(
    temperature: float | jax.Array, mask: jax.Array | None, shape: tuple[int, ...]
) -> jax.Array | None:
    """``1 / temperature`` for every row, float32; None for the plain number 1."""
    if isinstance(temperature, int | float) and temperature == 1:
        return None
    value = jax.lax.stop_gradient(jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), shape))
    return 1.0 / (value if mask is None else jnp.where(mask, value, 1.0))


def valid_first(inputs: Inputs, mask: jax.Array) -> tuple[Inputs, jax.Array]:
    """Inputs with the mask's rows in front and their number, and the new position of every row."""
    order = jnp.argsort(~mask, stable=True)
    place = jnp.argsort(order)
    inverse = inputs.inverse_temperature
    moved = inputs._replace(
        hidden=permuted(inputs.hidden, order),
        tokens=permuted(inputs.tokens, order),
        inverse_temperature=None if inverse is None else permuted(inverse, order),
        valid=jnp.sum(mask, dtype=jnp.int32),
    )
    return moved, place


def permuted(rows: jax.Array, order: jax.Array) -> jax.Array:
    """``rows[order]`` for a permutation."""
    return cast(Any, rows.at[order]).get(unique_indices=True, mode="promise_in_bounds")
