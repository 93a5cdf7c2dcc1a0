"""Quantiles of the return as step values: crossing, its repairs, combination of models, and honest intervals.

Returns are skewed and depend on the step's state; several imperfect models predict five quantiles each
(arXiv 2103.00083).

    python -m experiments.quantile_values.main
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from prm_jax import stats

LEVELS = jnp.array([0.1, 0.3, 0.5, 0.7, 0.9])


@dataclasses.dataclass(frozen=True)
class Config:
    """Rows, models and training of the combination."""

    rows: int = 4000
    models: int = 3
    error: float = 0.5
    updates: int = 500
    seeds: int = 5


SMOKE = Config(rows=200, updates=20, seeds=1)


def data(config: Config, seed: int) -> tuple[jax.Array, jax.Array]:
    """(predictions [rows, models, 5], returns [rows]); model e is biased by e / 4 and noisy."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=config.rows)
    returns = state + (0.5 + 0.3 * np.abs(state)) * (rng.exponential(size=config.rows) - 1)
    exact = state[:, None] + (0.5 + 0.3 * np.abs(state))[:, None] * (-np.log(1 - np.array(LEVELS)) - 1)
    noise = config.error * rng.normal(size=(config.rows, config.models, 5))
    bias = np.arange(config.models)[:, None] / 4
    return jnp.array(exact[:, None] + bias + noise), jnp.array(returns)


def loss(quantiles: jax.Array, returns: jax.Array) -> jax.Array:
    return stats.pinball_loss(quantiles, returns, jnp.ones(returns.shape, bool), levels=LEVELS).mean()


def combination(config: Config, predictions: jax.Array, returns: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Softmax weights over models, of the given fineness, fitted to the pinball loss."""
    optimiser = optax.adam(0.05)

    def step(carry, _):
        logits, state = carry
        gradient = jax.grad(lambda x: loss(stats.aggregate_quantiles(predictions, x), returns))(logits)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(logits, updates), state), None

    start = jnp.zeros(shape)
    return jax.jit(lambda s: jax.lax.scan(step, (s, optimiser.init(s)), length=config.updates))(start)[0][0]


def one(config: Config, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    predictions, returns = data(config, seed)
    half = config.rows // 2
    raw, train, test = predictions[:, 0], slice(None, half), slice(half, None)
    repaired = {"raw": raw, **{how: stats.monotone_quantiles(raw, how=how) for how in ("sort", "pava", "median_out")}}

    def never_worse(quantiles: jax.Array) -> float:
        each = jax.vmap(lambda q, y: loss(q[None], y[None]))
        return float((each(quantiles, returns) > each(raw, returns) + 1e-5).mean())

    repairs = {
        name: {"pinball loss": float(loss(q, returns)), "samples made worse": never_worse(q)}
        for name, q in repaired.items()
    }
    k, e = LEVELS.shape[0], config.models
    combined = {"best single model": {"pinball loss": float(loss(predictions[test, 0], returns[test]))}}
    for name, shape in (("coarse", (e,)), ("medium", (e, k)), ("fine", (e, k, k))):
        logits = combination(config, predictions[train], returns[train], shape)
        fitted = stats.aggregate_quantiles(predictions[test], logits)
        combined[f"{name} weights"] = {
            "pinball loss": float(loss(fitted, returns[test])),
            "after sorting": float(loss(stats.monotone_quantiles(fitted), returns[test])),
        }
    lower, upper = raw[:, 0], raw[:, -1]
    fixed = stats.conformal_interval(lower[test], upper[test], lower[train], upper[train], returns[train], level=0.8)
    cover = lambda lo, hi: float(((lo <= returns[test]) & (returns[test] <= hi)).mean())  # noqa: E731
    intervals = {
        "predicted 10 % to 90 %": {
            "coverage": cover(lower[test], upper[test]),
            "width": float((upper - lower)[test].mean()),
        },
        "conformalised": {"coverage": cover(*fixed), "width": float((fixed[1] - fixed[0]).mean())},
    }
    return {"repairs of crossing": repairs, "combining models": combined, "80 % intervals": intervals}


def run(config: Config) -> report.Tables:
    """Means over seeds."""
    found = [one(config, seed) for seed in range(config.seeds)]
    return {title: report.average([f[title] for f in found]) for title in found[0]}


PANELS = (
    report.Panel("repairs of crossing", ("pinball loss",)),
    report.Panel("combining models", ("pinball loss",)),
    report.Panel("80 % intervals", ("coverage",)),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
