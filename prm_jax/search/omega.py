"""OmegaPRM: which wrong rollout to examine next, and where its first error is, by binary search.

States are prefixes of solutions; a rollout starts at a state and is correct or wrong. MC, the share of correct rollouts
from a state, estimates whether the state is still correct. arXiv 2406.06592.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from prm_jax.search.tree import NO_NODE, at, put

NO_ERROR = -1


class Halvings(NamedTuple):
    """The trace of a binary search; I halvings, in order.

    Attributes:
      lo: [B, I] i32, index of the last step known to be correct before the probe, -1 for none.
      hi: [B, I] i32, index of the first step known to be wrong before the probe.
      probes: [B, I] i32, index of the last step of the prefix that was probed; -1 where nothing was asked.
      mc: [B, I] f32, result of the probe; 0 where nothing was asked.
    """

    lo: jax.Array
    hi: jax.Array
    probes: jax.Array
    mc: jax.Array


class FirstError(NamedTuple):
    """What a binary search found.

    Attributes:
      first_error: [B] i32, index of the first wrong step, -1 for none.
      trace: how it was found.
    """

    first_error: jax.Array
    trace: Halvings


def omega_select(
    mc: ArrayLike,
    visits: ArrayLike,
    state: ArrayLike,
    length: ArrayLike,
    used: ArrayLike,
    alpha: float = 0.5,
    beta: float = 0.9,
    L: float = 500.0,
    c: float = 0.125,
) -> tuple[jax.Array, jax.Array]:
    """Picks the wrong rollout to examine: `alpha^(1 - MC) * beta^(length / L) + c * sqrt(sum N) / (1 + N)`.

    The pool holds the wrong rollouts from states with 0 < MC < 1 that have not been picked. All rollouts of a state
    share its N. After a pick N of its state grows by one and the rollout is used (`omega_use`).

    Args:
      mc: [B, S] float in [0, 1], share of correct rollouts from each state.
      visits: [B, S] float, N of each state; 0 in free places, since the sum includes them.
      state: [B, R] i32 in 0..S-1, the state from which each wrong rollout starts, -1 in free places.
      length: [B, R] float >= 0, length of each rollout in the caller's unit (tokens, words, steps).
      used: [B, R] bool.
      alpha: in (0, 1].
      beta: in (0, 1].
      L: the length, in the same unit, at which the second factor is `beta`.
      c: weight of the exploration.

    Returns:
      (i [B] i32, score [B, R] f32): the first of the best rollouts, -1 where the pool is empty; and the scores, -inf
      outside the pool. A rollout whose MC or length is NaN is not in the pool.

    Source: arXiv 2406.06592.
    """
    mc, visits = jnp.asarray(mc, jnp.float32), jnp.asarray(visits, jnp.float32)
    state, length, used = jnp.asarray(state, jnp.int32), jnp.asarray(length, jnp.float32), jnp.asarray(used) != 0
    chex.assert_rank([mc, state], 2)
    chex.assert_equal_shape([mc, visits])
    chex.assert_equal_shape([state, length, used])
    chex.assert_shape(mc, (state.shape[0], None))
    if 0 in (state.shape[1], mc.shape[1]):
        return jnp.full(state.shape[:1], NO_NODE, jnp.int32), jnp.full(state.shape, -jnp.inf, jnp.float32)
    own_mc, own_visits = at(mc, state), at(visits, state)
    pool = (state >= 0) & (state < mc.shape[1]) & ~used & (own_mc > 0) & (own_mc < 1) & ~jnp.isnan(length)
    quality = alpha ** (1.0 - own_mc) * beta ** (length / L)
    bonus = c * jnp.sqrt(jnp.sum(visits, axis=1, keepdims=True)) / (1.0 + own_visits)
    score = jnp.where(pool, quality + bonus, -jnp.inf)
    best = jnp.where(jnp.any(pool, axis=1), jnp.argmax(score, axis=1), NO_NODE)
    return best.astype(jnp.int32), score


def omega_use(
    visits: ArrayLike, state: ArrayLike, used: ArrayLike, pick: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Marks a picked rollout as used and counts the visit of its state.

    Args:
      visits: [B, S] float.
      state: [B, R] i32.
      used: [B, R] bool.
      pick: [B] i32, of `omega_select`; -1 changes nothing.

    Returns:
      (visits, used).
    """
    visits, state, used = jnp.asarray(visits, jnp.float32), jnp.asarray(state), jnp.asarray(used) != 0
    pick = jnp.asarray(pick, jnp.int32)
    chex.assert_equal_shape([state, used])
    return put(visits, jnp.where(pick >= 0, at(state, pick), NO_NODE), 1.0, "add"), put(used, pick, True)


def first_error_search(
    probe: Callable[[jax.Array], ArrayLike],
    n_steps: ArrayLike,
    max_steps: int,
    *,
    probe_last: bool = False,
    host: bool = False,
) -> FirstError:
    """Finds the first wrong step of wrong solutions with about log2(length) probes each.

    Invariant: the answer can be reached from the prefix that ends at `lo`, but not from the one that ends at `hi`; the
    middle is probed until they are neighbours. If MC is not monotone, the result need not be the first prefix with
    MC = 0.

    Args:
      probe: from the index of a prefix's last step [B] i32, -1 where nothing is asked, to MC [B]: the share of correct
        rollouts. It is called once for each halving, for all questions together.
      n_steps: [B] i32, steps of each solution; 0 for a question without one.
      max_steps: static, at least the largest `n_steps`.
      probe_last: also probe the whole solution, like released code, instead of taking it to be wrong.
      host: whether `probe` runs on the host, on NumPy arrays. Otherwise it is traced.

    Returns:
      `FirstError`; -1 for a question without steps and, with `probe_last`, where the whole solution has MC > 0. A
      solution of one step costs no probe (unless `probe_last`).

    Raises:
      ValueError: `probe` returned the wrong shape, or, on the host, something that is not in [0, 1]; `n_steps` is not
        traced and goes beyond `max_steps`.

    Source: arXiv 2406.06592; closed interval: openr.
    """
    xp: Any = np if host else jnp
    steps = xp.asarray(n_steps, xp.int32)
    if not isinstance(steps, jax.core.Tracer) and steps.size and int(steps.max()) > max_steps:
        raise ValueError(f"n_steps goes up to {int(steps.max())}, max_steps is only {max_steps}")
    lo, hi = xp.full_like(steps, -1), steps if probe_last else steps - 1
    trace: list[tuple[Any, ...]] = []
    # hi - lo starts at no more than max_steps (+ 1) and halves, rounded up.
    for _ in range((max_steps if probe_last else max_steps - 1).bit_length()):
        active = (hi - lo > 1) & (steps > 0)
        if host and not active.any():
            break
        mid = xp.where(active, (lo + hi) // 2, NO_NODE).astype(xp.int32)
        mc = _probed(probe(mid), mid, host)
        trace.append((lo, hi, mid, xp.where(active, mc, 0.0)))
        right = active & (mc > 0)
        lo, hi = xp.where(right, mid, lo), xp.where(active & ~right, mid, hi)
    nothing = (xp.zeros((*steps.shape, 0)),) * 4
    course = [xp.stack(each, -1) for each in zip(*trace, strict=True)] if trace else nothing
    first = xp.where((steps > 0) & (hi < steps), hi, NO_ERROR)
    lows, highs, probes, first = (jnp.asarray(x, jnp.int32) for x in (*course[:3], first))
    return FirstError(first, Halvings(lows, highs, probes, jnp.asarray(course[3], jnp.float32)))


def _probed(answer: ArrayLike, mid: Any, host: bool) -> Any:
    mc = np.asarray(answer) if host else jnp.asarray(answer)
    if mc.shape != mid.shape:
        raise ValueError(f"the probe returned shape {mc.shape}; expected {mid.shape}, one MC per question")
    if host:
        bad = np.flatnonzero((mid >= 0) & ~((mc >= 0) & (mc <= 1)))
        if len(bad):
            raise ValueError(f"the probe returned {mc[bad[0]]} for question {bad[0]}; expected a share in [0, 1]")
    return mc
