"""Which part of the search for formulas finds them: the tables of double Q-learning, or the parts that recur?

Tree search over prefix notation (RSRM, arXiv 2305.14656) on six formulas of one variable, with and without tables,
with and without recurring parts as new tokens, at equal numbers of tried formulas.

    python -m experiments.symbolic_regression.main --out experiments/symbolic_regression
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from prm_jax.search import worlds


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes."""

    points: int = 20
    simulations: int = 150  # of a round; each tries a formula for every token
    rounds: int = 4
    max_length: int = 13
    places: int = 2  # for parts
    arms: tuple[str, ...] = ("tables and parts", "parts alone", "tables alone", "neither")
    seeds: int = 10


SMOKE = Config(points=8, simulations=6, rounds=1, max_length=7, arms=("neither",), seeds=2)
OPERATORS = ("+", "-", "*", "sin", "cos")
FORMULAS = {
    "x^2 + x": lambda x: x**2 + x,
    "x^3 + x^2 + x": lambda x: x**3 + x**2 + x,
    "x^4 + x^3 + x^2 + x": lambda x: x**4 + x**3 + x**2 + x,
    "sin(x^2) cos(x) - 1": lambda x: jnp.sin(x**2) * jnp.cos(x) - 1,
    "sin(x) + sin(x + x^2)": lambda x: jnp.sin(x) + jnp.sin(x + x**2),
    "(x^2 + x)^2 - x": lambda x: (x**2 + x) ** 2 - x,
}
EXACT = 1e-3
"""Root of the mean squared error up to which a formula counts as found."""


def search(config: Config, places: int, options: worlds.RsrmOptions, targets: jax.Array, key: jax.Array) -> jax.Array:
    """[B] root mean squared errors of the best formulas."""
    x = jnp.linspace(-1.0, 1.5, config.points)
    grammar = worlds.Grammar(columns=2 + places, max_length=config.max_length, operators=OPERATORS)
    columns = jnp.stack([x, jnp.ones_like(x), *[jnp.zeros_like(x)] * places])
    present = jnp.arange(2 + places) < 2
    batch = len(targets)
    found = worlds.regress(
        grammar, jnp.broadcast_to(columns, (batch, *columns.shape)), jnp.broadcast_to(present, (batch, 2 + places)),
        targets, key, simulations=config.simulations, rounds=config.rounds, options=options,
    )  # fmt: skip
    values = jax.vmap(lambda tokens, columns: worlds.expressions.evaluate(grammar, tokens, columns))(
        found.tokens, found.columns
    )
    return jnp.sqrt(jnp.mean((values - targets) ** 2, -1))


def run(config: Config) -> report.Tables:
    """Share of seeds that find each formula, and the mean over formulas with its interval over seeds."""
    x = jnp.linspace(-1.0, 1.5, config.points)
    truth = jnp.stack([formula(x) for formula in FORMULAS.values()])
    targets = jnp.tile(truth, (config.seeds, 1))
    by_formula: dict[str, dict[str, float]] = {name: {} for name in FORMULAS}
    overall: dict[str, dict[str, float]] = {}
    for name in config.arms:
        options = worlds.RsrmOptions() if "tables" in name else worlds.RsrmOptions(greedy=0.0)
        places = config.places if "parts" in name else 0
        step = jax.jit(lambda t, k, p=places, o=options: search(config, p, o, t, k))
        hit = np.asarray(step(targets, jax.random.key(0))).reshape(config.seeds, -1) < EXACT
        for place, formula in enumerate(FORMULAS):
            by_formula[formula][name] = float(hit[:, place].mean())
        overall[name] = {"share of formulas found": report.estimate(hit.mean(1))}
    return {"all formulas": overall, "share of seeds that find a formula": by_formula}


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, [report.Panel("all formulas")])
