"""Rows of the properties of the statistics of scores; see `tests.rl.methods`."""

import numpy as np

from prm_jax import stats
from tests.rl.methods import K, N, Row, integers, normal, rows, unit


def apart(n):
    """Values in (0, 1] of which no two are close, for a fit that close ones would leave ill-conditioned."""
    return lambda rng: ((rng.permutation(n) + rng.uniform(0.6, 1.0, n)) / n).astype(np.float32)


TABLE = [
    # values
    Row(
        stats.pinball_loss,
        rows(quantiles=normal(N, K), targets=normal(N)),
        "mask",
        "quantiles targets",
        "quantiles",
        {"levels": np.array([0.1, 0.5, 0.9], np.float32)},
    ),
    *(
        Row(stats.monotone_quantiles, rows(quantiles=normal(N, 5)), grad="quantiles", kw={"how": how}, label=how)
        for how in ("pava", "median_out")
    ),
    Row(stats.crossing_penalty, rows(quantiles=normal(N, 4)), "mask", "quantiles", "quantiles", {"margin": 0.1}),
    Row(
        stats.weighted_ridge,
        rows(features=normal(N, K), targets=normal(N), weights=unit(N)),
        grad="features targets weights",
        kw={"l2": 0.1},
    ),
    Row(stats.variance_weights, rows(variance=unit(N), bonus=unit(N)), kw={"gamma": 0.5, "floor": 0.1}),
    Row(stats.moment_variance, rows(second_moment=unit(N), mean=unit(N)), kw={"error": 0.1}),
    Row(
        stats.elliptical_bonus,
        rows(features=normal(N, K)),
        grad="features",
        kw={"fit": stats.RidgeFit(np.zeros(K, np.float32), 0.1 * np.eye(K, dtype=np.float32))},
    ),
    Row(
        stats.aggregate_quantiles,
        rows(predictions=normal(N, 4, K), logits=normal(N, 4, K)),
        grad="predictions logits",
    ),
    # calibration
    *(
        Row(
            stats.calibration_error,
            rows(confidence=unit(N), outcome=unit(N)),
            "mask",
            "confidence outcome",
            "confidence outcome",
            {"kind": kind, "num_bins": 3},
            label=kind,
        )
        for kind in ("ece", "ace", "mce")
    ),
    Row(
        stats.brier_score,
        rows(confidence=unit(N), outcome=unit(N)),
        "mask",
        "confidence outcome",
        "confidence outcome",
    ),
    Row(
        stats.reliability_bins,
        rows(confidence=unit(N), outcome=unit(N)),
        "mask",
        "confidence outcome",
        "confidence outcome",
        {"num_bins": 3},
        numeric=False,
    ),
    Row(stats.apply_platt, rows(scores=normal(N)), grad="scores", kw={"scale": stats.PlattScale(2.0, 0.5)}),
    Row(
        stats.apply_isotonic,
        rows(scores=unit(N)),
        grad="scores",
        kw={"fit": stats.IsotonicFit(np.array([0.0, 1.0], np.float32), np.array([0.2, 0.7], np.float32))},
    ),
    Row(stats.fit_platt, rows(scores=normal(N), labels=unit(N)), "mask", "scores labels"),
    Row(stats.fit_isotonic, rows(scores=normal(N), labels=unit(N)), "mask", "scores labels"),
    Row(stats.isotonic_regression, rows(values=normal(N), weights=unit(N)), grad="values weights", order=None),
    Row(
        stats.venn_abers,
        rows(scores=normal(N), labels=integers(2, N)),
        "mask",
        "scores",
        kw={"test_scores": np.array([0.0, 1.0], np.float32)},
    ),
    Row(
        stats.conformal_pvalues,
        rows(scores=normal(N), good=integers(2, N)),
        "mask",
        "scores",
        kw={"test_scores": np.array([0.0, 1.0], np.float32)},
    ),
    Row(stats.benjamini_hochberg, rows(pvalues=unit(N)), "mask", "pvalues", kw={"level": 0.5}),
    Row(stats.e_benjamini_hochberg, rows(evalues=unit(N)), "mask", "evalues", kw={"level": 0.5}),
    Row(
        stats.conformal_interval,
        rows(cal_lower=normal(N), cal_upper=normal(N), cal_targets=normal(N)),
        "cal_mask",
        "cal_lower cal_upper cal_targets",
        kw={"lower": np.zeros(2, np.float32), "upper": np.ones(2, np.float32), "level": 0.5},
        label="finite",
    ),
    Row(
        stats.optimized_selection,
        rows(scores=normal(N, K), good=integers(2, N)),
        kw={
            "test_scores": np.random.default_rng(4).normal(size=(4, K)).astype(np.float32),
            "key": None,
            "level": 0.5,
            "pruning": "deterministic",
        },
    ),
    # ensembles, labels and objectives
    *(
        Row(
            stats.penalized_rewards,
            rows(predictions=normal(N, K), variances=unit(N, K)),
            grad="predictions variances",
            kw={"coefficient": 0.5, "kind": kind},
            label=kind,
        )
        for kind in ("std", "loo_kl")
    ),
    Row(
        stats.decorrelate,
        rows(objectives=normal(N, K), reference=normal(N)),
        "mask",
        "objectives reference",
        kw={"grid": np.array([0.0, 0.3, 0.6], np.float32)},
    ),
    Row(
        stats.gated_selection,
        rows(ready=integers(2, N, 4, K), potential=unit(N, 4, K), final=unit(N, 4)),
        "mask:N4K",
        "potential",
    ),
    Row(stats.debias_transform, rows(penalties=unit(N)), grad="penalties", kw={"reference_index": 1}, order=None),
    Row(
        stats.ensemble_moments,
        rows(predictions=normal(3, N), variances=unit(3, N)),
        grad="predictions variances",
        order=None,
    ),
    Row(
        stats.ensemble_uncertainty,
        rows(predictions=normal(3, N), variances=unit(3, N), sample=normal(N)),
        grad="predictions variances sample",
        kw={"kind": "loglik_variance"},
        order=None,
    ),
    # sampling and tracking
    Row(
        stats.control_variate_mean,
        rows(values=normal(N, K), weights=unit(N)),
        "mask",
        "values weights",
        "values weights",
        {"baselines": np.array([0.1, 0.2, 0.3], np.float32)},
    ),
    Row(
        stats.shared_proposal_logits,
        rows(logp=normal(N), values=normal(N, K)),
        kw={"baselines": np.array([0.1, 0.2, 0.3], np.float32)},
    ),
    Row(stats.best_of_n_weights, rows(scores=normal(N)), "mask", "scores", kw={"n": 2}),
    Row(
        stats.bon_curve,
        rows(proxy=normal(N, 4), gold=normal(N, 4)),
        "mask:N4",
        "proxy gold",
        "proxy gold",
        {"sizes": (1, 2)},
    ),
    Row(stats.fit_over_optimization, rows(kl=apart(N), gold=normal(N)), "mask", "kl gold", "gold kl", label="bon"),
    Row(stats.ranking_metrics, rows(chosen=normal(N), rejected=normal(N, K)), "mask:NK", "rejected"),
    Row(stats.plackett_luce_loss, rows(scores=normal(N, K)), "mask:NK", "scores", "scores"),
    Row(stats.best_of_n_kl, rows(n=lambda rng: 1 + rng.uniform(size=N).astype(np.float32)), grad="n"),
    Row(stats.best_of_n_win_rate, rows(n=unit(N)), grad="n"),
    Row(stats.midranks, rows(x=normal(N)), "mask", "x"),
    Row(stats.pearson, rows(x=normal(N), y=normal(N)), "mask", "x y", "x y"),
    Row(stats.spearman, rows(x=normal(N), y=normal(N)), "mask", "x y"),
    Row(stats.r_squared, rows(x=normal(N), y=normal(N)), "mask", "x y", "x y"),
    Row(stats.proxy_gold_report, rows(proxy=normal(N, K), gold=normal(N, K)), "mask:NK", "proxy gold", order=None),
    Row(stats.binned_r_squared, rows(proxy=normal(N), gold=normal(N), weights=unit(N)), kw={"num_bins": 3}),
    Row(stats.credit_concentration, rows(token_rewards=normal(N, K)), "mask:NK", "token_rewards", "token_rewards"),
]
