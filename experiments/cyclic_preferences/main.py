"""Preferences with cycles: Bradley-Terry and general preference models on pairs of new responses.

A response has features: an angle, some qualities, a constant. Its preference over another one is a difference of
qualities, the sine of the angle between them, which goes round in a circle, or half of each. Both models are linear in
the features and learn from the same noisy comparisons (general preference modelling, arXiv 2410.02197).

    python -m experiments.cyclic_preferences.main --out experiments/cyclic_preferences
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from prm_jax import rl


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes."""

    qualities: int = 6
    pairs: int = 2000
    test_pairs: int = 4000
    strength: float = 3.0  # standard deviation of the logit of a preference
    cyclic: tuple[float, ...] = (0.0, 0.5, 1.0)  # share of the variance of the logit that cycles
    dimensions: tuple[int, ...] = (2, 4, 8)
    updates: int = 400
    learning_rate: float = 0.05
    seeds: int = 10


SMOKE = Config(pairs=100, test_pairs=100, cyclic=(1.0,), dimensions=(4,), updates=20, seeds=2)
BRADLEY_TERRY = "Bradley-Terry"


def draw(config: Config, cyclic: float, pairs: int, key: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features [pairs, 2, D] of both sides, and the logit [pairs] with which the first is preferred."""
    angle_key, quality_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, (pairs, 2), maxval=2 * jnp.pi)
    quality = jax.random.normal(quality_key, (pairs, 2, config.qualities))
    features = jnp.concatenate(
        [jnp.cos(angle)[..., None], jnp.sin(angle)[..., None], quality, jnp.ones((pairs, 2, 1))], -1
    )
    merit = quality @ weights
    transitive = (merit[:, 0] - merit[:, 1]) / jnp.sqrt(2.0)  # variance 1, as of the sine times the root of 2
    circular = jnp.sqrt(2.0) * jnp.sin(angle[:, 1] - angle[:, 0])
    return features, config.strength * (jnp.sqrt(1 - cyclic) * transitive + jnp.sqrt(cyclic) * circular)


def bradley_terry(matrix: jax.Array, features: jax.Array) -> jax.Array:
    """Difference of scalar rewards."""
    reward = (features @ matrix)[..., 0]
    return reward[:, 0] - reward[:, 1]


def general(matrix: jax.Array, features: jax.Array) -> jax.Array:
    """Skew-symmetric score of two embeddings."""
    embedding = features @ matrix
    return rl.preference_score(embedding[:, 0], embedding[:, 1])


def accuracy(
    config: Config, cyclic: float, score: Callable[[jax.Array, jax.Array], jax.Array], size: int, key: jax.Array
) -> jax.Array:
    """Share of new pairs whose likelier winner a model names, after learning from sampled winners."""
    task_key, train_key, test_key, win_key, start_key = jax.random.split(key, 5)
    weights = jax.random.normal(task_key, (config.qualities,))
    weights /= jnp.linalg.norm(weights)
    features, logit = draw(config, cyclic, config.pairs, train_key, weights)
    won = jax.random.bernoulli(win_key, jax.nn.sigmoid(logit))
    ordered = jnp.where(won[:, None, None], features, features[:, ::-1])  # the winner first
    optimiser = optax.adam(config.learning_rate)

    def loss(matrix: jax.Array) -> jax.Array:
        return rl.pairwise_loss(score(matrix, ordered), jnp.zeros(config.pairs)).mean()

    def update(carry: tuple, _: None) -> tuple[tuple, None]:
        matrix, state = carry
        change, state = optimiser.update(jax.grad(loss)(matrix), state)
        return (optax.apply_updates(matrix, change), state), None

    start = 0.1 * jax.random.normal(start_key, (features.shape[-1], size))
    (matrix, _), _ = jax.lax.scan(update, (start, optimiser.init(start)), length=config.updates)
    new, logit = draw(config, cyclic, config.test_pairs, test_key, weights)
    return ((score(matrix, new) > 0) == (logit > 0)).mean()


def run(config: Config) -> report.Tables:
    """A row for every share of cycles, a column for every model."""
    keys = jax.random.split(jax.random.key(0), config.seeds)
    models = {BRADLEY_TERRY: (bradley_terry, 1)} | {f"general, {d} dimensions": (general, d) for d in config.dimensions}
    table: dict[str, dict[str, float]] = {}
    for cyclic in config.cyclic:
        found = {
            name: np.asarray(
                jax.jit(jax.vmap(lambda key, s=score, d=size, c=cyclic: accuracy(config, c, s, d, key)))(keys)
            )
            for name, (score, size) in models.items()
        }
        table[f"{cyclic:.0%} of the variance cyclic"] = {name: report.estimate(x) for name, x in found.items()}
    return {"accuracy on new pairs": table}


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, [report.Panel("accuracy on new pairs")])
