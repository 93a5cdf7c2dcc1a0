"""What a tree search asks its evaluator, and the answers, checked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from prm_jax.errors import UserError
from prm_jax.search.expansion import check_state
from prm_jax.search.tree import Tree


class Leaf(NamedTuple):
    """What an evaluator is asked about; with several leaves per question, [B, K] instead of [B].

    Attributes:
      node: [B] i32, slot of the leaf.
      depth: [B] i32.
      ok: [B] bool; answers for the others are ignored.
      simulation: scalar i32, number of the simulation.
      key: [B] typed keys, one per question and simulation; None when the search has none.
      state: the tree's state at the leaf, pytree of [B, ...], or None.
    """

    node: jax.Array
    depth: jax.Array
    ok: jax.Array
    simulation: jax.Array
    key: jax.Array | None = None
    state: Any = None


class Expansion(NamedTuple):
    """What an evaluator answers; with several leaves per question, [B, K, C] instead of [B, C].

    Attributes:
      prior: [B, C] float, the policy's weight of each step.
      value: [B, C] float, value of each child.
      terminal: [B, C] bool, the child is an answer.
      valid: [B, C] bool, the child exists.
      reward: [B, C] float, reward of each step; None for 0.
      node_value: [B] float, value of the leaf itself; None keeps what was given when it became a child.
      state: pytree of [B, C, ...], state of the children; None when the tree has none.
    """

    prior: ArrayLike
    value: ArrayLike
    terminal: ArrayLike
    valid: ArrayLike
    reward: ArrayLike | None = None
    node_value: ArrayLike | None = None
    state: Any = None


ExpandFn = Callable[[Leaf], Expansion]

_WITH_CHILDREN = ("prior", "value", "terminal", "valid", "reward")


def checked_shapes(expansion: Expansion, tree: Tree, lead: tuple[int, ...], width: int) -> Expansion:
    """Converts an answer to arrays and refuses a wrong shape, naming the part.

    Args:
      expansion: the answer.
      tree: the trees that were asked about.
      lead: shape of the leaves, [B] or [B, K].
      width: C.

    Raises:
      ValueError: a part is missing or has another shape than expected.
    """
    if not isinstance(expansion, Expansion):
        raise ValueError(f"the evaluator returned {type(expansion).__name__}; expected an Expansion")
    # A list is a number per child in a part, but a container in a state.
    given = {name: part for name, part in expansion._asdict().items() if name != "state" and part is not None}
    expansion = expansion._replace(
        **{name: jnp.asarray(part) for name, part in given.items()}, state=jax.tree.map(jnp.asarray, expansion.state)
    )
    for name in (*_WITH_CHILDREN, "node_value"):
        part = getattr(expansion, name)
        if part is None and name not in ("reward", "node_value"):
            raise ValueError(f"the evaluator's {name!r} is None; only 'reward', 'node_value' and 'state' may be")
        expected = (*lead, width) if name in _WITH_CHILDREN else lead
        if part is not None and jnp.shape(part) != expected:
            axes = "[B" + ", K" * (len(lead) - 1) + (", C]" if name in _WITH_CHILDREN else "]")
            raise ValueError(f"the evaluator's {name!r} has shape {jnp.shape(part)}; expected {expected}, {axes}")
    check_state(tree, expansion.state, (*lead, width), "the evaluator's 'state'")
    return expansion


def check_finite(answer: Expansion, leaf: Leaf) -> None:
    """Refuses NaN and infinity, naming question, node and child; on the host.

    Raises:
      UserError: a number that counts is not finite.
    """
    for name in ("prior", "value", "reward", "node_value"):
        part = getattr(answer, name)
        if part is None:
            continue
        used = np.asarray(leaf.ok)
        if name != "node_value":
            used = used[..., None] & (np.asarray(answer.valid) != 0)
        bad = np.argwhere(used & ~np.isfinite(np.asarray(part)))
        if len(bad):
            place = tuple(int(i) for i in bad[0])
            node = int(leaf.node[place[: leaf.node.ndim]])
            child = "" if name == "node_value" else f", child {place[-1]}"
            raise UserError(
                f"the evaluator's {name!r} is {np.asarray(part)[place]} for question {place[0]}, node {node}{child}: "
                "it must return finite numbers, or mark the child as not valid"
            )


def no_answer(tree: Tree, lead: tuple[int, ...], width: int) -> Expansion:
    """An answer of the right shape for a simulation in which no question asks; it is ignored."""
    shape = (*lead, width)
    state = jax.tree.map(lambda x: np.zeros((*shape, *x.shape[2:]), x.dtype), tree.state)
    nothing = np.zeros(shape, np.float32)
    return Expansion(nothing, nothing, nothing != 0, nothing != 0, state=state)
