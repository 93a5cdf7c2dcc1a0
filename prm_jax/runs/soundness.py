"""Checks that a training state is sound, and the batches kept when an update was not."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax.runs import processes

LARGEST = 1e18
"""No parameter and no moment of an optimiser reaches this size unless training has diverged."""


def complaint(state: Any) -> str:
    """Why a state must not be saved or resumed from; empty when it is sound.

    Floating-point arrays must be finite and smaller than `LARGEST`. Leaves with a single element may be infinite, which
    is the initial value of a best loss, but not NaN.
    """
    floating = [
        leaf
        for leaf in jax.tree.leaves(state)
        if getattr(leaf, "size", 0) and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    arrays, scalars = [x for x in floating if x.size > 1], [x for x in floating if x.size == 1]
    if scalars and bool(_any_nan(scalars)):
        return "the parameters or the state of the optimiser contain NaN"
    largest = float(_largest(arrays)) if arrays else 0.0
    if largest < LARGEST:
        return ""
    found = "are not finite" if not np.isfinite(largest) else f"reach {largest:.1e}, which is absurdly large"
    return f"the parameters or the state of the optimiser {found}"


def keep_batch(folder: pathlib.Path, step: int, batch: Any) -> pathlib.Path | None:
    """Writes the arrays of a batch that caused a non-finite update, for inspection; all processes must call it.

    Returns:
      The file; None where the batch has no arrays, in all processes but the first, and when the disk is full.
    """
    arrays = getattr(batch, "arrays", batch)
    if dataclasses.is_dataclass(arrays) and not isinstance(arrays, type):
        values = {field.name: getattr(arrays, field.name) for field in dataclasses.fields(arrays)}
    elif isinstance(arrays, Mapping):
        values = dict(arrays)
    else:
        values = {f"leaf_{index}": leaf for index, leaf in enumerate(jax.tree.leaves(arrays))}
    plain: dict[str, Any] = {
        name: np.asarray(processes.to_host(value)) for name, value in values.items() if hasattr(value, "shape")
    }
    if not plain or not processes.is_first():
        return None
    path = folder / f"step_{step}.npz"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **plain)
        return path
    return None


@jax.jit
def _largest(leaves: list[jax.Array]) -> jax.Array:
    """Largest absolute value; NaN if there is one."""
    return jnp.stack([jnp.abs(leaf).max().astype(jnp.float32) for leaf in leaves]).max()


@jax.jit
def _any_nan(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isnan(leaf).any() for leaf in leaves]).any()
