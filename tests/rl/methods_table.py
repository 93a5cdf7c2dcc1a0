"""Rows of the properties of values, preferences, labels, objectives and sampling; see `methods.py`."""

import numpy as np

from prm_jax import rl
from tests.rl.methods import GROUPED, K, N, Row, integers, normal, rows, unit

FOUR = {name: normal(N) for name in ("logp", "prior_logp", "proposal_logp", "rewards")}
TABLE = [
    # values
    Row(rl.dueling_q, rows(logits=normal(N, K), value=normal(N)), grad="logits value", kw={"alpha": 0.5}),
    Row(
        rl.q_target,
        rows(rewards=normal(N), discounts=unit(N), next_q=normal(N, K), next_actions=integers(K, N)),
    ),
    *(
        Row(
            rl.bellman_targets,
            rows(rewards=normal(N), discounts=unit(N), next_q=normal(N, K), policy_logits=normal(N, K)),
            kw={"kind": kind},
            label=kind,
        )
        for kind in ("expected", "greedy", "conservative")
    ),
    Row(
        rl.recovered_rewards,
        rows(q_taken=normal(N), discounts=unit(N), next_value=normal(N)),
        grad="q_taken next_value discounts",
    ),
    Row(
        rl.dueling_loss,
        rows(logits=normal(N, K), value=normal(N), actions=integers(K, N), targets=normal(N)),
        "mask",
        "logits value targets",
        "logits value",
        {"alpha": 0.7, "advantage_coef": 0.1, "ce_coef": 0.1},
    ),
    Row(rl.double_q_target, rows(rewards=normal(N), discounts=unit(N), next_q=normal(N, K), next_q_other=normal(N, K))),
    *(
        Row(rl.twin, rows(first=normal(N), second=normal(N)), grad="first second", kw={"how": how}, label=how)
        for how in ("min", "mean")
    ),
    Row(rl.candidate_advantages, rows(q_values=normal(N, K), value=normal(N)), "valid:NK", "q_values"),
    Row(
        rl.best_of_n_policy_loss,
        rows(logp=normal(N, K), advantages=normal(N, K)),
        "valid:NK",
        "logp advantages",
        "logp",
        {"threshold": 0.1},
    ),
    Row(
        rl.bellman_rank_penalty,
        rows(features=normal(N, K), next_features=normal(N, K), rewards=normal(N)),
        "mask",
        "features next_features rewards",
        "features",
        {"discount": 0.9, "head": np.array([0.1, -0.2, 0.1], np.float32)},
        numeric=False,
    ),
    Row(rl.best_of_n_targets, rows(advantages=normal(N, K)), "valid:NK", "advantages", kw={"threshold": 0.1}),
    Row(rl.continuation_discounts, rows(), "mask:NK", kw={"discount": 0.9}),
    # preference
    Row(rl.preference_score, rows(left=normal(N, 4), right=normal(N, 4)), grad="left right"),
    Row(rl.preference_gates, rows(logits=normal(N, K)), grad="logits"),
    *(
        Row(
            rl.group_preferences,
            rows(embeddings=normal(N, 4), **GROUPED),
            "mask",
            "embeddings",
            "embeddings",
            {"num_groups": 3, "output": output},
            label=output,
        )
        for output in ("score", "win")
    ),
    Row(
        rl.gpo_loss,
        rows(logp=normal(N), old_logp=normal(N), scores=normal(N)),
        "mask",
        "logp old_logp scores",
        "logp",
        {"beta": 0.5},
    ),
    Row(rl.brain_loss, {**FOUR, **GROUPED}, "mask", " ".join(FOUR), "logp", {"num_groups": 3}),
    Row(rl.weighted_nll, rows(logp=normal(N, K), weights=unit(N, K)), "mask:NK", "logp weights", "logp"),
    Row(rl.advantage_weights, rows(advantages=normal(N)), kw={"temperature": 0.5}),
    # calibration
    Row(rl.update_reward_mean, rows(rewards=normal(N)), "mask", "rewards", kw={"mean": 0.5}),
    # ensembles, labels and objectives
    Row(rl.judge_labels, rows(votes=unit(N, K)), "present:NK", "votes"),
    Row(rl.look_back_penalty, rows(values=unit(N, K)), "mask:prefix", "values", "values", {"coefficient": 0.5}),
    Row(rl.balanced_step_weights, rows(labels=unit(N, K)), "mask:NK", "labels"),
    *(
        Row(rl.hard_step_labels, rows(values=unit(N, K)), "mask:NK", "values", kw={"rising": rising}, label=str(rising))
        for rising in (False, True)
    ),
    Row(
        rl.judge_weights,
        rows(votes=unit(4, N), reference=unit(N)),
        order=None,
    ),
    Row(rl.objective_gates, rows(logits=normal(N, K)), grad="logits"),
    Row(
        rl.gated_objectives,
        rows(objectives=normal(N, K), gates=unit(N, K)),
        "valid",
        "objectives gates",
        "objectives gates",
    ),
    Row(rl.verifier_rewards, rows(rewards=normal(N), outcome=unit(N)), grad="rewards outcome"),
    Row(rl.halting_distribution, rows(logits=normal(N, K)), grad="logits"),
    Row(rl.halting_loss, rows(losses=normal(N, K), logits=normal(N, K)), "mask", "losses logits", "losses logits"),
    Row(rl.quantile_exit, rows(probabilities=unit(N, K))),
    # sampling and tracking
    *(
        Row(
            rl.filter_weights,
            rows(rewards=normal(N), **GROUPED),
            "mask",
            "rewards",
            kw={"num_groups": 3, "kind": kind},
            label=kind,
        )
        for kind in ("best_random", "best_worst", "power")
    ),
    *(
        Row(
            rl.importance_weights,
            rows(logp=normal(N), behaviour_logp=normal(N)),
            "mask",
            "logp behaviour_logp",
            "logp",
            {"kind": kind},
            label=kind,
        )
        for kind in ("snis", "clip")
    ),
    Row(rl.budget_allocation, rows(solve_rate=unit(N)), "mask", "solve_rate", kw={"total": 16}, order=None),
    Row(rl.answer_confidence, rows(answer_ids=integers(3, N), **GROUPED), "mask", kw={"num_groups": 3}),
]
