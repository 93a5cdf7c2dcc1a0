"""Statistics of scores: calibration, conformal selection, correlations, rankings, quantiles, over-optimisation.

Pure functions on arrays with bool masks; results are float32; every function works under jit, vmap and grad, except
`interval`, which computes on the host. Rewards, advantages and losses are in `prm_jax.rl`.
"""

from prm_jax.stats.accuracy import min_at_last_rate, outcome_accuracy, pass_at_k, roc_auc, vote_totals
from prm_jax.stats.best_of_n import (
    BestOfNCurve,
    OverOptimization,
    best_of_n_kl,
    best_of_n_weights,
    best_of_n_win_rate,
    bon_curve,
    fit_over_optimization,
)
from prm_jax.stats.calibration import (
    PlattScale,
    ReliabilityBins,
    apply_platt,
    brier_score,
    calibration_error,
    fit_platt,
    reliability_bins,
)
from prm_jax.stats.conformal import (
    OptimizedSelection,
    benjamini_hochberg,
    conformal_interval,
    conformal_pvalues,
    e_benjamini_hochberg,
    optimized_selection,
)
from prm_jax.stats.control_variates import control_variate_mean, shared_proposal_logits
from prm_jax.stats.correlation import midranks, pearson, r_squared, spearman
from prm_jax.stats.debiasing import debias_transform, decorrelate
from prm_jax.stats.ensembles import EnsembleMoments, ensemble_moments, ensemble_uncertainty, penalized_rewards
from prm_jax.stats.gated_selection import GatedSelection, gated_selection
from prm_jax.stats.intervals import Interval, interval
from prm_jax.stats.isotonic import IsotonicFit, apply_isotonic, fit_isotonic, isotonic_regression, venn_abers
from prm_jax.stats.langevin import langevin_samples
from prm_jax.stats.quantiles import aggregate_quantiles, crossing_penalty, monotone_quantiles, pinball_loss
from prm_jax.stats.ranking import plackett_luce_loss, ranking_metrics
from prm_jax.stats.regression import RidgeFit, elliptical_bonus, moment_variance, variance_weights, weighted_ridge
from prm_jax.stats.tracking import binned_r_squared, credit_concentration, proxy_gold_report

__all__ = [
    # accuracy
    "min_at_last_rate",
    "outcome_accuracy",
    "pass_at_k",
    "roc_auc",
    "vote_totals",
    # best of n
    "BestOfNCurve",
    "OverOptimization",
    "best_of_n_kl",
    "best_of_n_weights",
    "best_of_n_win_rate",
    "bon_curve",
    "fit_over_optimization",
    # calibration
    "PlattScale",
    "ReliabilityBins",
    "apply_platt",
    "brier_score",
    "calibration_error",
    "fit_platt",
    "reliability_bins",
    # conformal
    "OptimizedSelection",
    "benjamini_hochberg",
    "conformal_interval",
    "conformal_pvalues",
    "e_benjamini_hochberg",
    "optimized_selection",
    # control variates
    "control_variate_mean",
    "shared_proposal_logits",
    # correlation
    "midranks",
    "pearson",
    "r_squared",
    "spearman",
    # debiasing
    "debias_transform",
    "decorrelate",
    # ensembles
    "EnsembleMoments",
    "ensemble_moments",
    "ensemble_uncertainty",
    "penalized_rewards",
    # gated selection
    "GatedSelection",
    "gated_selection",
    # intervals
    "Interval",
    "interval",
    # isotonic
    "IsotonicFit",
    "apply_isotonic",
    "fit_isotonic",
    "isotonic_regression",
    "venn_abers",
    # langevin
    "langevin_samples",
    # quantiles
    "aggregate_quantiles",
    "crossing_penalty",
    "monotone_quantiles",
    "pinball_loss",
    # ranking
    "plackett_luce_loss",
    "ranking_metrics",
    # regression
    "RidgeFit",
    "elliptical_bonus",
    "moment_variance",
    "variance_weights",
    "weighted_ridge",
    # tracking
    "binned_r_squared",
    "credit_concentration",
    "proxy_gold_report",
]
