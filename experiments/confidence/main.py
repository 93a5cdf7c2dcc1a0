"""Does PPO-C calibrate what a policy says about itself?  A bandit, and post-hoc calibration beside it.

A question is answered right with a probability the policy can tell (one of `levels`); it then states a confidence out
of eleven. The reward model scores right answers +1, wrong ones -1, plus noise, and likes confident statements
(`bias` * confidence). PPO-C scores the answer without the statement and adds
`weight * (reward - running mean) * (confidence - 1/2)` (arXiv 2410.09724). Post-hoc: Platt and isotonic calibration
(arXiv 2412.19511) of an overconfident score.

    python -m experiments.confidence.main
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from prm_jax import rl, stats


@dataclasses.dataclass(frozen=True)
class Config:
    """The bandit and its training."""

    levels: int = 5
    bias: float = 0.6
    noise: float = 0.5
    batch: int = 512
    updates: int = 1500
    learning_rate: float = 0.05
    entropy: float = 0.02
    weights: tuple[float, ...] = (0.5, 2.0)
    rows: int = 4000
    seeds: int = 5


SMOKE = Config(batch=64, updates=30, rows=300, seeds=1)
STATED = jnp.linspace(0.0, 1.0, 11)


def train(config: Config, weight: float | None) -> list[dict[str, float]]:
    """Policy gradient on the stated confidence, one result a seed; weight None trains on the biased reward model."""
    solve = jnp.linspace(0.1, 0.9, config.levels)
    optimiser = optax.adam(config.learning_rate)

    def batch(key: jax.Array, logits: jax.Array) -> tuple[jax.Array, ...]:
        level_key, answer_key, say_key, noise_key = jax.random.split(key, 4)
        level = jax.random.randint(level_key, (config.batch,), 0, config.levels)
        right = jax.random.bernoulli(answer_key, solve[level])
        said = jax.random.categorical(say_key, logits[level])
        reward = jnp.where(right, 1.0, -1.0) + config.noise * jax.random.normal(noise_key, right.shape)
        return level, right, said, reward

    def update(carry, key):
        logits, state, mean = carry
        level, _, said, reward = batch(key, logits)
        confidence = STATED[said]
        if weight is None:
            total = reward + config.bias * confidence
        else:
            mean = rl.update_reward_mean(mean, reward)
            total = rl.confidence_adjusted_rewards(reward, confidence, mean, weight=weight)

        def loss(x):
            logp = jax.nn.log_softmax(x)
            entropy = -(jnp.exp(logp) * logp).sum(-1).mean()
            chosen = jnp.take_along_axis(logp[level], said[:, None], -1)[:, 0]
            return -(chosen * (total - total.mean())).mean() - config.entropy * entropy

        updates, state = optimiser.update(jax.grad(loss)(logits), state)
        return (optax.apply_updates(logits, updates), state, mean), None

    @jax.jit
    @jax.vmap
    def fit(key):
        keys = jax.random.split(key, config.updates + 1)
        logits = jnp.zeros((config.levels, 11))
        (logits, _, _), _ = jax.lax.scan(update, (logits, optimiser.init(logits), jnp.zeros(())), keys[1:])
        test = [batch(k, logits) for k in jax.random.split(keys[0], 8)]
        said, right = (jnp.concatenate([t[i] for t in test]) for i in (2, 1))
        return (
            stats.calibration_error(STATED[said], right, num_bins=11),
            STATED[said].mean(),
            stats.brier_score(STATED[said], right),
        )

    found = fit(jax.vmap(jax.random.key)(jnp.arange(config.seeds)))
    names = ("ECE", "mean confidence", "Brier")
    return [dict(zip(names, map(float, numbers), strict=True)) for numbers in zip(*found, strict=True)]


def post_hoc(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """Fits on one half of overconfident scores, judges on the other."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=2 * config.rows)
    label = jnp.array(rng.uniform(size=logit.size) < 1 / (1 + np.exp(-logit)))
    score = jnp.array(3.0 * logit + 1.0)  # three times too sure, and shifted
    half = slice(None, config.rows), slice(config.rows, None)
    platt = stats.fit_platt(score[half[0]], label[half[0]])
    isotonic = stats.fit_isotonic(score[half[0]], label[half[0]])
    test, truth = score[half[1]], label[half[1]]
    lower, upper = stats.venn_abers(score[:200], label[:200], test[:50])
    candidates = {
        "as it is": jax.nn.sigmoid(test),
        "Platt": stats.apply_platt(platt, test),
        "isotonic": stats.apply_isotonic(isotonic, test),
    }
    table = {
        name: {
            "ECE": float(stats.calibration_error(p, truth)),
            "ACE": float(stats.calibration_error(p, truth, kind="ace")),
            "Brier": float(stats.brier_score(p, truth)),
            "AUROC": float(stats.roc_auc(p, truth)),
        }
        for name, p in candidates.items()
    }
    truth_p = jax.nn.sigmoid(jnp.array(logit[half[1]][:50]))
    inside = ((lower <= truth_p + 0.1) & (truth_p - 0.1 <= upper)).mean()
    table["Venn-ABERS (200 rows)"] = {"mean width": float((upper - lower).mean()), "within 0.1 of truth": float(inside)}
    return table


def run(config: Config) -> report.Tables:
    """Means over seeds."""
    policies: dict[str, dict[str, float]] = {}
    for name, weight in [("biased reward model", None), *((f"PPO-C, weight {w:g}", w) for w in config.weights)]:
        policies |= report.average([{name: numbers} for numbers in train(config, weight)])
    posts = report.average([post_hoc(config, seed) for seed in range(config.seeds)])
    return {"stated confidence after training": policies, "post-hoc calibration": posts}


PANELS = (report.Panel("stated confidence after training", ("ECE", "mean confidence")),)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
