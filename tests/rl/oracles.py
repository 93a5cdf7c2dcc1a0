"""Every function of the room once more, in float64 NumPy with Python loops, written from the formulas.

Slow on purpose: no masks inside arithmetic, only lists of the valid positions, so that nothing here can be wrong
in the way the vectorised code can. Arguments and results mirror the public functions; a loss is (total, weight).
"""

import itertools
import math

import numpy as np


def _valid(mask_row):
    return [t for t, m in enumerate(mask_row) if m]


def _groups(ids, num_groups, member):
    return [[i for i in range(len(ids)) if member[i] and ids[i] == g] for g in range(num_groups)]


def _sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def _rows(mask, per_row):
    """[B, T] from a function of (row, valid positions) that gives one number a valid position."""
    out = np.zeros(mask.shape)
    for i, row in enumerate(mask):
        at = _valid(row)
        for t, value in zip(at, per_row(i, at), strict=True):
            out[i, t] = value
    return out


# rewards


def implicit_token_rewards(logp, ref_logp, mask, beta=0.05, include_last=True, token_weights=None):
    def row(i, at):
        rewards = [beta * (logp[i, t] - ref_logp[i, t]) for t in at]
        if token_weights is not None:
            rewards = [r * token_weights[i, t] for r, t in zip(rewards, at, strict=True)]
        if rewards and not include_last:
            rewards[-1] = 0.0
        return rewards

    return _rows(mask, row)


def outcome_token_rewards(outcome, mask):
    return _rows(mask, lambda i, at: [0.0] * (len(at) - 1) + [outcome[i]] * bool(at))


def whole_token_rewards(token_rewards, mask):
    return _rows(mask, lambda i, at: [0.0] * (len(at) - 1) + [sum(token_rewards[i, t] for t in at)] * bool(at))


def lambda_token_rewards(token_rewards, mask, outcome=None, lambda_=0.5, include_last=True):
    def row(i, at):
        r = [token_rewards[i, t] for t in at]
        if r and outcome is not None and lambda_ != 0:
            r[-1] = outcome[i] - sum(r[:-1])
        for k in reversed(range(len(r) - 1)):
            r[k] += lambda_ * r[k + 1]
        if r and not include_last:
            r[-1] = 0.0
        return r

    return _rows(mask, row)


def step_rewards(token_rewards, step_ids, num_steps=0, how="sum"):
    out, mask = np.zeros((len(step_ids), num_steps)), np.zeros((len(step_ids), num_steps), bool)
    for i, k in itertools.product(range(len(step_ids)), range(num_steps)):
        tokens = [token_rewards[i, t] for t in range(step_ids.shape[1]) if step_ids[i, t] == k]
        if tokens:
            mask[i, k] = True
            out[i, k] = {"sum": sum(tokens), "mean": sum(tokens) / len(tokens), "last": tokens[-1]}[how]
    return out, mask


def token_rewards_from_steps(step_rewards, step_ids):
    out = np.zeros(step_ids.shape)
    for i, k in itertools.product(range(len(step_ids)), range(step_rewards.shape[1])):
        tokens = [t for t in range(step_ids.shape[1]) if step_ids[i, t] == k]
        if tokens:
            out[i, tokens[-1]] = step_rewards[i, k]
    return out


def aggregate_steps(scores, mask, how="last", temperature=0.1):
    out = np.zeros(len(mask))
    for i, row in enumerate(mask):
        x = [float(scores[i, k]) for k in _valid(row)]
        if not x:
            continue
        p = [min(max(v, 1e-6), 1 - 1e-6) for v in x]
        n = len(x)
        soft = [math.exp(-(v - min(x)) / temperature) for v in x]
        out[i] = {
            "last": x[-1],
            "min": min(x),
            "max": max(x),
            "prod": math.prod(x),
            "mean": sum(x) / n,
            "sum": sum(x),
            "gmean": math.prod(p) ** (1 / n),
            "mean_logit": sum(math.log(v / (1 - v)) for v in p) / n,
            "mean_odds": sum(v / (1 - v) for v in p) / n,
            "softmin": sum(w * v for w, v in zip(soft, x, strict=True)) / sum(soft),
        }[how]
    return out


def normalize_by_return(rewards, mask, eps=1e-6):
    returns = discounted_returns(rewards, mask)
    return np.where(mask, rewards, 0.0) / (np.abs(returns).max() + eps)


# shaping


def clip_rewards(step_rewards, mask, threshold):
    return _rows(mask, lambda i, at: [min(step_rewards[i, k] - threshold, 0.0) for k in at])


def delta_rewards(step_rewards, mask):
    def row(i, at):
        p = [step_rewards[i, k] for k in at]
        out = [p[k] - p[k + 1] for k in range(len(p) - 2)]
        return [*out, p[-2], 0.0] if len(p) > 1 else [0.0] * len(p)

    return _rows(mask, row)


def progress_rewards(q_values, initial_value, mask):
    def row(i, at):
        q = [initial_value[i]] + [q_values[i, k] for k in at]
        return [b - a for a, b in itertools.pairwise(q)]

    return _rows(mask, row)


def best_of_k_value(value, k):
    return np.vectorize(lambda v: 1 - (1 - v) ** k)(value)


def effective_rewards(q_values, progress, alpha):
    return np.vectorize(lambda q, a: q + alpha * a)(q_values, progress)


def confidence_adjusted_rewards(reward, confidence, mean, weight, kind="difference"):
    def one(r, c):
        if kind == "difference":
            return r + weight * (r - mean) * (c - 0.5)
        return r + (1 if r >= mean else -1) * weight * abs(r) * (c - 0.5)

    return np.vectorize(one)(reward, confidence)


def pessimistic_rewards(predictions, coefficient, kind="lcb"):
    members = len(predictions)
    mean = sum(predictions) / members
    std = np.sqrt(sum((p - mean) ** 2 for p in predictions) / members)
    return {"lcb": mean - coefficient * std, "min": np.min(predictions, 0), "mean": mean}[kind], std


# advantages


def discounted_returns(rewards, mask, discount=1.0):
    def row(i, at):
        out = [float(rewards[i, t]) for t in at]
        for k in reversed(range(len(out) - 1)):
            out[k] += discount * out[k + 1]
        return out

    return _rows(mask, row)


def lambda_returns(rewards, values, mask, bootstrap=None, discount=1.0, lambda_=1.0):
    def row(i, at):
        end = 0.0 if bootstrap is None else bootstrap[i]
        out, v_next, g_next = [], end, end
        for t in reversed(at):
            g_next = rewards[i, t] + discount * ((1 - lambda_) * v_next + lambda_ * g_next)
            v_next = values[i, t]
            out.append(g_next)
        return out[::-1]

    return _rows(mask, row)


def n_step_returns(rewards, values, mask, bootstrap=None, discount=1.0, n=1):
    def row(i, at):
        end = 0.0 if bootstrap is None else bootstrap[i]
        r, v = [rewards[i, t] for t in at], [values[i, t] for t in at] + [end] * n
        out = []
        for k in range(len(r)):
            taken = min(n, len(r) - k)
            reward = sum(discount**j * r[k + j] for j in range(taken))
            out.append(reward + discount**taken * v[k + taken])
        return out

    return _rows(mask, row)


def generalized_advantages(rewards, values, mask, bootstrap=None, discount=1.0, lambda_=1.0):
    def row(i, at):
        end = 0.0 if bootstrap is None else bootstrap[i]
        v = [values[i, t] for t in at] + [end]
        delta = [rewards[i, t] + discount * v[k + 1] - v[k] for k, t in enumerate(at)]
        return [
            sum((discount * lambda_) ** (j - k) * delta[j] for j in range(k, len(at))) for k in range(len(at))
        ]

    return _rows(mask, row)


def leave_one_out(values, group_ids, mask=None, num_groups=0):
    member = np.ones(len(values), bool) if mask is None else mask
    out = np.zeros(len(values))
    for group in _groups(group_ids, num_groups, member):
        for i in group:
            others = [values[j] for j in group if j != i]
            out[i] = values[i] - (sum(others) / len(others) if others else 0.0)
    return out


def _row_means(token_rewards, mask):
    return [np.mean([token_rewards[i, t] for t in _valid(row)]) if row.any() else 0.0 for i, row in enumerate(mask)]


def rloo_advantages(
    token_rewards,
    outcome,
    mask,
    group_ids,
    num_groups=0,
    variant="paper",
    dense_coef=1.0,
    outcome_coef=1.0,
    discount=1.0,
    whiten=True,
):
    member, means = mask.any(1), _row_means(token_rewards, mask)
    out, valid = np.zeros(mask.shape), np.zeros(mask.shape, bool)
    for group in _groups(group_ids, num_groups, member):
        k = len(group)
        for i in group:
            others = [j for j in group if j != i]
            if variant == "paper":
                base, scale = (sum(means[j] for j in others) / len(others) if others else 0.0), 1.0
            else:
                base, scale = (sum(means[j] for j in group) / (k - 1), k / (k - 1)) if others else (0.0, 1.0)
            sparse = outcome[i] - (sum(outcome[j] for j in others) / len(others) if others else 0.0)
            at = _valid(mask[i])
            dense = [token_rewards[i, t] * scale - base for t in at]
            for n, t in enumerate(at):
                togo = sum(discount ** (s - n) * dense[s] for s in range(n, len(at)))
                out[i, t], valid[i, t] = dense_coef * togo + outcome_coef * sparse, True
    return globals()["whiten"](out, valid) if whiten else out


def grpo_advantages(token_rewards, outcome, mask, group_ids, num_groups=0, eps=1e-6, discount=1.0):
    member, means = mask.any(1), _row_means(token_rewards, mask)
    out = np.zeros(mask.shape)

    def scale(values):
        if len(values) < 2 or np.std(values) <= 1e-6 * np.mean(np.abs(values)):
            return 0.0
        return 1.0 if eps is None else 1 / (np.std(values, ddof=1) + eps)

    for group in _groups(group_ids, num_groups, member):
        a, r = [outcome[i] for i in group], [means[i] for i in group]
        for i in group:
            at = _valid(mask[i])
            dense = [(token_rewards[i, t] - np.mean(r)) * scale(r) for t in at]
            for n, t in enumerate(at):
                togo = sum(discount ** (s - n) * dense[s] for s in range(n, len(at)))
                out[i, t] = togo + (outcome[i] - np.mean(a)) * scale(a)
    return out


def reinforce_advantages(token_rewards, outcome, mask, dense_coef=1.0, outcome_coef=1.0, discount=1.0):
    returns = discounted_returns(token_rewards, mask, discount)
    return _rows(mask, lambda i, at: [dense_coef * returns[i, t] + outcome_coef * outcome[i] for t in at])


def implicit_value_advantages(token_rewards, outcome, mask):
    def row(i, at):
        return [outcome[i] - sum(token_rewards[i, s] for s in at if s < t) for t in at]

    return _rows(mask, row)


def whiten(x, mask, eps=1e-8):
    values = [x[i, t] for i, row in enumerate(mask) for t in _valid(row)]
    if len(values) < 2:
        return np.zeros(mask.shape)
    mean, var = np.mean(values), np.var(values, ddof=1)
    return _rows(mask, lambda i, at: [(x[i, t] - mean) / math.sqrt(var + eps) for t in at])


# losses


def aggregate_tokens(values, mask, aggregation="token-mean", norm=None):
    rows = [[float(values[i, t]) for t in _valid(row)] for i, row in enumerate(mask)]
    rows = [r for r in rows if r]
    total = sum(sum(r) for r in rows)
    return {
        "token-mean": (total, sum(len(r) for r in rows)),
        "seq-mean-token-sum": (total, len(rows)),
        "seq-mean-token-mean": (sum(sum(r) / len(r) for r in rows), len(rows)),
        "seq-mean-token-sum-norm": (total / (norm or mask.shape[1]), 0),
    }[aggregation]


def clipped_surrogate(
    logp,
    old_logp,
    advantages,
    mask,
    token_weights=None,
    clip_low=0.2,
    clip_high=0.2,
    dual_clip=None,
    ratio="token",
    aggregation="token-mean",
):
    def row(i, at):
        log_ratio = [logp[i, t] - old_logp[i, t] for t in at]
        if ratio == "sequence" and at:
            log_ratio = [sum(log_ratio) / len(at)] * len(at)
        out = []
        for t, lr in zip(at, log_ratio, strict=True):
            rho, a = math.exp(lr), advantages[i, t]
            loss = max(-a * rho, -a * min(max(rho, 1 - clip_low), 1 + clip_high))
            if dual_clip is not None and a < 0:
                loss = min(loss, -dual_clip * a)
            out.append(loss * (1.0 if token_weights is None else token_weights[i, t]))
        return out

    return aggregate_tokens(_rows(mask, row), mask, aggregation)


def token_kl(logp, ref_logp, mask, estimator="k1"):
    def one(d):
        return {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[estimator]

    return _rows(mask, lambda i, at: [one(logp[i, t] - ref_logp[i, t]) for t in at])


def kl_penalty(logp, ref_logp, mask, estimator="k3"):
    return aggregate_tokens(token_kl(logp, ref_logp, mask, estimator), mask)


def entropy_bonus(entropy, mask):
    total, weight = aggregate_tokens(entropy, mask)
    return -total, weight


def value_loss(values, targets, mask, old_values=None, kind="mse", clip=None, aggregation="token-mean"):
    def one(i, t):
        v, y = values[i, t], targets[i, t]
        if kind == "ce":
            log_p = v - math.log(sum(math.exp(c) for c in v))
            return -log_p[int(y)] if np.ndim(y) == 0 else -sum(y * log_p)
        if kind == "bce":
            return -(y * _log_sigmoid(v) + (1 - y) * _log_sigmoid(-v))
        error = ((math.tanh(v) if kind == "tanh_mse" else v) - y) ** 2
        if clip is not None:
            old = old_values[i, t]
            error = max(error, (min(max(v, old - clip), old + clip) - y) ** 2)
        return error

    return aggregate_tokens(_rows(mask, lambda i, at: [one(i, t) for t in at]), mask, aggregation)


# losses of reward models


def outcome_ce_loss(token_rewards, outcome, mask):
    total, rows = 0.0, 0
    for i, row in enumerate(mask):
        if row.any():
            s = sum(token_rewards[i, t] for t in _valid(row))
            total -= outcome[i] * _log_sigmoid(s) + (1 - outcome[i]) * _log_sigmoid(-s)
            rows += 1
    return total, rows


def pairwise_loss(chosen, rejected, mask, margin=0.0, label_smoothing=0.0):
    total = 0.0
    for i in _valid(mask):
        d = chosen[i] - rejected[i] - margin
        total -= (1 - label_smoothing) * _log_sigmoid(d) + label_smoothing * _log_sigmoid(-d)
    return total, int(mask.sum())


def robust_pairwise_loss(chosen, rejected, mask, label_smoothing=0.1):
    e, total = label_smoothing, 0.0
    for i in _valid(mask):
        d = chosen[i] - rejected[i]
        total += (-(1 - e) * _log_sigmoid(d) + e * _log_sigmoid(-d)) / (1 - 2 * e)
    return total, int(mask.sum())


def exo_loss(chosen, rejected, mask, label_smoothing=1e-3):
    total = 0.0
    for i in _valid(mask):
        p = _sigmoid(chosen[i] - rejected[i])
        total += p * math.log(p / (1 - label_smoothing)) + (1 - p) * math.log((1 - p) / label_smoothing)
    return total, int(mask.sum())


def apo_loss(chosen, rejected, mask, kind="zero"):
    total = 0.0
    for i in _valid(mask):
        c, r = chosen[i], rejected[i]
        total += 1 - _sigmoid(c) + _sigmoid(r) if kind == "zero" else _sigmoid(c) + 1 - _sigmoid(c - r)
    return total, int(mask.sum())


def orpo_loss(chosen_logp, rejected_logp, mask, coef=0.1, sft_coef=1.0):
    total = 0.0
    for i in _valid(mask):
        odds = [math.exp(x) / (1 - math.exp(x)) for x in (chosen_logp[i], rejected_logp[i])]
        total -= sft_coef * chosen_logp[i] + coef * _log_sigmoid(math.log(odds[0] / odds[1]))
    return total, int(mask.sum())


def all_pairs_loss(scores, outcome, group_ids, mask, num_groups=0, margin=0.0, label_smoothing=0.0):
    pairs = [
        (scores[i], scores[j])
        for group in _groups(group_ids, num_groups, mask)
        for i, j in itertools.product(group, group)
        if outcome[i] > outcome[j]
    ]
    if not pairs:
        return 0.0, 0
    chosen, rejected = np.array(pairs).T
    return pairwise_loss(chosen, rejected, np.ones(len(pairs), bool), margin, label_smoothing)


def detached_pairwise_loss(scores, opponent_scores, outcome, group_ids, mask, num_groups=0, weighting="none"):
    total, count = 0.0, 0
    for group in _groups(group_ids, num_groups, mask):
        k = len(group)
        for i in group:
            good = outcome[i] > 0
            rivals = [j for j in group if (outcome[j] < outcome[i] if good else outcome[j] > outcome[i])]
            baseline = sum(opponent_scores[j] for j in rivals) / len(rivals) if rivals else 0.0
            loss = -_log_sigmoid((scores[i] - baseline) * (1 if good else -1))
            if weighting == "bon_rm":
                # In the test the opponents' scores differ from the scores, as with two passes.
                loss *= k * (sum(opponent_scores[j] <= scores[i] for j in group) / k) ** (k - 1)
            if weighting == "bon_acc":
                loss *= k * (sum(outcome[j] <= outcome[i] for j in group) / k) ** (k - 1)
            total, count = total + loss, count + 1
    return total, count if weighting == "none" else 0


def class_weights(outcome, mask):
    right = wrong = 0.0
    for a, valid in zip(outcome, mask, strict=True):
        if valid:
            right, wrong = right + a, wrong + 1 - a
    weights = np.zeros(len(outcome))
    for b, (a, valid) in enumerate(zip(outcome, mask, strict=True)):
        if valid and right:
            weights[b] += a * (right + wrong) / (2 * right)
        if valid and wrong:
            weights[b] += (1 - a) * (right + wrong) / (2 * wrong)
    return weights


def kto_reference_point(log_ratios, mask):
    values = [log_ratios[i] for i in _valid(mask)]
    return max(sum(values) / len(values), 0.0) if values else 0.0


def kto_loss(
    log_ratios,
    desirable,
    mask,
    reference_point=0.0,
    beta=0.05,
    desirable_weight=1.0,
    undesirable_weight=1.0,
    variant="paper",
):
    win = [i for i in _valid(mask) if desirable[i]]
    lose = [i for i in _valid(mask) if not desirable[i]]
    z_win = z_lose = reference_point
    if variant == "vanilla":
        z_win = max(np.mean([log_ratios[i] for i in lose]) if lose else 0.0, 0.0)
        z_lose = max(np.mean([log_ratios[i] for i in win]) if win else 0.0, 0.0)
    gain, cost = (np.broadcast_to(w, mask.shape) for w in (desirable_weight, undesirable_weight))
    total = sum(gain[i] * (1 - _sigmoid(beta * (log_ratios[i] - z_win))) for i in win)
    total += sum(cost[i] * (1 - _sigmoid(beta * (z_lose - log_ratios[i]))) for i in lose)
    return total, len(win) + len(lose)


def nca_loss(chosen, rejected, mask):
    total = 0.0
    for i in _valid(mask):
        c, r = chosen[i], rejected[i]
        total -= _log_sigmoid(c) + 0.5 * _log_sigmoid(-c) + 0.5 * _log_sigmoid(-r)
    return total, int(mask.sum())


def step_preference_loss(chosen, rejected, ref_chosen, ref_rejected, mask, beta=1.0, kind="sigmoid"):
    total = 0.0
    for i in _valid(mask):
        d = (chosen[i] - ref_chosen[i]) - (rejected[i] - ref_rejected[i])
        total += {
            "sigmoid": -_log_sigmoid(beta * d),
            "hinge": max(1 - beta * d, 0.0),
            "ipo": (d - 1 / (2 * beta)) ** 2,
        }[kind]
    return total, int(mask.sum())


def step_ce_loss(logits, labels, mask, threshold=None, positive_class=1, aggregation="token-mean"):
    def one(i, k):
        x, y = logits[i, k], labels[i, k]
        if threshold is not None:
            y = float(y > threshold)
        if np.ndim(x) == 0:
            return -(y * _log_sigmoid(x) + (1 - y) * _log_sigmoid(-x))
        log_p = x - math.log(sum(math.exp(c) for c in x))
        return -(y * log_p[positive_class] + (1 - y) * log_p[1 - positive_class])

    return aggregate_tokens(_rows(mask, lambda i, at: [one(i, k) for k in at]), mask, aggregation)


def step_kto_loss(step_rewards, labels, mask):
    each = _rows(mask, lambda i, at: [-_log_sigmoid((1 if labels[i, k] else -1) * abs(step_rewards[i, k])) for k in at])
    return aggregate_tokens(each, mask, "seq-mean-token-mean")


# targets


def mc_targets(correct, mask, count=8, how="soft"):
    def row(i, at):
        c = [correct[i, k] for k in at]
        if how == "soft":
            return [v / count for v in c]
        if how == "hard":
            return [float(v > 0) for v in c]
        return [float(any(v > 0 for v in c[k:])) for k in range(len(c))]

    return _rows(mask, row)


def through_first_error(labels, mask, threshold=0.5):
    def row(i, at):
        wrong = [labels[i, k] < threshold for k in at]
        return [not any(wrong[:k]) for k in range(len(at))]

    return _rows(mask, row).astype(bool)


def agree(first_error_a, first_error_b):
    return np.array([a == b for a, b in zip(first_error_a, first_error_b, strict=True)])


def quality_value(wrong, distance, mask):
    def row(i, at):
        v, out = 0.0, []
        for k in at:
            v = max(v + (1 - v) / (distance[i, k] + 1) * (1 - 2 * bool(wrong[i, k])), 0.0)
            out.append(v)
        return out

    return _rows(mask, row)


def roll_forward_value(values, rollouts, mask, alpha=0.5):
    out = np.array(values, float)
    for i, row in enumerate(mask):
        at = _valid(row)
        if at:
            out[i] = (1 - alpha) * values[i] + alpha * max(rollouts[i, k] for k in at)
    return out


def steps_to_correct(parent, correct, mask):
    steps, reachable = np.zeros(mask.shape, int), np.zeros(mask.shape, bool)
    for b in range(len(mask)):
        kids = {n: [k for k in range(mask.shape[1]) if mask[b, k] and parent[b, k] == n] for n in range(mask.shape[1])}

        def nearest(n, b=b, kids=kids):
            return 1.0 if correct[b, n] else min([nearest(k) for k in kids[n]], default=math.inf) + 1

        for n in _valid(mask[b]):
            reachable[b, n] = nearest(n) < math.inf
            at = n
            while nearest(at) == math.inf and parent[b, at] >= 0:
                at = parent[b, at]
            steps[b, n] = nearest(at) if nearest(at) < math.inf else 0
    return steps, reachable


def td_smooth(scores, mask, alpha=0.5, min_gain=None):
    def row(i, at):
        v = [float(scores[i, k]) for k in at]
        end = len(v)
        if min_gain is not None:
            slow = [k for k in range(1, len(v)) if v[k] - v[k - 1] < min_gain]
            end = slow[0] + 1 if slow else end
        for k in reversed(range(end - 1)):
            v[k] += alpha * (v[k + 1] - v[k])
        return v

    return _rows(mask, row)


# filtering


def solve_rate_mask(outcome, group_ids, mask, num_groups=0, low=0.2, high=0.8):
    out = []
    for group in _groups(group_ids, num_groups, mask):
        rate = sum(outcome[i] for i in group) / max(len(group), 1)
        out.append(bool(group) and low - 1e-6 <= rate <= high + 1e-6)
    return np.array(out)


def truncation_mask(length, group_ids, mask, num_groups=0, max_length=0):
    return np.array([all(length[i] < max_length for i in g) for g in _groups(group_ids, num_groups, mask)])


def passing_first(passes):
    return np.array([i for i, p in enumerate(passes) if p] + [i for i, p in enumerate(passes) if not p])


def rows_of_groups(group_mask, group_ids):
    return np.array([0 <= g < len(group_mask) and bool(group_mask[g]) for g in group_ids])


# metrics


def pairwise_accuracy(scores, outcome, group_ids, mask, num_groups=0, average="groups"):
    per_group, all_hits, all_pairs, each = [], 0.0, 0.0, []
    for group in _groups(group_ids, num_groups, mask):
        hits = pairs = 0.0
        for i, j in itertools.combinations(group, 2):
            gap = abs(outcome[i] - outcome[j])
            pairs += gap
            if scores[i] == scores[j]:
                hits += 0.5 * gap
            elif (scores[i] > scores[j]) == (outcome[i] > outcome[j]):
                hits += gap
        all_hits, all_pairs = all_hits + hits, all_pairs + pairs
        each.append(hits / pairs if pairs else 0.5)
        if pairs:
            per_group.append(hits / pairs)
        elif group and average == "released":
            per_group.append(0.5)
    if average == "none":
        return np.array(each)
    if average == "pairs":
        return all_hits / all_pairs if all_pairs else 0.5
    return sum(per_group) / len(per_group) if per_group else 0.5


def outcome_accuracy(scores, outcome, mask):
    hits = [np.sign(scores[i]) == np.sign(2 * outcome[i] - 1) for i in _valid(mask)]
    return sum(hits) / len(hits) if hits else 0.0


def first_error(scores, mask, threshold):
    return np.array([next((k for k in _valid(r) if scores[i, k] < threshold), -1) for i, r in enumerate(mask)])


def first_error_f1(predicted, label, mask):
    faulty = [predicted[i] == label[i] for i in _valid(mask) if label[i] != -1]
    correct = [predicted[i] == label[i] for i in _valid(mask) if label[i] == -1]
    a = sum(faulty) / len(faulty) if faulty else 0.0
    b = sum(correct) / len(correct) if correct else 0.0
    return {"error_acc": a, "correct_acc": b, "f1": 2 * a * b / (a + b) if a + b else 0.0}


def best_f1_by_sweep(scores, mask, label):
    """The highest F1 over every threshold that could matter: each score, and just above each."""
    values = sorted({float(scores[i, k]) for i, r in enumerate(mask) for k in _valid(r)})
    tried = [v + d for v in values for d in (0.0, 1e-4)] or [0.0]
    rows = mask.any(1)
    return max(first_error_f1(first_error(scores, mask, t), label, rows)["f1"] for t in tried)


def roc_auc(scores, labels, mask):
    entries = [(scores[i, k], labels[i, k]) for i, r in enumerate(mask) for k in _valid(r)]
    pairs = [(p, n) for (p, yes), (n, no) in itertools.product(entries, entries) if yes and not no]
    if not pairs:
        return 0.5
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def min_at_last_rate(scores, mask):
    rows = [[scores[i, k] for k in _valid(r)] for i, r in enumerate(mask)]
    rows = [r for r in rows if len(r) >= 2]
    return sum(min(range(len(r)), key=r.__getitem__) == len(r) - 1 for r in rows) / len(rows) if rows else 0.0


def pass_at_k(num_samples, num_correct, k):
    def one(n, c):
        return 1 - math.comb(int(n - c), k) / math.comb(int(n), k)

    return np.vectorize(one)(num_samples, num_correct)


def vote_totals(weights, answer_ids, mask, reduce="sum"):
    combine = {"sum": sum, "mean": np.mean, "max": max}[reduce]
    out = np.zeros(weights.shape)
    for i, row in enumerate(mask):
        at = [k for k in _valid(row) if answer_ids[i, k] >= 0]
        for k in at:
            out[i, k] = combine([weights[i, j] for j in at if answer_ids[i, j] == answer_ids[i, k]])
    return out
