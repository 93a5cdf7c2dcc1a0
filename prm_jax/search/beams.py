"""Flat searches: which candidates to continue, and which answer to give.

Best-of-n, beam search and diverse verifier trees are `top_steps`, AlphaMath's beam over steps is `step_beam`, ReARTeR
scores with `look_ahead_scores`, PARM decides with `stats.gated_selection`, and answers are counted by `vote`. A score
of -inf or NaN marks a candidate that does not exist: it is never taken.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax import rl, stats
from prm_jax.search.tree import NO_NODE

How = Literal["majority", "weighted", "mean", "best"]


class StepBeam(NamedTuple):
    """What one step of `step_beam` keeps, in order of decreasing score.

    Attributes:
      parent: [B, M] i32, the beam whose child was kept, -1 in free places.
      choice: [B, M] i32, which child of it, -1 in free places.
      live: [B, M] bool, the child is continued; a kept child that is not live is a final answer.
      width: [B] i32, how many beams are kept at the next step.
    """

    parent: jax.Array
    choice: jax.Array
    live: jax.Array
    width: jax.Array


def step_beam(score: ArrayLike, live: ArrayLike, finished: ArrayLike, width: ArrayLike) -> StepBeam:
    """One step of AlphaMath's beam search over steps.

    All children of all live beams are ranked together, and the best `width` are kept. Each kept child that is finished
    occupies its place for good: `width` decreases by one. A question ends when its width is 0 or no beam is live.

    Args:
      score: [B, M, C] float, value of each child; -inf where there is none (fewer proposals, duplicates).
      live: [B, M] bool, beams that had children proposed.
      finished: [B, M, C] bool, the child is an answer, or must not be continued.
      width: [B] i32, initially M, when all beams but one may be free places that are not live; at most M counts.

    Returns:
      `StepBeam`. Among equal scores the first child is kept. A question without candidates keeps nothing.

    Source: released code of arXiv 2405.03553.
    """
    score, live, finished = _candidates(score), jnp.asarray(live) != 0, jnp.asarray(finished) != 0
    chex.assert_rank(score, 3)
    chex.assert_equal_shape([score, finished])
    batch, beams, children = score.shape
    chex.assert_shape(live, (batch, beams))
    width = jnp.asarray(width, jnp.int32)
    chex.assert_shape(width, (batch,))
    flat = jnp.where(live[:, :, None], score, -jnp.inf).reshape(batch, -1)
    order, exists = _ranked(flat, min(beams, beams * children))
    kept = exists & (jnp.arange(order.shape[1]) < width[:, None])
    ends = kept & jnp.take_along_axis(finished.reshape(batch, -1), order, axis=1)
    parent, choice = jnp.where(kept, order // children, NO_NODE), jnp.where(kept, order % children, NO_NODE)
    return StepBeam(parent, choice, kept & ~ends, width - jnp.sum(ends, axis=1, dtype=jnp.int32))


def top_steps(score: ArrayLike, keep: int) -> jax.Array:
    """The best candidates of each group, best first.

    Beam search keeps the best N / M of N beams' candidates (G = 1), diverse verifier tree search the best one of each
    of G trees, best-of-n the best one response.

    Args:
      score: [B, G, M] float, -inf where there is no candidate.
      keep: static, >= 1.

    Returns:
      [B, G, keep] i32, -1 where there are fewer candidates. Equal scores keep their order.

    Source: beam search and DVTS as in the released code search-and-learn; arXiv 2408.03314.
    """
    score = _candidates(score)
    chex.assert_rank(score, 3)
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    order, exists = _ranked(score, min(keep, score.shape[-1]))
    found = jnp.where(exists, order, NO_NODE)
    return jnp.pad(found, ((0, 0), (0, 0), (0, keep - found.shape[-1])), constant_values=NO_NODE)


def best_of_n(score: ArrayLike) -> jax.Array:
    """The best of n responses.

    Args:
      score: [B, n] float, -inf where there is none; `rl.aggregate_steps` makes it from scores of steps.

    Returns:
      [B] i32, the first of the best ones, -1 where there is none.
    """
    return top_steps(jnp.asarray(score)[:, None], 1)[:, 0, 0]


def look_ahead_scores(
    scores: ArrayLike, mask: ArrayLike, *, alpha: float = 0.5, min_gain: float | None = None
) -> jax.Array:
    """ReARTeR's score of a step from its own score and those of the steps that follow it.

    Args:
      scores: [..., H + 1] float, the step's own score, then those of up to H steps sampled after it.
      mask: [..., H + 1] bool, True on steps that exist; a candidate without its own step scores -inf.
      alpha: see `rl.td_smooth`.
      min_gain: see `rl.td_smooth`.

    Returns:
      [...] float32.

    Source: arXiv 2501.07861.
    """
    scores, mask = jnp.asarray(scores), jnp.asarray(mask) != 0
    chex.assert_equal_shape([scores, mask])
    steps = scores.shape[-1]
    smooth = rl.td_smooth(scores.reshape(-1, steps), mask.reshape(-1, steps), alpha=alpha, min_gain=min_gain)
    return jnp.where(mask[..., 0], smooth[:, 0].reshape(mask.shape[:-1]), -jnp.inf)


def vote(score: ArrayLike, answer_id: ArrayLike, how: How = "majority") -> jax.Array:
    """The answer of n responses.

    "majority" counts responses, "weighted" sums their scores, "mean" averages them, "best" takes the answer of the best
    response. In a tie the answer that occurs first wins.

    Args:
      score: [B, n] float; -inf or NaN excludes a response. Not otherwise used by "majority".
      answer_id: [B, n] int, equal where answers are equivalent; negative for no answer.
      how: see above.

    Returns:
      [B] i32, the winner's id, -1 where there is no answer.

    Raises:
      ValueError: for another `how`.

    Source: arXiv 2203.11171; weighted: arXiv 2206.02336; mean: arXiv 2501.12051.
    """
    if how not in ("majority", "weighted", "mean", "best"):
        raise ValueError(f"how={how!r}; expected one of 'majority', 'weighted', 'mean', 'best'")
    score, ids = _candidates(score), jnp.asarray(answer_id)
    chex.assert_rank(score, 2)
    chex.assert_equal_shape([score, ids])
    valid = (ids >= 0) & (score > -jnp.inf)
    if how == "best":
        totals = score
    else:
        weights = jnp.ones_like(score) if how == "majority" else score
        totals = stats.vote_totals(weights, ids, valid, reduce="mean" if how == "mean" else "sum")
    winner = best_of_n(jnp.where(valid, totals, -jnp.inf))
    found = jnp.take_along_axis(ids, jnp.maximum(winner, 0)[:, None], axis=1)[:, 0]
    return jnp.where(winner >= 0, found, NO_NODE).astype(jnp.int32)


def _candidates(score: ArrayLike) -> jax.Array:
    score = jnp.asarray(score).astype(jnp.float32)
    return jnp.where(jnp.isnan(score), -jnp.inf, score)


def _ranked(score: jax.Array, keep: int) -> tuple[jax.Array, jax.Array]:
    """The first `keep` of the last axis in order of decreasing score, stable; (indices, whether there is one)."""
    order = jnp.argsort(score, axis=-1, descending=True, stable=True)[..., :keep].astype(jnp.int32)
    return order, jnp.take_along_axis(score, order, axis=-1) > -jnp.inf
