"""Names for the leaves of a pytree, from their paths."""

from typing import Any

import jax
import jax.numpy as jnp


def named_leaves(tree: Any) -> dict[str, Any]:
    """Flattens a pytree to {"policy/layers/attn/q/kernel": leaf}, in the tree's own order.

    Raises:
      ValueError: when two leaves would have the same name, as with the keys "a/b" and "a" -> "b".
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if name in leaves:
            raise ValueError(f"two leaves of the tree are both called {name!r}")
        leaves[name] = leaf
    return leaves


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys (or its abstract stand-in)."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
