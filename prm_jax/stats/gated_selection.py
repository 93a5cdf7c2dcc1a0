"""Choosing among partial solutions by three questions: ready to judge? still promising? best at the end?

Potential assessment reward model, PARM (arXiv 2501.13926): published for images drawn step by step, but independent of
what the steps are.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


class GatedSelection(NamedTuple):
    """What `gated_selection` chose.

    Attributes:
      choice: [...] i32, the candidate chosen; -1 where no candidate exists.
      kept: [..., N] bool, candidates that survive all their judgements.
      steps: [..., N] i32, steps spent on each candidate: up to its first "no", or all of them.
    """

    choice: jax.Array
    kept: jax.Array
    steps: jax.Array


def gated_selection(
    ready: ArrayLike, potential: ArrayLike, final: ArrayLike, mask: ArrayLike, *, threshold: float = 0.5
) -> GatedSelection:
    """Best-of-n that stops candidates early: the best final score among those that stayed promising.

    A candidate is judged from the first step at which it is ready (once ready, always ready), and dropped at the first
    judgement whose potential is not above `threshold`. If none survives, the one with the highest potential at its
    last judgement is chosen; a candidate that was never judged has potential 0. If all are ready and promising, this is
    best-of-n by the final score; if none is promising, it is the choice with the smallest chance of "no".

    Args:
      ready: [..., N, S] bool, clear enough to judge at this step.
      potential: [..., N, S] float, P(yes) that the partial solution can become a good one; no gradient.
      final: [..., N] float, score of the finished candidate; no gradient, not read for dropped ones.
      mask: [..., N, S] bool, True on steps that exist.
      threshold: of the potential.

    Returns:
      `GatedSelection`. Ties go to the lowest index; candidates without steps do not exist.

    Source: arXiv 2501.13926.
    """
    mask, ready = masking.as_mask(mask), masking.as_mask(ready)
    chex.assert_equal_shape([ready, jnp.asarray(potential), mask])
    chex.assert_shape(jnp.asarray(final), mask.shape[:-1])
    p = jax.lax.stop_gradient(masking.masked(potential, mask))
    judged = mask & (jnp.cumsum(mask & ready, -1) > 0)
    no = judged & (p <= threshold)
    before = jnp.cumsum(no, -1) - no == 0  # no earlier "no": the judgement is reached
    exists = mask.any(-1)
    kept = judged.any(-1) & ~no.any(-1)
    last = masking.is_last(judged & before)
    hope = jnp.where(exists, jnp.where(last, p, 0.0).sum(-1), -jnp.inf)
    score = jnp.where(kept, jax.lax.stop_gradient(masking.masked(final, kept)), -jnp.inf)
    best = jnp.where(kept.any(-1), score.argmax(-1), hope.argmax(-1))
    choice = jnp.where(exists.any(-1), best, -1).astype(jnp.int32)
    return GatedSelection(choice, kept, (mask & before).sum(-1).astype(jnp.int32))
