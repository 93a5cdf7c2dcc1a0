"""Past rollouts that an online PRM learns from again: a ring of recent ones, and those of its warm-up, which stay.

The policy gradient needs rollouts of the current policy; the loss on outcomes does not, so the PRM may reuse them. The
buffer is a pytree of arrays of fixed sizes inside the training state, and so part of every checkpoint.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax.prime.batch import Batch

EMPTY = -1
"""The birth of a place without a rollout, and of one that the PRM must not learn from."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replay:
    """N = kept + recent places for rollouts of T tokens.

    Attributes:
      tokens: [N, T] int32.
      mask: [N, T] bool, response tokens.
      step_ids: [N, T] int32, -1 outside the response.
      ref_logp: [N, T] float32, log-probs of the reference when the rollout was stored.
      outcome: [N] float32.
      born: [N] int32, number of completed updates when the rollout was stored; -1: nothing to learn from here.
      updates: scalar int32, number of batches stored so far, which also seeds the draws.
      key: [2] uint32, data of the key of all draws.
      kept: static; places [0, kept) hold the rollouts of the warm-up, the others form the ring.
    """

    tokens: jax.Array  # [N, T]
    mask: jax.Array  # [N, T]
    step_ids: jax.Array  # [N, T]
    ref_logp: jax.Array  # [N, T]
    outcome: jax.Array  # [N]
    born: jax.Array  # [N]
    updates: jax.Array
    key: jax.Array  # [2]
    kept: int = dataclasses.field(metadata={"static": True})

    @property
    def recent(self) -> int:
        """Places of the ring."""
        return self.born.shape[0] - self.kept


def empty_replay(recent: int, kept: int, columns: int, key: jax.Array) -> Replay:
    """A buffer without rollouts.

    Args:
      recent: places of the ring.
      kept: places for the rollouts of the warm-up.
      columns: T, the longest prompt and response together.
      key: typed PRNG key of all draws, consumed.
    """
    places = recent + kept
    return Replay(
        tokens=jnp.zeros((places, columns), jnp.int32), mask=jnp.zeros((places, columns), bool),
        step_ids=jnp.full((places, columns), -1, jnp.int32), ref_logp=jnp.zeros((places, columns), jnp.float32),
        outcome=jnp.zeros(places, jnp.float32), born=jnp.full(places, EMPTY, jnp.int32),
        updates=jnp.zeros((), jnp.int32), key=jax.random.key_data(key).astype(jnp.uint32), kept=kept,
    )  # fmt: skip


def remember(replay: Replay, rows: Batch, ref_logp: jax.Array, learned: jax.Array) -> Replay:
    """Stores a batch in the ring, over the oldest rollouts.

    Args:
      replay: with at least as many places in the ring as the batch has rows.
      rows: B rollouts of at most T columns.
      ref_logp: [B, T'] log-probs of the reference.
      learned: [B] bool, False on rows that the PRM must not learn from.
    """
    count = rows.mask.shape[0]
    first = replay.updates % replay.recent * count  # modulo twice, since the product would overflow in a long run
    places = replay.kept + (first + jnp.arange(count)) % replay.recent
    stored = _stored(replay, rows, ref_logp, learned, places)
    return dataclasses.replace(stored, updates=replay.updates + 1)


def keep(replay: Replay, rows: Batch, ref_logp: jax.Array, learned: jax.Array, first: jax.Array) -> Replay:
    """Stores rollouts of the warm-up for good, from place `first` on; see `remember`."""
    return _stored(replay, rows, ref_logp, learned, first + jnp.arange(rows.mask.shape[0]))


def draw(replay: Replay, rows: int, *, age: int, share_kept: float, number: jax.Array) -> tuple[Batch, jax.Array]:
    """Draws rollouts with replacement.

    Args:
      replay: the buffer.
      rows: number of rollouts drawn.
      age: rollouts of the ring that were stored more than this many updates ago are not drawn; 0: all are.
      share_kept: probability with which a row comes from the warm-up, where both parts have rollouts.
      number: scalar int32, of this draw among those between two updates.

    Returns:
      (rollouts whose `keep` is False where the buffer has none, their ref_logp [rows, T]).
    """
    known = replay.born != EMPTY
    warm = jnp.arange(known.shape[0]) < replay.kept
    young = known & ~warm
    if age:
        young &= replay.updates - replay.born <= age
    old = known & warm
    share = jnp.where(old.any(), jnp.where(young.any(), share_kept, 1.0), 0.0)
    chances = share * old / jnp.maximum(old.sum(), 1) + (1 - share) * young / jnp.maximum(young.sum(), 1)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(replay.key), replay.updates), number)
    places = jax.random.choice(key, known.shape[0], (rows,), p=chances)
    there = known[places]
    drawn: dict[str, Any] = {
        "tokens": replay.tokens[places],
        "mask": replay.mask[places],
        "keep": there,
        "outcome": replay.outcome[places],
        "group_ids": jnp.arange(rows, dtype=jnp.int32),
        "step_ids": replay.step_ids[places],
        "judged": there,
    }
    return Batch(**drawn), replay.ref_logp[places]


def _stored(
    replay: Replay, rows: Batch, ref_logp: jax.Array, learned: jax.Array, places: jax.Array
) -> Replay:  # fmt: skip
    missing = replay.tokens.shape[1] - rows.tokens.shape[1]

    def wide(x: jax.Array, fill: Any) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, missing)), constant_values=fill)

    return dataclasses.replace(
        replay,
        tokens=replay.tokens.at[places].set(wide(rows.tokens, 0)),
        mask=replay.mask.at[places].set(wide(rows.mask, False)),
        step_ids=replay.step_ids.at[places].set(wide(rows.step_ids, -1)),
        ref_logp=replay.ref_logp.at[places].set(wide(ref_logp, 0.0)),
        outcome=replay.outcome.at[places].set(jnp.asarray(rows.outcome, jnp.float32)),
        born=replay.born.at[places].set(jnp.where(learned, replay.updates, EMPTY)),
    )
