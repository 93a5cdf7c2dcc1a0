"""An optimiser step that fetches its state from host memory array by array, so that the device holds little of it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prm_jax.pytree_paths import named_leaves
from prm_jax.runs.host_memory import back_to, in_host_memory, on_device

Finish = Callable[
    [jax.Array, jax.Array, list[jax.Array], list[jax.Array]], tuple[jax.Array, list[jax.Array], jax.Array]
]
"""(parameter, its update, new state, old state) -> (new parameter, state to keep, whether the update is usable)."""


def update_in_turn(
    optimizer: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any, finish: Finish
) -> tuple[Any, Any, list[jax.Array]]:
    """Updates one array after the other, each with its own part of a state in host memory.

    The transfer of the next array's state waits until the new state of the one before is in host memory again; without
    that, compilers fetch the whole state first. The transformation is traced once per array, with the states of the
    others left out, and the compiler keeps what belongs to the array alone.

    Args:
      optimizer: whose updates of an array depend on all gradients, but only on the array's own state and on scalars.
      grads: gradients.
      opt_state: the state; arrays of a parameter have its path as the end of their own.
      params: parameters.
      finish: called for every array.

    Returns:
      (new parameters, new state, whether each update is usable).
    """
    leaves, tree = jax.tree.flatten(params)
    stored, state_tree = jax.tree.flatten(opt_state)
    owners = owners_of(list(named_leaves(opt_state)), list(named_leaves(params)))
    blank = [
        on_device(leaf) if owner is None else jnp.zeros(leaf.shape, leaf.dtype)
        for leaf, owner in zip(stored, owners, strict=True)
    ]
    new_leaves, new_stored, usable = list(leaves), list(stored), []
    last: jax.Array | None = None
    for number, param in enumerate(leaves):
        own = [i for i, owner in enumerate(owners) if owner == number or (owner is None and number == 0)]
        state = list(blank)
        for i in own:
            if owners[i] is not None:
                state[i] = on_device(_after(stored[i], last))
        updates, new_state = optimizer.update(grads, jax.tree.unflatten(state_tree, state), params)
        update, new = jax.tree.leaves(updates)[number], jax.tree.leaves(new_state)
        new_leaves[number], kept, good = finish(param, update, [new[i] for i in own], [state[i] for i in own])
        usable.append(good)
        for i, leaf in zip(own, kept, strict=True):
            new_stored[i] = back_to(leaf, stored[i])
            last = new_stored[i] if in_host_memory(new_stored[i]) else last
    return jax.tree.unflatten(tree, new_leaves), jax.tree.unflatten(state_tree, new_stored), usable


def owners_of(state_names: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """The parameter whose path ends each path of the state, the longest one; None for a scalar of the whole state."""
    places = {name: number for number, name in enumerate(names)}
    found: list[int | None] = []
    for name in state_names:
        parts = name.split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        found.append(next((places[end] for end in ends if end in places), None))
    return found


def _after(leaf: jax.Array, earlier: jax.Array | None) -> jax.Array:
    """The array, not read before another one exists."""
    if earlier is None or not in_host_memory(leaf):
        return leaf
    ordered: jax.Array = jax.lax.optimization_barrier((leaf, earlier))[0]
    return ordered
