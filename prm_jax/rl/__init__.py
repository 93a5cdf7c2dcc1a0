"""Rewards, shaping, advantages, losses, targets, filters and metrics: pure functions on arrays.

Batch-first arrays with bool masks; results are float32; every function works under jit, vmap, grad and shard_map.
Statistics of scores (calibration, correlations, best-of-n) are in `prm_jax.stats`.
"""

from prm_jax.rl.advantages import (
    grpo_advantages,
    implicit_value_advantages,
    leave_one_out,
    reinforce_advantages,
    rloo_advantages,
    whiten,
)
from prm_jax.rl.bellman_rank import bellman_rank_penalty
from prm_jax.rl.confidence import update_reward_mean
from prm_jax.rl.credit import centred_credit, cumulative_credit, min_credit, step_credit, value_credit
from prm_jax.rl.extraction import best_of_n_policy_loss, best_of_n_targets, candidate_advantages
from prm_jax.rl.filtering import passing_first, rows_of_groups, solve_rate_mask, truncation_mask
from prm_jax.rl.halting import halting_distribution, halting_loss, quantile_exit
from prm_jax.rl.imitation import advantage_weights, weighted_nll
from prm_jax.rl.importance import mismatch_metrics, mismatch_sums, sampler_weights
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
    outcome_threshold,
    pairwise_accuracy,
    trust_gate,
)
from prm_jax.rl.multi_objective import gated_objectives, objective_gates, verifier_rewards
from prm_jax.rl.pair_losses import (
    all_pairs_loss,
    apo_loss,
    detached_pairwise_loss,
    exo_loss,
    nca_loss,
    orpo_loss,
    pairwise_loss,
    robust_pairwise_loss,
    step_preference_loss,
)
from prm_jax.rl.posterior import brain_loss
from prm_jax.rl.preference import gpo_loss, group_preferences, preference_gates, preference_score
from prm_jax.rl.prefixes import lambda_grpo_advantages, shared_prefix_counts
from prm_jax.rl.returns import discounted_returns, generalized_advantages, lambda_returns, n_step_returns
from prm_jax.rl.reward_losses import (
    class_weights,
    kto_loss,
    kto_reference_point,
    outcome_ce_loss,
    step_ce_loss,
    step_kto_loss,
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
from prm_jax.rl.sampling import answer_confidence, budget_allocation, filter_weights, importance_weights
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
    "update_reward_mean",
    # returns
    "discounted_returns",
    "generalized_advantages",
    "lambda_returns",
    "n_step_returns",
    # advantages
    "grpo_advantages",
    "implicit_value_advantages",
    "leave_one_out",
    "reinforce_advantages",
    "rloo_advantages",
    "whiten",
    "lambda_grpo_advantages",
    "shared_prefix_counts",
    # credit
    "centred_credit",
    "cumulative_credit",
    "min_credit",
    "step_credit",
    "value_credit",
    # losses
    "Loss",
    "Mean",
    "aggregate_tokens",
    "clipped_surrogate",
    "entropy_bonus",
    "kl_penalty",
    "token_kl",
    "value_loss",
    # losses of pairs
    "all_pairs_loss",
    "apo_loss",
    "detached_pairwise_loss",
    "exo_loss",
    "nca_loss",
    "orpo_loss",
    "pairwise_loss",
    "robust_pairwise_loss",
    "step_preference_loss",
    # losses of reward models
    "kto_loss",
    "kto_reference_point",
    "outcome_ce_loss",
    "class_weights",
    "step_ce_loss",
    "step_kto_loss",
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
    "outcome_threshold",
    "first_error",
    "first_error_f1",
    "pairwise_accuracy",
    "trust_gate",
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
    # preferences, posteriors, imitation
    "gpo_loss",
    "group_preferences",
    "preference_gates",
    "preference_score",
    "brain_loss",
    "advantage_weights",
    "weighted_nll",
    # judges, objectives, exits
    "balanced_step_weights",
    "hard_step_labels",
    "judge_labels",
    "judge_weights",
    "look_back_penalty",
    "gated_objectives",
    "objective_gates",
    "verifier_rewards",
    "halting_distribution",
    "halting_loss",
    "quantile_exit",
    # sampling
    "answer_confidence",
    "budget_allocation",
    "filter_weights",
    "importance_weights",
    "mismatch_metrics",
    "mismatch_sums",
    "sampler_weights",
]
