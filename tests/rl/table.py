"""The table: one row per public function and option. Add a row, and all properties are tested."""

from prm_jax import rl, stats
from tests.rl import credit_oracles, oracles
from tests.rl.properties import SIZES, Row

GROUPS = {"num_groups": SIZES["G"]}
PRIME = "token_rewards=r outcome=a mask group_ids=ids"
GAE = "rewards=r values=v mask bootstrap=s"
PAIRS = "scores=s outcome=a group_ids=ids mask=rows"


def _rewards() -> list[Row]:
    implicit = "logp ref_logp=old mask"
    rows = [
        Row(rl.implicit_token_rewards, implicit, oracles.implicit_token_rewards, grad="logp"),
        Row(
            rl.implicit_token_rewards,
            implicit + " token_weights=w",
            oracles.implicit_token_rewards,
            grad="logp token_weights",
            kw={"include_last": False, "beta": 0.5},
        ),
        Row(rl.outcome_token_rewards, "outcome=a mask", oracles.outcome_token_rewards, grad="outcome"),
        Row(rl.whole_token_rewards, "token_rewards=r mask", oracles.whole_token_rewards, grad="token_rewards"),
        Row(
            rl.lambda_token_rewards,
            "token_rewards=r mask",
            oracles.lambda_token_rewards,
            grad="token_rewards",
            kw={"lambda_": 0.5},
        ),
        Row(
            rl.lambda_token_rewards,
            "token_rewards=r mask outcome=a",
            oracles.lambda_token_rewards,
            grad="token_rewards outcome",
            kw={"lambda_": 0.9, "include_last": False},
        ),
        Row(
            rl.token_rewards_from_steps,
            "step_rewards=x step_ids=steps",
            oracles.token_rewards_from_steps,
            grad="step_rewards",
            compacts=False,
        ),
        Row(rl.normalize_by_return, "rewards=r mask", oracles.normalize_by_return, shard="axis"),
    ]
    rows += [
        Row(
            rl.step_rewards,
            "token_rewards=r step_ids=steps",
            oracles.step_rewards,
            out="BS BS",
            grad="token_rewards",
            kw={"num_steps": SIZES["S"], "how": how},
            compacts=False,
        )
        for how in ("sum", "last", "mean")
    ]
    rows += [
        Row(rl.aggregate_steps, "scores=p mask=smask", oracles.aggregate_steps, "B", "scores", {"how": how})
        for how in ("last", "min", "prod", "mean", "max", "sum", "gmean", "mean_logit", "mean_odds", "softmin")
    ]
    return rows


def _shaping() -> list[Row]:
    rows = [
        Row(
            rl.clip_rewards,
            "step_rewards=p mask=smask",
            oracles.clip_rewards,
            "BS",
            "step_rewards",
            {"threshold": 0.5},
        ),
        Row(rl.delta_rewards, "step_rewards=p mask=smask", oracles.delta_rewards, "BS", "step_rewards"),
        Row(
            rl.progress_rewards,
            "q_values=p initial_value=s mask=smask",
            oracles.progress_rewards,
            "BS",
            "q_values initial_value",
        ),
        Row(rl.best_of_k_value, "value=p", oracles.best_of_k_value, "BS", "value", {"k": 4}, empty=None),
        Row(
            rl.effective_rewards,
            "q_values=p progress=x",
            oracles.effective_rewards,
            "BS",
            "q_values progress",
            {"alpha": 0.5},
            empty=None,
        ),
    ]
    rows += [
        Row(
            rl.confidence_adjusted_rewards,
            "reward=x confidence=p",
            oracles.confidence_adjusted_rewards,
            "BS",
            "reward confidence",
            {"mean": 0.25, "weight": 2.0, "kind": kind},
            empty=None,
        )
        for kind in ("difference", "threshold")
    ]
    rows += [
        Row(
            rl.pessimistic_rewards,
            "predictions=ensemble",
            oracles.pessimistic_rewards,
            "B B",
            "predictions",
            {"coefficient": 0.5, "kind": kind},
            empty=None,
        )
        for kind in ("lcb", "min", "mean")
    ]
    return rows


def _advantages() -> list[Row]:
    rows = [
        Row(rl.discounted_returns, "rewards=r mask", oracles.discounted_returns, kw={"discount": d})
        for d in (1.0, 0.9)
    ]
    rows += [
        Row(rl.lambda_returns, GAE, oracles.lambda_returns, kw={"discount": 0.9, "lambda_": 0.95}),
        Row(rl.n_step_returns, GAE, oracles.n_step_returns, kw={"discount": 0.9, "n": 2}),
        Row(rl.generalized_advantages, GAE, oracles.generalized_advantages, kw={"discount": 0.99, "lambda_": 0.9}),
        Row(rl.leave_one_out, "values=s group_ids=ids mask=rows", oracles.leave_one_out, "B", kw=GROUPS, shard="axis"),
        Row(rl.whiten, "x=r mask", oracles.whiten, shard="axis"),
        Row(rl.reinforce_advantages, "token_rewards=r outcome=a mask", oracles.reinforce_advantages),
        Row(rl.implicit_value_advantages, "token_rewards=r outcome=a mask", oracles.implicit_value_advantages),
    ]
    rows += [
        Row(rl.rloo_advantages, PRIME, oracles.rloo_advantages, kw={**GROUPS, **options}, shard="axis")
        for options in (
            {},
            {"whiten": False, "discount": 0.9, "dense_coef": 0.5},
            {"variant": "released"},
            {"variant": "released", "whiten": False, "dense_coef": 5.0, "outcome_coef": 5.0},
        )
    ]
    rows += [
        Row(rl.grpo_advantages, PRIME, oracles.grpo_advantages, kw={**GROUPS, **options}, shard="axis")
        for options in ({"eps": 1e-2}, {"eps": None, "discount": 0.9})
    ]
    return rows


def _credit() -> list[Row]:
    slots = {"num_steps": SIZES["S"]}
    plain, masked = "token_rewards=r step_ids=steps", "token_rewards=r step_ids=steps mask"
    centred = "credit=r step_ids=steps mask group_ids=ids"
    shared = "tokens=tok mask group_ids=ids"
    rows = [
        Row(rl.step_credit, plain, credit_oracles.step_credit, kw=slots),
        Row(rl.cumulative_credit, plain, credit_oracles.cumulative_credit, kw=slots),
        Row(rl.min_credit, masked, credit_oracles.min_credit, kw=slots),
        Row(rl.min_credit, masked, credit_oracles.min_credit, kw={**slots, "temperature": 0.0}),
        Row(rl.value_credit, "values=p initial_value=s step_ids=steps", credit_oracles.value_credit, kw=slots),
        Row(
            rl.shared_prefix_counts,
            shared,
            credit_oracles.shared_prefix_counts,
            kw=GROUPS,
            shard="axis",
            compacts=False,
        ),
        Row(
            rl.lambda_grpo_advantages,
            "token_rewards=r outcome=a " + shared,
            credit_oracles.lambda_grpo_advantages,
            kw={**GROUPS, "discount": 0.9},
            shard="axis",
            compacts=False,
        ),
    ]
    rows += [
        Row(rl.centred_credit, centred, credit_oracles.centred_credit, kw={**GROUPS, **slots, **kw}, shard="axis")
        for kw in (
            {"baseline": "group"},
            {"baseline": "leave_one_out"},
            {"baseline": "step"},
            {"baseline": "none", "scale": True},
            {"baseline": "group", "scale": True, "eps": 0.01},
        )
    ]
    return rows


def _losses() -> list[Row]:
    surrogate = "logp old_logp=old advantages=r mask"
    rows = [
        Row(rl.clipped_surrogate, surrogate, oracles.clipped_surrogate, "-", "logp", options, "psum")
        for options in (
            {},
            {"dual_clip": 1.5, "clip_high": 0.28, "aggregation": "seq-mean-token-sum"},
            {"ratio": "sequence", "aggregation": "seq-mean-token-mean"},
        )
    ]
    rows += [
        Row(
            rl.clipped_surrogate,
            surrogate + " token_weights=w",
            oracles.clipped_surrogate,
            "-",
            "logp",
            {},
            "psum",
        )
    ]
    rows += [
        Row(rl.token_kl, "logp ref_logp=old mask", oracles.token_kl, "BT", "logp", {"estimator": k})
        for k in ("k1", "k2", "k3")
    ]
    rows += [
        Row(rl.aggregate_tokens, "values=r mask", oracles.aggregate_tokens, "-", "values", options, "psum")
        for options in (
            {"aggregation": "token-mean"},
            {"aggregation": "seq-mean-token-sum"},
            {"aggregation": "seq-mean-token-mean"},
            {"aggregation": "seq-mean-token-sum-norm", "norm": 7.0},
        )
    ]
    rows += [
        Row(rl.kl_penalty, "logp ref_logp=old mask", oracles.kl_penalty, "-", "logp", shard="psum"),
        Row(rl.entropy_bonus, "entropy=w mask", oracles.entropy_bonus, "-", "entropy", shard="psum"),
    ]
    rows += [
        Row(rl.value_loss, f"values={v} targets={y} mask", oracles.value_loss, "-", "values", {"kind": kind}, "psum")
        for kind, v, y in (
            ("mse", "v", "r"),
            ("tanh_mse", "v", "r"),
            ("bce", "v", "w"),
            ("ce", "logits", "class"),
            ("ce", "logits", "classes"),
        )
    ]
    rows += [
        Row(
            rl.value_loss,
            "values=v targets=r mask old_values=old",
            oracles.value_loss,
            "-",
            "values",
            {"clip": 0.2},
            "psum",
        )
    ]
    return rows


def _reward_losses() -> list[Row]:
    sums = {"out": "-", "shard": "psum"}
    rows = [
        Row(
            rl.outcome_ce_loss,
            "token_rewards=r outcome=a mask",
            oracles.outcome_ce_loss,
            grad="token_rewards",
            **sums,
        ),
        Row(
            rl.pairwise_loss,
            "chosen=s rejected=s2 mask=rows",
            oracles.pairwise_loss,
            grad="chosen rejected",
            kw={"margin": 0.25, "label_smoothing": 0.1},
            **sums,
        ),
        *(
            Row(fn, "chosen=s rejected=s2 mask=rows", oracle, grad="chosen rejected", kw=kw, **sums)
            for fn, oracle, kw in (
                (rl.robust_pairwise_loss, oracles.robust_pairwise_loss, {"label_smoothing": 0.1}),
                (rl.exo_loss, oracles.exo_loss, {"label_smoothing": 0.01}),
                (rl.apo_loss, oracles.apo_loss, {"kind": "zero"}),
                (rl.apo_loss, oracles.apo_loss, {"kind": "down"}),
            )
        ),
        Row(
            rl.orpo_loss,
            "chosen_logp=below rejected_logp=below2 mask=rows",
            oracles.orpo_loss,
            grad="chosen_logp rejected_logp",
            kw={"coef": 0.5},
            **sums,
        ),
        Row(rl.nca_loss, "chosen=s rejected=s2 mask=rows", oracles.nca_loss, grad="chosen rejected", **sums),
        Row(rl.all_pairs_loss, PAIRS, oracles.all_pairs_loss, grad="scores", kw=GROUPS, whole_groups=True, **sums),
        Row(
            rl.kto_loss,
            "log_ratios=s desirable=flag mask=rows",
            oracles.kto_loss,
            grad="log_ratios",
            kw={"beta": 0.5, "reference_point": 0.25, "undesirable_weight": 1.5},
            **sums,
        ),
        Row(
            rl.kto_loss,
            "log_ratios=s desirable=flag mask=rows",
            oracles.kto_loss,
            grad="log_ratios",
            kw={"beta": 0.5, "variant": "vanilla"},
            out="-",
            shard="axis psum",
        ),
        Row(
            rl.kto_loss,
            "log_ratios=s desirable=flag mask=rows desirable_weight=s2 undesirable_weight=s3",
            oracles.kto_loss,
            grad="log_ratios",
            kw={"beta": 0.5},
            **sums,
        ),
        Row(rl.class_weights, "outcome=a mask=rows", oracles.class_weights, "B", shard="axis"),
        Row(rl.kto_reference_point, "log_ratios=s mask=rows", oracles.kto_reference_point, "-", shard="axis"),
        Row(
            rl.step_kto_loss,
            "step_rewards=x labels=flags mask=smask",
            oracles.step_kto_loss,
            grad="step_rewards",
            **sums,
        ),
    ]
    rows += [
        Row(
            rl.step_preference_loss,
            "chosen=s rejected=s2 ref_chosen=s3 ref_rejected=s4 mask=rows",
            oracles.step_preference_loss,
            grad="chosen rejected",
            kw={"beta": 0.5, "kind": kind},
            **sums,
        )
        for kind in ("sigmoid", "hinge", "ipo")
    ]
    rows += [
        Row(
            rl.detached_pairwise_loss,
            PAIRS + " opponent_scores=s2",
            oracles.detached_pairwise_loss,
            grad="scores",
            kw={**GROUPS, "weighting": weighting},
            whole_groups=True,
            **sums,
        )
        for weighting in ("none", "bon_rm", "bon_acc")
    ]
    rows += [
        Row(rl.step_ce_loss, f"logits={x} labels=y mask=smask", oracles.step_ce_loss, grad="logits", kw=options, **sums)
        for x, options in (
            ("x", {}),
            ("x2", {"aggregation": "seq-mean-token-mean"}),
            ("x2", {"threshold": 0.5, "positive_class": 0}),
        )
    ]
    return rows


def _targets() -> list[Row]:
    rows = [
        Row(rl.mc_targets, "correct=count mask=smask", oracles.mc_targets, "BS", kw={"count": 8, "how": how})
        for how in ("soft", "hard", "vstar")
    ]
    rows += [
        Row(rl.through_first_error, "labels=y mask=smask", oracles.through_first_error, "BS"),
        Row(rl.agree, "first_error_a=at first_error_b=at2", oracles.agree, "B", empty=None),
        Row(rl.quality_value, "wrong=flags distance=count mask=smask", oracles.quality_value, "BS"),
        Row(
            rl.roll_forward_value,
            "values=s rollouts=p mask=smask",
            oracles.roll_forward_value,
            "B",
            empty=None,
            reads="values",
        ),
        Row(
            rl.steps_to_correct,
            "parent correct=flags mask=smask",
            oracles.steps_to_correct,
            "BS BS",
            compacts=False,
        ),
        Row(rl.td_smooth, "scores=p mask=smask", oracles.td_smooth, "BS", kw={"alpha": 0.5}),
        Row(rl.td_smooth, "scores=p mask=smask", oracles.td_smooth, "BS", kw={"alpha": 0.5, "min_gain": 0.05}),
    ]
    return rows


def _filtering() -> list[Row]:
    return [
        Row(
            rl.solve_rate_mask,
            "outcome=a group_ids=ids mask=rows",
            oracles.solve_rate_mask,
            "G",
            kw=GROUPS,
            shard="axis",
        ),
        Row(
            rl.truncation_mask,
            "length group_ids=ids mask=rows",
            oracles.truncation_mask,
            "G",
            kw={**GROUPS, "max_length": 7},
            shard="axis",
            empty=1.0,
        ),
        Row(rl.rows_of_groups, "group_mask=groups group_ids=ids", oracles.rows_of_groups, "B"),
    ]


def _metrics() -> list[Row]:
    rows = [
        Row(
            rl.pairwise_accuracy,
            PAIRS,
            oracles.pairwise_accuracy,
            "-",
            kw={**GROUPS, "average": average},
            shard="axis",
            whole_groups=True,
            empty=0.5,
        )
        for average in ("groups", "pairs", "released")
    ]
    rows += [
        Row(rl.pairwise_accuracy, PAIRS, oracles.pairwise_accuracy, "G", kw={**GROUPS, "average": "none"}, empty=0.5),
        Row(stats.outcome_accuracy, "scores=s outcome=a mask=rows", oracles.outcome_accuracy, "-", shard="axis"),
        Row(
            rl.first_error,
            "scores=p mask=smask",
            oracles.first_error,
            "B",
            kw={"threshold": 0.4},
            compacts=False,
            empty=-1.0,
        ),
        Row(
            rl.first_error_f1,
            "predicted=at label=at2 mask=rows",
            oracles.first_error_f1,
            "-",
            shard="axis",
        ),
        Row(stats.roc_auc, "scores=p labels=flags mask=smask", oracles.roc_auc, "-", shard="axis", empty=0.5),
        Row(stats.min_at_last_rate, "scores=p mask=smask", oracles.min_at_last_rate, "-", shard="axis"),
    ]
    rows += [
        Row(
            stats.vote_totals,
            "weights=x answer_ids=answer mask=smask",
            oracles.vote_totals,
            "BS",
            grad="weights",
            kw={"reduce": reduce},
        )
        for reduce in ("sum", "mean", "max")
    ]
    return rows


TABLE = [
    *_rewards(),
    *_shaping(),
    *_advantages(),
    *_credit(),
    *_losses(),
    *_reward_losses(),
    *_targets(),
    *_filtering(),
    *_metrics(),
]

# Not arrays with a batch axis, or without a meaningful oracle; each has its own tests.
ELSEWHERE = {"Loss", "Mean", "best_threshold", "outcome_threshold", "passing_first", "trust_gate"}
