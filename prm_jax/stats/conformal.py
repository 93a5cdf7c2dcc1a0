"""Selecting with a guarantee: conformal p-values, false discovery rates, and intervals with coverage.

Conformal selection after optimising the score is OptCS (arXiv 2411.17983); intervals around quantiles are
conformalised quantile regression (arXiv 1905.03222), the correction used in arXiv 2103.00083.

Calibration data are rollouts whose outcome was verified, test data rollouts that were not; "selected" rollouts are
those to keep. Every guarantee needs calibration and test data to be exchangeable, which scores of a policy
trained further since then are not. Selections pass no gradient; `conformal_interval` passes gradients to its bounds.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prm_jax.rl import masking


class OptimizedSelection(NamedTuple):
    """What `optimized_selection` found.

    Attributes:
      selected: [M] bool.
      scorer: [M] i32, the scorer chosen for each test point.
      pvalues: [M] f32, its conformal p-value there.
      evalues: [M] f32, 0 for points that cannot be selected.
    """

    selected: jax.Array
    scorer: jax.Array
    pvalues: jax.Array
    evalues: jax.Array


def conformal_pvalues(
    scores: ArrayLike,
    good: ArrayLike,
    test_scores: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    uniforms: ArrayLike | None = None,
) -> jax.Array:
    """P-values for "this test point is not good", from scores that should be high for good points.

    `p_j = (#{bad i: s_i > s_j} + u_j (#{bad i: s_i = s_j} + 1)) / (n + 1)`; under exchangeability
    `P(p_j <= t and j is bad) <= t`.

    Args:
      scores: [N] calibration scores.
      good: [N] bool, their verified outcomes.
      test_scores: [M].
      mask: [N] bool over calibration data, or None.
      uniforms: [M] in (0, 1], random tie-breaking; None for 1, which is conservative.

    Returns:
      [M] f32 in (0, 1]; small means "good". 1 (or `uniforms`) for an empty mask. No gradient.
    """
    scores, test_scores = jax.lax.stop_gradient((masking.as_f32(scores), masking.as_f32(test_scores)))
    good = masking.as_mask(good)
    mask = jnp.ones(good.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_rank([scores, test_scores], 1)
    chex.assert_equal_shape([scores, good, mask])
    higher, equal = _null_counts(scores, mask & ~good, test_scores)
    u = jnp.ones_like(test_scores) if uniforms is None else masking.as_f32(uniforms)
    chex.assert_equal_shape([u, test_scores])
    return (higher + u * (equal + 1)) / (mask.sum() + 1)


def benjamini_hochberg(pvalues: ArrayLike, mask: ArrayLike | None = None, *, level: float) -> jax.Array:
    """Benjamini-Hochberg: selects the k smallest p-values, k the largest with `p_(k) <= level k / m`.

    Args:
      pvalues: [..., M].
      mask: [..., M] bool, True on hypotheses that exist (their number is m), or None.
      level: bound on the expected fraction of false selections.

    Returns:
      [..., M] bool; all False for an empty mask.
    """
    p = jax.lax.stop_gradient(masking.as_f32(pvalues))
    mask = jnp.ones(p.shape, bool) if mask is None else masking.as_mask(mask)
    chex.assert_equal_shape([p, mask])
    p = jnp.where(mask, p, jnp.inf)
    size = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    count = _largest_rank(p * size / level)
    ordered = jnp.sort(p, -1)
    cut = jnp.take_along_axis(ordered, jnp.maximum(count - 1, 0)[..., None], -1)
    return mask & (p <= cut) & (count > 0)[..., None]


def e_benjamini_hochberg(evalues: ArrayLike, mask: ArrayLike | None = None, *, level: float) -> jax.Array:
    """The e-value form: selects the k largest, k the largest with `e_(k) >= m / (level k)`.

    Controls the false discovery rate under any dependence of the e-values.

    Args:
      evalues: [..., M], >= 0.
      mask: [..., M] bool, True on hypotheses that exist, or None.
      level: bound on the expected fraction of false selections.

    Returns:
      [..., M] bool; all False for an empty mask.
    """
    e = jax.lax.stop_gradient(masking.as_f32(evalues))
    positive = e > 0
    return benjamini_hochberg(jnp.where(positive, 1 / jnp.where(positive, e, 1.0), jnp.inf), mask, level=level)


def optimized_selection(
    scores: ArrayLike,
    good: ArrayLike,
    test_scores: ArrayLike,
    key: jax.Array,
    *,
    level: float,
    pruning: Literal["heterogeneous", "homogeneous", "deterministic"] = "heterogeneous",
) -> OptimizedSelection:
    """Selects test points by the best of several scorers and still bounds the false discovery rate (OptCS-MSel).

    Choosing the scorer that selects most and then selecting with it uses the data twice and breaks the bound.
    Here each test point j gets its own scorer, chosen by a rule that is symmetric in j and the calibration data:
    the one with the largest auxiliary selection R_j, where j is held among the nulls. Its p-value becomes the
    e-value `1{p_j <= level R_j / m} m / (level R_j)`, and the e-values, divided by uniforms (pruning), go through
    Benjamini-Hochberg.

    Args:
      scores: [N, K] calibration scores of K scorers, high for good points.
      good: [N] bool, verified outcomes.
      test_scores: [M, K].
      key: a PRNG key, consumed (not used by "deterministic").
      level: bound on the false discovery rate.
      pruning: "heterogeneous", one uniform per point; "homogeneous", one for all; "deterministic", none (least
        power).

    Returns:
      `OptimizedSelection`. Ties between scorers go to the lowest index. Time O(M^2 K log M), memory O(M K).
    """
    masking.check_option("pruning", pruning, ("heterogeneous", "homogeneous", "deterministic"))
    scores, test = jax.lax.stop_gradient((masking.as_f32(scores), masking.as_f32(test_scores)))
    good = masking.as_mask(good)
    chex.assert_rank([scores, test], 2)
    chex.assert_shape(good, scores.shape[:1])
    chex.assert_equal(scores.shape[1], test.shape[1])
    num, total = test.shape[0], good.shape[0] + 1
    higher, equal = jax.vmap(_null_counts, (1, None, 1))(scores, ~good, test)  # [K, M]
    at_least = higher + equal

    def auxiliary(j: jax.Array) -> jax.Array:
        p = (at_least + (test[j][:, None] >= test.T)) / total
        return _largest_rank(p.at[:, j].set(0.0) * num / level)

    sizes = jax.lax.map(auxiliary, jnp.arange(num))  # [M, K], >= 1 since p_j = 0
    scorer = jnp.argmax(sizes, 1)
    size = jnp.max(sizes, 1).astype(jnp.float32)
    pvalues = (1 + higher[scorer, jnp.arange(num)]) / total
    passed = pvalues * num <= level * size
    shape = {"heterogeneous": (num,), "homogeneous": (), "deterministic": None}[pruning]
    uniforms = 1.0 if shape is None else 1 - jax.random.uniform(key, shape)  # in (0, 1]
    # e_j / u_j >= m / (level k) is k >= u_j R_j; in this form equality is exact.
    cost = jnp.where(passed, size * uniforms, jnp.inf)
    selected = cost <= _largest_rank(cost)
    return OptimizedSelection(selected, scorer, pvalues, jnp.where(passed, num / (level * size), 0.0))


def conformal_interval(
    lower: ArrayLike,
    upper: ArrayLike,
    cal_lower: ArrayLike,
    cal_upper: ArrayLike,
    cal_targets: ArrayLike,
    cal_mask: ArrayLike | None = None,
    *,
    level: float,
) -> tuple[jax.Array, jax.Array]:
    """Widens (or narrows) predicted intervals until a fraction `level` of targets falls inside.

    The shift is the `ceil((n + 1) level)`-th smallest of `max(lower_i - y_i, y_i - upper_i)` over the n
    calibration points; coverage of exchangeable test points is then at least `level`.

    Args:
      lower: [...] predicted lower quantile of test points.
      upper: [...] predicted upper quantile.
      cal_lower: [N] predicted lower quantile of calibration points.
      cal_upper: [N].
      cal_targets: [N] their realised values.
      cal_mask: [N] bool, or None.
      level: wanted coverage, in (0, 1).

    Returns:
      `(lower [...], upper [...])` f32; infinite where n is too small for the level, an empty mask included.
    """
    lo, hi, y = masking.as_f32(cal_lower), masking.as_f32(cal_upper), masking.as_f32(cal_targets)
    mask = jnp.ones(y.shape, bool) if cal_mask is None else masking.as_mask(cal_mask)
    chex.assert_rank(y, 1)
    chex.assert_equal_shape([lo, hi, y, mask])
    miss = jnp.sort(jnp.where(mask, jnp.maximum(lo - y, y - hi), jnp.inf))
    # The slack keeps ceil(10 * 0.9) at 9 despite rounding.
    rank = jnp.ceil((mask.sum() + 1) * level - 1e-4).astype(jnp.int32)
    padded = jnp.append(miss, jnp.inf)
    shift = padded[jnp.clip(rank - 1, 0, y.shape[0])]
    return masking.as_f32(lower) - shift, masking.as_f32(upper) + shift


def _null_counts(scores: jax.Array, null: jax.Array, test: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many null calibration scores are above, and how many equal to, each test score."""
    ordered = jnp.sort(jnp.where(null, scores, -jnp.inf))
    above = scores.shape[0] - jnp.searchsorted(ordered, test, side="right")
    at_least = jnp.minimum(scores.shape[0] - jnp.searchsorted(ordered, test, side="left"), null.sum())
    above = jnp.minimum(above, null.sum())
    return above, at_least - above


def _largest_rank(cost: jax.Array) -> jax.Array:
    """The largest k such that k entries of the last axis are <= k (0 if none): the step-up rule."""
    ordered = jnp.sort(cost, -1)
    ranks = jnp.arange(1, cost.shape[-1] + 1)
    return jnp.max(jnp.where(ordered <= ranks, ranks, 0), -1)
