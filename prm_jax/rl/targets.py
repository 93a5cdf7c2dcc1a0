"""Step labels and step-value targets from Monte-Carlo completions, distances to an answer, and look-ahead.

All take [B, S] arrays with a mask of the steps that exist, and pass no gradient.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking
from prm_jax.rl.returns import lambda_returns


def mc_targets(
    correct: ArrayLike, count: ArrayLike, mask: ArrayLike, *, how: Literal["soft", "hard", "vstar"] = "soft"
) -> jax.Array:
    """Step labels from the completions sampled after each step.

    "soft": the share c / n that reached the right answer (Math-Shepherd, OmegaPRM). "hard": 1 if any did. "vstar":
    hard, and every step before a good one is good too, since a right answer is reachable from it (SORM).

    Args:
      correct: [B, S] any real dtype, number of right completions c.
      count: scalar or [B, S], number of completions n; 0 gives label 0.
      mask: [B, S] bool, True on steps that exist.
      how: see above.

    Returns:
      [B, S] float32 in [0, 1], 0 outside the mask.

    Source: arXiv 2312.08935; arXiv 2402.10963.
    """
    masking.check_option("how", how, ("soft", "hard", "vstar"))
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(correct), mask])
    chex.assert_rank(jnp.asarray(count), {0, mask.ndim})  # [B] would broadcast as one per step
    c = jax.lax.stop_gradient(masking.masked(correct, mask))
    if how == "soft":
        return jnp.where(mask, masking.safe_divide(c, jnp.where(mask, masking.as_f32(count), 1.0)), 0.0)
    hard = (c > 0).astype(jnp.float32)
    if how == "hard":
        return hard
    return jnp.where(mask, jax.lax.cummax(hard, axis=hard.ndim - 1, reverse=True), 0.0)


def through_first_error(labels: ArrayLike, mask: ArrayLike, *, threshold: float = 0.5) -> jax.Array:
    """Mask of the steps up to and including the first wrong one; later steps have no clear label.

    Args:
      labels: [B, S] any real dtype; a step is wrong where its label is below `threshold`.
      mask: [B, S] bool, True on steps that exist.
      threshold: see above; for Monte-Carlo shares, any number in (0, 1/n] calls a step wrong when no completion
        succeeded.

    Returns:
      [B, S] bool, a part of `mask`: nothing of an empty row.

    Source: arXiv 2501.07301.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(labels), mask])
    wrong = (mask & (masking.masked(labels, mask) < threshold)).astype(jnp.int32)
    earlier = jax.lax.cumsum(wrong, axis=wrong.ndim - 1) - wrong
    return mask & (earlier == 0)


def agree(first_error_a: ArrayLike, first_error_b: ArrayLike) -> jax.Array:
    """Consensus filter: keep a response when two judges name the same first wrong step (or both none).

    Args:
      first_error_a: [B] int, -1 for none.
      first_error_b: [B] int, -1 for none.

    Returns:
      [B] bool.

    Source: arXiv 2501.07301 (about 40 % of the data remains).
    """
    a, b = jnp.asarray(first_error_a), jnp.asarray(first_error_b)
    chex.assert_equal_shape([a, b])
    return a == b


def quality_value(wrong: ArrayLike, distance: ArrayLike, mask: ArrayLike) -> jax.Array:
    """ReST-MCTS*'s value of each step, from its correctness and the steps still needed.

    v_k = max(v_{k-1} + (1 - v_{k-1}) / (m_k + 1) * (1 - 2 * wrong_k), 0), v_0 = 0. Along a correct path of K
    steps (m_k = K - k) this is k / K.

    Args:
      wrong: [B, S] bool (or 0/1), True for wrong steps.
      distance: [B, S] int or float >= 0, m_k: fewest further steps to a correct answer.
      mask: [B, S] bool, True on steps that exist.

    Returns:
      [B, S] float32 in [0, 1], 0 outside the mask.

    Source: arXiv 2406.03816.
    """
    mask = masking.as_mask(mask)
    sign = jnp.where(masking.as_mask(wrong), -1.0, 1.0)
    chex.assert_equal_shape([sign, jnp.asarray(distance), mask])
    gain = jax.lax.stop_gradient(jnp.where(mask, sign / (masking.masked(distance, mask) + 1.0), 0.0))

    def step(v: jax.Array, gain_k: jax.Array) -> tuple[jax.Array, jax.Array]:
        v = jnp.maximum(v + (1.0 - v) * gain_k, 0.0)
        return v, v

    # The clamp at 0 makes the recursion non-linear, so a scan; it has as many iterations as steps, not tokens.
    _, values = jax.lax.scan(step, jnp.zeros_like(gain[..., 0]), jnp.moveaxis(gain, -1, 0))
    return jnp.where(mask, jnp.moveaxis(values, 0, -1), 0.0)


def roll_forward_value(values: ArrayLike, rollouts: ArrayLike, mask: ArrayLike, *, alpha: float = 0.5) -> jax.Array:
    """ReST-MCTS*'s value of a new step after looking ahead: (1 - alpha) * V + alpha * the largest value rolled into.

    Args:
      values: [...] float, the value model's score of the step; no gradient.
      rollouts: [..., R] float, its scores along a greedy roll-forward of R steps; no gradient.
      mask: [..., R] bool, True on steps that were rolled out.
      alpha: in [0, 1].

    Returns:
      [...] float32; `values` unchanged where the mask is empty.

    Source: released code of arXiv 2406.03816.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(rollouts), mask])
    chex.assert_shape(jnp.asarray(values), mask.shape[:-1])
    v = jax.lax.stop_gradient(masking.as_f32(values))
    best = jnp.where(mask, jax.lax.stop_gradient(masking.masked(rollouts, mask)), -jnp.inf).max(-1, initial=-jnp.inf)
    return jnp.where(jnp.any(mask, -1), (1 - alpha) * v + alpha * jnp.where(jnp.isfinite(best), best, 0.0), v)


def steps_to_correct(
    parent: ArrayLike, correct: ArrayLike, mask: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """For each node of a tree, the number of nodes on the shortest path to a correct leaf, both ends included.

    A correct leaf has 1; a node without a correct descendant takes its parent's number unchanged and is
    wrong. `quality_value`'s distance m is this number minus 1.

    Args:
      parent: [B, N] int, index of each node's parent, smaller than its own; -1 for the root (node 0).
      correct: [B, N] bool, True on leaves with a correct answer.
      mask: [B, N] bool, True on nodes that exist.

    Returns:
      (steps [B, N] int32, reachable [B, N] bool): `reachable` where the node is a correct leaf or has one below it;
      steps are 0 where no correct leaf is reachable from the node or an ancestor, and outside the mask.

    Source: arXiv 2406.03816 and its released code.
    """
    parent, correct, mask = jnp.asarray(parent), masking.as_mask(correct), masking.as_mask(mask)
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([parent, correct, mask])
    chex.assert_type(parent, int)
    nodes = mask.shape[1]
    far = nodes + 1

    def one_tree(parent: jax.Array, correct: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        above = jnp.where(mask & (parent >= 0), parent, nodes)  # `nodes` is out of range: dropped

        def up(i: jax.Array, steps: jax.Array) -> jax.Array:
            node = nodes - 1 - i
            return steps.at[above[node]].min(jnp.minimum(steps[node] + 1, far), mode="drop")

        def down(node: jax.Array, steps: jax.Array) -> jax.Array:
            inherited = steps.at[above[node]].get(mode="fill", fill_value=far)
            return steps.at[node].set(jnp.where(steps[node] < far, steps[node], inherited))

        steps = jax.lax.fori_loop(0, nodes, up, jnp.where(mask & correct, 1, far))
        reachable = mask & (steps < far)
        steps = jax.lax.fori_loop(0, nodes, down, steps)
        return jnp.where(mask & (steps < far), steps, 0).astype(jnp.int32), reachable

    return jax.vmap(one_tree)(parent, correct, mask)


def td_smooth(
    scores: ArrayLike, mask: ArrayLike, *, alpha: float, min_gain: float | None = None
) -> jax.Array:
    """ReARTeR's look-ahead: from the last step backwards, v_k <- v_k + alpha * (v_{k+1} - v_k).

    Equals, and is computed as, a lambda-return without rewards, with discount 1 and lambda = alpha, of values read one
    step later.

    Args:
      scores: [B, S] float, probabilities (paper) or logits (released code); no gradient.
      mask: [B, S] bool, True on steps that exist.
      alpha: in [0, 1]; 0 changes nothing.
      min_gain: if given, look ahead only to the first step whose score gains less than this over the one
        before it (signed; 0.05 in the released code). Steps after it keep their own scores.

    Returns:
      [B, S] float32, 0 outside the mask.

    Source: arXiv 2501.07861 and its released code.
    """
    mask = masking.as_mask(mask)
    chex.assert_equal_shape([jnp.asarray(scores), mask])
    v = jax.lax.stop_gradient(masking.masked(scores, mask))
    seen = mask
    if min_gain is not None:
        follows = mask & (jnp.cumsum(mask, -1) > 1)
        slow = (follows & (v - masking.previous_valid(v, mask) < min_gain)).astype(jnp.int32)
        seen = mask & (jax.lax.cumsum(slow, axis=slow.ndim - 1) - slow == 0)
    last = jnp.sum(jnp.where(masking.is_last(seen), v, 0.0), -1)
    # G_k = (1 - alpha) * v_k + alpha * G_{k+1}: the lambda-return's v_{t+1} is this step's own score.
    smooth = lambda_returns(
        jnp.zeros_like(v), masking.previous_valid(v, seen), seen, discount=1.0, lambda_=alpha, bootstrap=last
    )
    return jnp.where(seen, smooth, jnp.where(mask, v, 0.0))
