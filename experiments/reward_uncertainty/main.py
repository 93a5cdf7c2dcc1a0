"""Uncertainty of a reward head: Langevin sampling, deep ensembles, and what neither sees.

A linear head on frozen features (arXiv 2212.07959 compares the samplers for atomistic models). Stochastic-gradient
Langevin dynamics is checked against the exact posterior of the linear-Gaussian case at two temperatures; then both
samplers' spread inside and outside the training data, with and without an error that all labels share.

    python -m experiments.reward_uncertainty.main
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from prm_jax import stats


@dataclasses.dataclass(frozen=True)
class Config:
    """Data and chains."""

    rows: int = 60
    features: int = 4
    noise: float = 0.5
    chains: int = 16
    steps: int = 20_000
    burn_in: int = 2_000
    thin: int = 20
    step_size: float = 2e-3
    batch: int = 60  # rows a step; all of them for the exact comparison
    seeds: int = 5


SMOKE = Config(steps=400, burn_in=100, chains=4, seeds=1)


def langevin(config: Config, key: jax.Array, x: jax.Array, y: jax.Array, temperature: float) -> jax.Array:
    """[chains * kept, features] samples of exp(-U / temperature), U = |y - x w|^2 / (2 noise^2) + |w|^2 / 2."""
    precision = x.T @ x / config.noise**2 + jnp.eye(x.shape[1])
    step_size = config.step_size / float(jnp.linalg.eigvalsh(precision)[-1]) * 50
    return _walks(config, step_size, temperature, key, x, y).reshape(-1, x.shape[1])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _walks(
    config: Config, step_size: float, temperature: float, key: jax.Array, x: jax.Array, y: jax.Array
) -> jax.Array:
    def log_density(w: jax.Array, key: jax.Array) -> jax.Array:
        rows = jnp.arange(x.shape[0])
        if config.batch < x.shape[0]:
            rows = jax.random.permutation(key, rows)[: config.batch]
        scale = x.shape[0] / rows.shape[0] / config.noise**2
        return -(scale * jnp.square(y[rows] - x[rows] @ w).sum() + jnp.square(w).sum()) / 2

    walks: jax.Array = stats.langevin_samples(
        log_density, jnp.zeros(x.shape[1]), key, samples=(config.steps - config.burn_in) // config.thin,
        chains=config.chains, thin=config.thin, burn_in=config.burn_in, step_size=step_size, temperature=temperature,
    )  # fmt: skip
    return walks


def ensemble(config: Config, key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """[chains, features] ridge fits, each pulled to its own prior draw, on labels with fresh noise: exact samples."""

    def member(key: jax.Array) -> jax.Array:
        prior_key, noise_key = jax.random.split(key)
        anchor = jax.random.normal(prior_key, (x.shape[1],))
        noisy = y + config.noise * jax.random.normal(noise_key, y.shape)
        weights = jnp.full(y.shape, 1 / config.noise**2)
        return anchor + stats.weighted_ridge(x, noisy - x @ anchor, weights, l2=1.0).coefficients

    return jax.jit(jax.vmap(member))(jax.random.split(key, config.chains))


def one(config: Config, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Posterior ratios and spreads for one draw of the data."""
    rng = np.random.default_rng(seed)
    x = jnp.array(rng.normal(size=(config.rows, config.features)), jnp.float32)
    truth = jnp.array(rng.normal(size=config.features), jnp.float32)
    y = x @ truth + config.noise * jnp.array(rng.normal(size=config.rows), jnp.float32)
    fit = stats.weighted_ridge(x, y, jnp.full(config.rows, 1 / config.noise**2), l2=1.0)
    posterior = {}
    for temperature in (1.0, 0.25):
        samples = langevin(config, jax.random.key(3 * seed), x, y, temperature)
        ratio = jnp.diag(jnp.cov(samples.T)) / (temperature * jnp.diag(fit.covariance))
        off = jnp.linalg.norm(samples.mean(0) - fit.coefficients) / jnp.linalg.norm(fit.coefficients)
        posterior[f"temperature {temperature:g}"] = {
            "variance / exact, mean": float(ratio.mean()),
            "smallest": float(ratio.min()),
            "largest": float(ratio.max()),
            "relative error of the mean": float(off),
        }
    inside = jnp.array(rng.normal(size=(400, config.features)), jnp.float32)
    outside = 4.0 * inside
    shared = 1.0  # every label too high by this much for each unit of the first feature
    spreads = {}
    for name, labels in (("clean labels", y), ("labels biased along feature 0", y + shared * x[:, 0])):
        for sampler, members in (
            ("Langevin", langevin(config, jax.random.key(3 * seed + 1), x, labels, 1.0)),
            ("ensemble", ensemble(config, jax.random.key(3 * seed + 2), x, labels)),
        ):
            row = {}
            for where, points in (("inside", inside), ("outside", outside)):
                moments = stats.ensemble_moments(members @ points.T)
                error = jnp.sqrt(jnp.square(moments.mean - points @ truth).mean())
                row[f"{where}: spread"] = float(jnp.sqrt(moments.epistemic.mean()))
                row[f"{where}: error"] = float(error)
            spreads[f"{sampler}, {name}"] = row
    return {"Langevin dynamics against the exact posterior": posterior, "spread and true error": spreads}


def run(config: Config) -> report.Tables:
    """Means over draws of the data."""
    found = [one(config, seed) for seed in range(config.seeds)]
    return {title: report.average([f[title] for f in found]) for title in found[0]}


PANELS = (
    report.Panel("Langevin dynamics against the exact posterior", ("variance / exact, mean",)),
    report.Panel("spread and true error", ("inside: spread", "inside: error")),
    report.Panel("spread and true error", ("outside: spread", "outside: error")),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
