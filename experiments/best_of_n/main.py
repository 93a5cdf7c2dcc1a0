"""When does more selection by a proxy hurt?  Best-of-n under light and heavy tails, and what pessimism saves.

Gold rewards are standard normal; a proxy adds noise, Gaussian or Student's t with two degrees of freedom. Curves use
the unbiased estimator over all samples; the report flags where proxy and gold part (arXiv 2410.01729, 2311.00168).
Then five proxies with independent heavy tails are combined (arXiv 2110.04135).

    python -m experiments.best_of_n.main
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from prm_jax import rl, stats


@dataclasses.dataclass(frozen=True)
class Config:
    """Prompts, samples and the ensemble."""

    prompts: int = 512
    samples: int = 1024
    members: int = 5
    seeds: int = 5


SMOKE = Config(prompts=32, samples=64, seeds=1)


def noise(key: jax.Array, tail: str, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape) if tail == "gaussian" else jax.random.t(key, 2.0, shape)


def curves(config: Config, tail: str, seed: int) -> tuple[stats.BestOfNCurve, int]:
    """Curve over powers of two, and the index at which the report flags divergence."""
    sizes = tuple(2**i for i in range(config.samples.bit_length()) if 2**i <= config.samples)
    gold_key, noise_key = jax.random.split(jax.random.key(seed))
    gold = jax.random.normal(gold_key, (config.prompts, config.samples))
    proxy = gold + noise(noise_key, tail, gold.shape)
    curve = jax.jit(stats.bon_curve, static_argnames="sizes")(proxy, gold, sizes=sizes)
    flagged = stats.proxy_gold_report(curve.proxy[:, None], curve.gold[:, None], tolerance=0.02)["first_divergence"]
    return curve, int(flagged)


def combine(config: Config, seed: int) -> dict[str, float]:
    """Gold reward of best-of-all by each way to combine heavy-tailed proxies."""
    gold_key, noise_key = jax.random.split(jax.random.key(1000 + seed))
    gold = jax.random.normal(gold_key, (config.prompts, config.samples))
    members = gold + noise(noise_key, "t2", (config.members, *gold.shape))
    scores = {
        "one member": members[0],
        "mean": members.mean(0),
        "median": jnp.median(members, 0),
        "min": rl.pessimistic_rewards(members, coefficient=0.0, kind="min")[0],
        "mean - 1 std": rl.pessimistic_rewards(members, coefficient=1.0)[0],
        "mean - 1 max deviation": stats.penalized_rewards(members, coefficient=1.0, kind="max_deviation"),
        "mean - 1 max pairwise": stats.penalized_rewards(members, coefficient=1.0, kind="max_pairwise"),
    }
    picked = {name: jnp.take_along_axis(gold, s.argmax(-1)[:, None], -1).mean() for name, s in scores.items()}
    picked["oracle"] = gold.max(-1).mean()
    return {name: float(v) for name, v in picked.items()}


def run(config: Config) -> report.Tables:
    """Means over seeds."""
    tables: dict[str, dict[str, dict[str, float]]] = {}
    summary = {}
    for tail in ("gaussian", "t2"):
        found = [curves(config, tail, seed) for seed in range(config.seeds)]
        proxy, gold = (np.array([getattr(c, name) for c, _ in found]) for name in ("proxy", "gold"))
        tables[f"best-of-n, {tail} noise"] = {
            f"n = {2**i}": {
                "KL bound": float(found[0][0].kl[i]),
                "proxy": report.estimate(proxy[:, i]),
                "gold": report.estimate(gold[:, i]),
            }
            for i in range(proxy.shape[1])
        }
        fit = stats.fit_over_optimization(found[0][0].kl, jnp.array(gold.mean(0) - gold[:, :1].mean()))
        summary[tail] = {
            "seeds flagged": sum(flag >= 0 for _, flag in found),
            "first flag at n (0: never)": report.estimate([2**flag if flag >= 0 else 0 for _, flag in found]),
            "fit: alpha": float(fit.alpha),
            "fit: beta": float(fit.beta),
        }
    tables["divergence"] = summary
    combined = [combine(config, seed) for seed in range(config.seeds)]
    tables["best of all samples by several heavy-tailed proxies"] = {
        name: {"gold": report.estimate([c[name] for c in combined])} for name in combined[0]
    }
    return tables


PANELS = (
    report.Panel("best-of-n, gaussian noise", ("proxy", "gold"), x="KL bound", kind="curve"),
    report.Panel("best-of-n, t2 noise", ("gold",), x="KL bound", kind="curve"),
    report.Panel("best of all samples by several heavy-tailed proxies"),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
