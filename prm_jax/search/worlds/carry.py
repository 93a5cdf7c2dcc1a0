"""Chain sums with a careless policy, as a search problem whose values are known exactly.

The problem is that of the built-in carry task: running totals of one-digit operands, written by a policy that drops the
carry with some probability whenever the units overflow. A dropped carry is never compensated, so the probability of a
correct answer from any prefix is a product. No language model is needed, and everything runs inside jit.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.search.evaluation import Expansion, Leaf

WIDTH = 2
"""Ways to write an addition: correct, and with the carry dropped where there is one."""


class CarryProgress(NamedTuple):
    """A prefix of a solution; leaves [...].

    Attributes:
      written: i32, additions written.
      total: i32, the total written last.
      right: bool, every total so far is correct.
    """

    written: jax.Array
    total: jax.Array
    right: jax.Array


class CarryWorld(NamedTuple):
    """B sums.

    Attributes:
      operands: [B, L] i32 in 0..9, right-padded.
      lengths: [B] i32 in 2..L, operands of each sum.
      drop_carry: scalar f32, probability of dropping a carry.
    """

    operands: jax.Array
    lengths: jax.Array
    drop_carry: jax.Array


def carry_world(operands: ArrayLike, lengths: ArrayLike, *, drop_carry: float = 0.6) -> CarryWorld:
    """B sums as a search problem.

    Args:
      operands: [B, L] int in 0..9, right-padded with any values.
      lengths: [B] int in 2..L.
      drop_carry: probability of dropping a carry, in [0, 1].

    Returns:
      `CarryWorld`.
    """
    operands, lengths = jnp.asarray(operands, jnp.int32), jnp.asarray(lengths, jnp.int32)
    chex.assert_rank(operands, 2)
    chex.assert_shape(lengths, operands.shape[:1])
    return CarryWorld(operands, lengths, jnp.float32(drop_carry))


def carry_start(world: CarryWorld) -> CarryProgress:
    """The empty solutions, [B]: what `init_tree` takes as state."""
    first = world.operands[:, 0]
    return CarryProgress(jnp.zeros_like(first), first, jnp.ones(first.shape, bool))


def carry_values(world: CarryWorld, progress: CarryProgress) -> jax.Array:
    """The exact probability that the careless policy ends with the correct answer.

    Args:
      world: B sums.
      progress: leaves [B, ...].

    Returns:
      [B, ...] f32.
    """
    totals = jnp.cumsum(world.operands, axis=1)
    overflow = totals[:, :-1] % 10 + world.operands[:, 1:] >= 10  # [B, L - 1], of the right solution
    exists = jnp.arange(1, world.operands.shape[1]) < world.lengths[:, None]
    keeps = jnp.where(exists & overflow, 1.0 - world.drop_carry, 1.0)
    later = jnp.flip(jnp.cumprod(jnp.flip(keeps, 1), axis=1), 1)  # the additions from each one on
    later = jnp.concatenate([later, jnp.ones_like(later[:, :1])], axis=1)
    rows = _of_sums(jnp.arange(world.lengths.shape[0]), progress.written)
    return jnp.where(progress.right, later[rows, jnp.minimum(progress.written, later.shape[1] - 1)], 0.0)


def carry_next(world: CarryWorld, progress: CarryProgress) -> tuple[CarryProgress, jax.Array]:
    """Both ways to write the next addition.

    Args:
      world: B sums.
      progress: leaves [B, ...].

    Returns:
      (progress with leaves [B, ..., 2]: the correct addition and the one with the carry dropped; policy [B, ..., 2]
      f32): a way that does not exist has probability 0; none exists after the last addition.
    """
    written = progress.written
    place = jnp.minimum(written + 1, world.operands.shape[1] - 1)
    operand = jnp.take_along_axis(world.operands, place.reshape(len(place), -1), axis=1).reshape(place.shape)
    going = written + 1 < _of_sums(world.lengths, written)
    overflow = progress.total % 10 + operand >= 10
    total = (progress.total + operand)[..., None] - jnp.array([0, 10])
    slip = jnp.where(overflow, world.drop_carry, 0.0)
    policy = jnp.where(going[..., None], jnp.stack([1.0 - slip, slip], axis=-1), 0.0)
    right = progress.right[..., None] & jnp.array([True, False])
    return CarryProgress(jnp.broadcast_to(written[..., None] + 1, total.shape), total, right), policy


def carry_expand(world: CarryWorld, leaf: Leaf, *, noise: float = 0.0) -> Expansion:
    """The evaluator for `search`: `functools.partial(carry_expand, world)`.

    Priors are the careless policy's. The value of a child is exact, plus noise; that of an answer is 1 or 0.

    Args:
      world: B sums.
      leaf: with a state that is `CarryProgress`.
      noise: deviation of normal noise on values of children that are not answers; needs keys in the search.

    Returns:
      `Expansion` of width 2.
    """
    nodes, policy = carry_next(world, leaf.state)
    terminal = nodes.written + 1 >= _of_sums(world.lengths, nodes.written)
    value = carry_values(world, nodes)
    if noise > 0.0:
        assert leaf.key is not None, "noise needs keys: give search a key"
        error = jax.vmap(lambda key: jax.random.normal(key, value.shape[1:]))(leaf.key)
        value = jnp.where(terminal, value, value + noise * error)
    return Expansion(policy, value, terminal, policy > 0, state=nodes)


def _of_sums(field: jax.Array, like: jax.Array) -> jax.Array:
    """[B] as [B, 1, ...], to broadcast against an array [B, ...]."""
    return field.reshape(-1, *(1,) * (like.ndim - 1))
