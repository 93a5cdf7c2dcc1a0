"""Rewards, shaping, advantages, losses, targets, filters and metrics: pure functions on arrays.

Batch-first rectangles with bool masks; results are float32; every function works under jit, vmap, grad and
shard_map. A function imports nothing but jax and chex.
"""

from prm_jax.rl.advantages import (
    discounted_returns,
    generalized_advantages,
    grpo_advantages,
    implicit_value_advantages,
    lambda_returns,
    leave_one_out,
    n_step_returns,
    reinforce_advantages,
    rloo_advantages,
    whiten,
)
from prm_jax.rl.bellman_rank import bellman_rank_penalty
from prm_jax.rl.best_of_n import (
    BestOfNCurve,
    OverOptimization,
    best_of_n_kl,
    best_of_n_weights,
    best_of_n_win_rate,
    bon_curve,
    fit_over_optimization,
)
from prm_jax.rl.calibration import (
    PlattScale,
    ReliabilityBins,
    apply_platt,
    brier_score,
    calibration_error,
    fit_platt,
    reliability_bins,
)
from prm_jax.rl.confidence import update_reward_mean
from prm_jax.rl.conformal import (
    OptimizedSelection,
    benjamini_hochberg,
    conformal_interval,
    conformal_pvalues,
    e_benjamini_hochberg,
    optimized_selection,
)
from prm_jax.rl.correlation import midranks, pearson, r_squared, spearman
from prm_jax.rl.extraction import best_of_n_policy_loss, best_of_n_targets, candidate_advantages
from prm_jax.rl.filtering import passing_first, rows_of_groups, solve_rate_mask, truncation_mask
from prm_jax.rl.gated_selection import GatedSelection, gated_selection
from prm_jax.rl.halting import halting_distribution, halting_loss, quantile_exit
from prm_jax.rl.imitation import advantage_weights, weighted_nll
from prm_jax.rl.isotonic import IsotonicFit, apply_isotonic, fit_isotonic, isotonic_regression, venn_abers
from prm_jax.rl.losses import (
    Loss,
    Mean,
    aggregate_tokens,
    clipped_surrogate,
    entropy_bonus,
    kl_penalty,
    token_kl,
    value_loss,
)
from prm_jax.rl.metrics import (
    best_threshold,
    first_error,
    first_error_f1,
    min_at_last_rate,
    outcome_accuracy,
    pairwise_accuracy,
    pass_at_k,
    roc_auc,
    trust_gate,
    vote_totals,
)
from prm_jax.rl.multi_objective import (
    debias_transform,
    decorrelate,
    gated_objectives,
    objective_gates,
    verifier_rewards,
)
from prm_jax.rl.pessimism import EnsembleMoments, ensemble_moments, ensemble_uncertainty, penalized_rewards
from prm_jax.rl.posterior import brain_loss
from prm_jax.rl.preference import gpo_loss, group_preferences, preference_gates, preference_score
from prm_jax.rl.quantiles import aggregate_quantiles, crossing_penalty, monotone_quantiles, pinball_loss
from prm_jax.rl.ranking import plackett_luce_loss, ranking_metrics
from prm_jax.rl.regression import RidgeFit, elliptical_bonus, moment_variance, variance_weights, weighted_ridge
from prm_jax.rl.reward_losses import (
    all_pairs_loss,
    detached_pairwise_loss,
    kto_loss,
    kto_reference_point,
    nca_loss,
    outcome_ce_loss,
    pairwise_loss,
    step_ce_loss,
    step_kto_loss,
    step_preference_loss,
)
from prm_jax.rl.rewards import (
    aggregate_steps,
    implicit_token_rewards,
    lambda_token_rewards,
    normalize_by_return,
    outcome_token_rewards,
    step_rewards,
    token_rewards_from_steps,
    whole_token_rewards,
)
from prm_jax.rl.sampling import (
    answer_confidence,
    budget_allocation,
    control_variate_mean,
    filter_weights,
    importance_weights,
    shared_proposal_logits,
)
from prm_jax.rl.shaping import (
    best_of_k_value,
    clip_rewards,
    confidence_adjusted_rewards,
    delta_rewards,
    effective_rewards,
    pessimistic_rewards,
    progress_rewards,
)
from prm_jax.rl.step_labels import (
    balanced_step_weights,
    hard_step_labels,
    judge_labels,
    judge_weights,
    look_back_penalty,
)
from prm_jax.rl.targets import (
    agree,
    mc_targets,
    quality_value,
    roll_forward_value,
    steps_to_correct,
    td_smooth,
    through_first_error,
)
from prm_jax.rl.tracking import binned_r_squared, credit_concentration, proxy_gold_report
from prm_jax.rl.values import (
    bellman_targets,
    continuation_discounts,
    double_q_target,
    dueling_loss,
    dueling_q,
    q_target,
    recovered_rewards,
    twin,
)

__all__ = [
    # rewards
    "aggregate_steps",
    "implicit_token_rewards",
    "lambda_token_rewards",
    "normalize_by_return",
    "outcome_token_rewards",
    "step_rewards",
    "token_rewards_from_steps",
    "whole_token_rewards",
    # shaping
    "best_of_k_value",
    "clip_rewards",
    "confidence_adjusted_rewards",
    "delta_rewards",
    "effective_rewards",
    "pessimistic_rewards",
    "progress_rewards",
    # advantages
    "discounted_returns",
    "generalized_advantages",
    "grpo_advantages",
    "implicit_value_advantages",
    "lambda_returns",
    "leave_one_out",
    "n_step_returns",
    "reinforce_advantages",
    "rloo_advantages",
    "whiten",
    # losses
    "Loss",
    "Mean",
    "aggregate_tokens",
    "clipped_surrogate",
    "entropy_bonus",
    "kl_penalty",
    "token_kl",
    "value_loss",
    # losses of reward models
    "all_pairs_loss",
    "detached_pairwise_loss",
    "kto_loss",
    "kto_reference_point",
    "nca_loss",
    "outcome_ce_loss",
    "pairwise_loss",
    "step_ce_loss",
    "step_kto_loss",
    "step_preference_loss",
    # targets
    "agree",
    "mc_targets",
    "quality_value",
    "roll_forward_value",
    "steps_to_correct",
    "td_smooth",
    "through_first_error",
    # filtering
    "passing_first",
    "rows_of_groups",
    "solve_rate_mask",
    "truncation_mask",
    # metrics
    "best_threshold",
    "first_error",
    "first_error_f1",
    "min_at_last_rate",
    "outcome_accuracy",
    "pairwise_accuracy",
    "pass_at_k",
    "roc_auc",
    "trust_gate",
    "vote_totals",
    # values
    "bellman_targets",
    "continuation_discounts",
    "double_q_target",
    "dueling_loss",
    "dueling_q",
    "q_target",
    "recovered_rewards",
    "twin",
    "best_of_n_policy_loss",
    "best_of_n_targets",
    "candidate_advantages",
    "bellman_rank_penalty",
    "aggregate_quantiles",
    "crossing_penalty",
    "monotone_quantiles",
    "pinball_loss",
    "RidgeFit",
    "elliptical_bonus",
    "moment_variance",
    "variance_weights",
    "weighted_ridge",
    # preferences, posteriors, imitation
    "gpo_loss",
    "group_preferences",
    "preference_gates",
    "preference_score",
    "brain_loss",
    "advantage_weights",
    "weighted_nll",
    # calibration
    "PlattScale",
    "ReliabilityBins",
    "apply_platt",
    "brier_score",
    "calibration_error",
    "fit_platt",
    "reliability_bins",
    "IsotonicFit",
    "apply_isotonic",
    "fit_isotonic",
    "isotonic_regression",
    "venn_abers",
    "OptimizedSelection",
    "benjamini_hochberg",
    "conformal_interval",
    "conformal_pvalues",
    "e_benjamini_hochberg",
    "optimized_selection",
    "update_reward_mean",
    # ensembles, judges, objectives, exits
    "EnsembleMoments",
    "ensemble_moments",
    "ensemble_uncertainty",
    "penalized_rewards",
    "balanced_step_weights",
    "hard_step_labels",
    "judge_labels",
    "judge_weights",
    "look_back_penalty",
    "debias_transform",
    "decorrelate",
    "gated_objectives",
    "objective_gates",
    "verifier_rewards",
    "GatedSelection",
    "gated_selection",
    "halting_distribution",
    "halting_loss",
    "quantile_exit",
    # sampling
    "answer_confidence",
    "budget_allocation",
    "control_variate_mean",
    "filter_weights",
    "importance_weights",
    "shared_proposal_logits",
    # best-of-n, correlations, tracking
    "BestOfNCurve",
    "OverOptimization",
    "best_of_n_kl",
    "best_of_n_weights",
    "best_of_n_win_rate",
    "bon_curve",
    "fit_over_optimization",
    "plackett_luce_loss",
    "ranking_metrics",
    "midranks",
    "pearson",
    "r_squared",
    "spearman",
    "binned_r_squared",
    "credit_concentration",
    "proxy_gold_report",
]
