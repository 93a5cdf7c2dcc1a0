"""Types of arrays under ``shard_map``: which mesh axes a value may differ over."""

from collections.abc import Callable
from typing import Any

import jax


def varying_axes(*trees: Any) -> frozenset[str]:
    """The mesh axes that any of the arrays varies over; empty outside ``shard_map``."""
    axes: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(trees):
        axes |= jax.typeof(leaf).manual_axis_type.varying
    return axes


def mark(axes: frozenset[str]) -> Callable[[jax.Array], jax.Array]:
    """Makes an array one that varies over the axes; the transpose sums its cotangent over those that were added."""

    def one(x: jax.Array) -> jax.Array:
        missing = axes - jax.typeof(x).manual_axis_type.varying
        return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x

    return one


def align(tree: Any, *others: Any) -> Any:
    """All arrays varying over the same axes: what a custom VJP needs for its cotangents to have the right types."""
    return jax.tree.map(mark(varying_axes(tree, *others)), tree)
