"""Which rollouts should a policy learn from?  The R^2 report of PF-PPO under two ways a reward model can be wrong.

Gold rewards are uniform. "wrong in the middle": the reward model is right at both ends and scrambles what lies
between, the case PF-PPO describes (arXiv 2409.06957). "wrong at the top": it is fooled into its highest scores. For
every filter, R^2 of gold against reward over reward-sorted bins, each sample counted with its weight.

    python -m experiments.rollout_filtering.main
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from prm_jax import rl, stats

KINDS = ("none", "best_of_n", "best_random", "best_worst")


@dataclasses.dataclass(frozen=True)
class Config:
    """Prompts and samples."""

    prompts: int = 2000
    samples: int = 5
    bins: int = 10
    seeds: int = 10


SMOKE = Config(prompts=50, seeds=1)


def rewards(rng: np.random.Generator, gold: np.ndarray, profile: str) -> np.ndarray:
    if profile == "wrong in the middle":
        middle = np.abs(gold - 0.5) < 0.35
        scrambled = 0.15 + 0.7 * rng.uniform(size=gold.shape)
        return np.where(middle, scrambled, gold) + 0.02 * rng.normal(size=gold.shape)
    fooled = rng.uniform(size=gold.shape) < 0.1
    return np.where(fooled, 1 + 0.1 * rng.uniform(size=gold.shape), gold) + 0.02 * rng.normal(size=gold.shape)


def run(config: Config) -> report.Tables:
    """Means over seeds."""
    ids = jnp.repeat(jnp.arange(config.prompts), config.samples)
    weigh = jax.jit(rl.filter_weights, static_argnames=("num_groups", "kind"))
    judge = jax.jit(stats.binned_r_squared, static_argnames="num_bins")
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for profile in ("wrong in the middle", "wrong at the top"):
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for seed in range(config.seeds):
            rng = np.random.default_rng(seed)
            gold = rng.uniform(size=config.prompts * config.samples)
            reward = jnp.array(rewards(rng, gold, profile))
            for kind in KINDS:
                weights = weigh(reward, ids, num_groups=config.prompts, kind=kind)
                fit = judge(reward, jnp.array(gold), weights, num_bins=config.bins)
                found[kind].append((float(fit), float((weights * gold).sum() / config.prompts)))
        tables[profile] = {
            kind: {
                "R^2": report.estimate([r for r, _ in values]),
                "mean gold kept": report.estimate([g for _, g in values]),
            }
            for kind, values in found.items()
        }
    return tables


PANELS = (
    report.Panel("wrong in the middle", ("R^2",)),
    report.Panel("wrong at the top", ("R^2",)),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
