"""Compiled functions of ``rl`` and ``stats`` for host code: op by op, each new shape would compile every operation."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax import rl, stats
from prm_jax.prm.reward_model_options import Aggregate

roc_auc = jax.jit(stats.roc_auc)
best_threshold = jax.jit(rl.best_threshold)
first_error = jax.jit(rl.first_error)
first_error_f1 = jax.jit(rl.first_error_f1)
ranking_metrics = jax.jit(stats.ranking_metrics)
conformal_pvalues = jax.jit(stats.conformal_pvalues)
proxy_gold_report = jax.jit(stats.proxy_gold_report)
spearman = jax.jit(stats.spearman)
min_at_last_rate = jax.jit(stats.min_at_last_rate)
vote_totals = jax.jit(stats.vote_totals)
benjamini_hochberg = jax.jit(stats.benjamini_hochberg, static_argnames="level")
venn_abers = jax.jit(stats.venn_abers)
optimized_selection = jax.jit(stats.optimized_selection, static_argnames="level")
conformal_interval = jax.jit(stats.conformal_interval, static_argnames="level")
pairwise_accuracy = jax.jit(rl.pairwise_accuracy, static_argnames="num_groups")
pass_at_k = jax.jit(stats.pass_at_k, static_argnames="k")
aggregate_steps = jax.jit(rl.aggregate_steps, static_argnames="how")


@partial(jax.jit, static_argnames="hows")
def aggregates(scores: jax.Array, mask: jax.Array, *, hows: tuple[Aggregate, ...]) -> jax.Array:
    """[A, B]: every aggregation of step scores [B, S]."""
    return jnp.stack([rl.aggregate_steps(scores, mask, how=how) for how in hows])


@partial(jax.jit, static_argnames="sizes")
def bon_curves(
    proxies: jax.Array, gold: jax.Array, mask: jax.Array, *, sizes: Sequence[int]
) -> tuple[stats.BestOfNCurve, stats.OverOptimization]:
    """Best-of-n curves of proxies [A, P, N], leaves [A, K]; and the law of over-optimisation of the first."""
    curves = jax.vmap(lambda proxy: stats.bon_curve(proxy, gold, mask, sizes=sizes))(proxies)
    return curves, stats.fit_over_optimization(curves.kl[0], curves.gold[0] - curves.gold[0, 0])


@partial(jax.jit, static_argnames="num_bins")
def calibration_errors(
    chance: jax.Array, labels: jax.Array, mask: jax.Array | None = None, *, num_bins: int
) -> dict[str, jax.Array]:
    """ece, ace and brier of chances [N]."""
    return {
        "ece": stats.calibration_error(chance, labels, mask, kind="ece", num_bins=num_bins),
        "ace": stats.calibration_error(chance, labels, mask, kind="ace", num_bins=num_bins),
        "brier": stats.brier_score(chance, labels, mask),
    }


@partial(jax.jit, static_argnames="num_bins")
def calibrate(
    chance: jax.Array, labels: jax.Array, fit: jax.Array, test: jax.Array, *, num_bins: int
) -> dict[str, Any]:
    """Platt and isotonic maps fitted on one part [N], errors of all three versions on the other.

    Returns:
      raw, platt, isotonic: {ece, ace, brier}; reliability: ten bins of the raw chances; platt_map: the fit.
    """
    logit = jnp.log(chance) - jnp.log1p(-chance)
    platt = stats.fit_platt(logit, labels, fit)
    versions = {
        "raw": chance,
        "platt": stats.apply_platt(platt, logit),
        "isotonic": jnp.clip(stats.apply_isotonic(stats.fit_isotonic(chance, labels, fit), chance), 0.0, 1.0),
    }
    found: dict[str, Any] = {
        name: calibration_errors(values, labels, test, num_bins=num_bins) for name, values in versions.items()
    }
    found["reliability"] = stats.reliability_bins(chance, labels, test, num_bins=10)._asdict()
    found["platt_map"] = jnp.stack([platt.slope, platt.intercept])
    return found
