"""The functions of `rl.credit` as Python loops over lists of steps; see `oracles.py`."""

import math
import statistics

import numpy as np


def _steps(step_ids, num_steps, mask=None):
    """For each row a dict: step -> positions of its tokens, for the steps that have one."""
    rows = []
    for i, row in enumerate(step_ids):
        found = {}
        for t, k in enumerate(row):
            if 0 <= k < num_steps and (mask is None or mask[i, t]):
                found.setdefault(int(k), []).append(t)
        rows.append(dict(sorted(found.items())))
    return rows


def _spread(shape, steps, values):
    """[B, T] with the value of each step on all of its tokens; `values` is a list of dicts."""
    out = np.zeros(shape)
    for i, row in enumerate(steps):
        for k, positions in row.items():
            for t in positions:
                out[i, t] = values[i][k]
    return out


def _sums(token_rewards, steps):
    return [{k: sum(token_rewards[i, t] for t in at) for k, at in row.items()} for i, row in enumerate(steps)]


def step_credit(token_rewards, step_ids, num_steps=0):
    steps = _steps(step_ids, num_steps)
    return _spread(step_ids.shape, steps, _sums(token_rewards, steps))


def cumulative_credit(token_rewards, step_ids, num_steps=0):
    steps = _steps(step_ids, num_steps)
    values = [{k: sum(v for j, v in row.items() if j <= k) for k in row} for row in _sums(token_rewards, steps)]
    return _spread(step_ids.shape, steps, values)


def min_credit(token_rewards, step_ids, mask, num_steps=0, temperature=0.1):
    steps = _steps(step_ids, num_steps, mask)
    values = []
    for row in _sums(token_rewards, steps):
        if temperature == 0:
            lowest = min(row, key=lambda k: (row[k], k)) if row else None
            weighted = {k: v if k == lowest else 0.0 for k, v in row.items()}
        else:
            low = min(row.values(), default=0.0)
            weights = {k: math.exp(-(v - low) / temperature) for k, v in row.items()}
            weighted = {k: v * weights[k] / sum(weights.values()) for k, v in row.items()}
        values.append({k: sum(v for j, v in weighted.items() if j >= k) for k in row})
    return _spread(step_ids.shape, steps, values)


def value_credit(values, initial_value, step_ids, num_steps=0):
    steps, gains = _steps(step_ids, num_steps), []
    for i, row in enumerate(steps):
        before, gain = initial_value[i], {}
        for k in row:
            gain[k] = values[i, k] - before
            before = values[i, k]
        gains.append(gain)
    return _spread(step_ids.shape, steps, gains)


def centred_credit(
    credit, step_ids, mask, group_ids, num_groups=0, num_steps=0, baseline="group", scale=False, eps=1e-6
):
    steps = _steps(step_ids, num_steps, mask)
    rows = [{k: sum(credit[i, t] for t in at) / len(at) for k, at in row.items()} for i, row in enumerate(steps)]
    out = np.zeros(step_ids.shape)
    for g in range(num_groups):
        members = [i for i in range(len(rows)) if group_ids[i] == g and rows[i]]
        everything = [v for i in members for v in rows[i].values()]
        factor = 1.0
        if scale:
            spread = statistics.stdev(everything) if len(everything) > 1 else 0.0
            flat = spread <= 1e-6 * sum(map(abs, everything)) / max(len(everything), 1)
            factor = 0.0 if flat else 1 / (spread + eps)
        for i in members:
            others = [v for j in members if j != i for v in rows[j].values()]
            for k, at in steps[i].items():
                same = [rows[j][k] for j in members if k in rows[j]]
                compared = {"group": everything, "leave_one_out": others, "step": same, "none": []}[baseline]
                for t in at:
                    out[i, t] = factor * (credit[i, t] - (sum(compared) / len(compared) if compared else 0.0))
    return out


def shared_prefix_counts(tokens, mask, group_ids, num_groups=0):
    out = np.zeros(tokens.shape)
    texts = [[int(tokens[i, t]) if mask[i, t] else None for t in range(tokens.shape[1])] for i in range(len(tokens))]
    for i, t in np.ndindex(*tokens.shape):
        if mask[i, t] and 0 <= group_ids[i] < num_groups:
            out[i, t] = sum(
                group_ids[j] == group_ids[i] and mask[j].any() and texts[j][: t + 1] == texts[i][: t + 1]
                for j in range(len(tokens))
            )
    return out


def lambda_grpo_advantages(token_rewards, outcome, tokens, mask, group_ids, num_groups=0, **options):
    from tests.rl import oracles

    advantages = oracles.grpo_advantages(token_rewards, outcome, mask, group_ids, num_groups=num_groups, **options)
    return advantages / np.maximum(shared_prefix_counts(tokens, mask, group_ids, num_groups), 1)
