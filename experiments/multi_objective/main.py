"""Several objectives in one reward: length bias taken out, conflicting rules, and a few named features.

ArmoRM's decorrelation (arXiv 2406.12845) by the length of what best-of-n picks; rule rewards one at a time and together
under a validity gate (arXiv 2310.02368); reward models on a handful of named features against raw ones, where the
gold reward is linear in the named ones and where it is not (arXiv 2402.15473).

    python -m experiments.multi_objective.main
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
    """Sizes of the three parts."""

    rows: int = 4000
    samples: int = 16
    updates: int = 400
    raw: int = 200
    named: int = 5
    pairs: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)
    seeds: int = 5


SMOKE = Config(rows=300, updates=30, raw=30, pairs=(10, 100), seeds=1)


def length_bias(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """What best-of-n by a length-biased reward picks, before and after."""
    rng = np.random.default_rng(seed)
    merit, length = rng.normal(size=(2, config.rows, config.samples))
    objectives = jnp.array(np.stack([merit + 0.5 * length, 0.3 * rng.normal(size=merit.shape) + length], -1))
    flat = objectives.reshape(-1, 2)[: config.rows]
    penalties = jax.jit(stats.decorrelate)(flat, flat[:, 1])
    transform = stats.debias_transform(penalties.at[1].set(1.0), reference_index=1)
    gates = jnp.array([1.0, 0.0])
    table = {}
    for name, matrix in (("as it is", None), ("decorrelated", transform)):
        reward = rl.gated_objectives(objectives, gates, transform=matrix)
        pick = np.array(reward.argmax(-1))[:, None]
        chosen = np.take_along_axis(length, pick, -1)[:, 0]
        table[name] = {
            "longer than the median": float((chosen > np.median(length, -1)).mean()),
            "spearman with length": float(stats.spearman(reward.ravel(), jnp.array(length.ravel()))),
            "merit of the pick": float(np.take_along_axis(merit, pick, -1).mean()),
        }
    table["decorrelated"]["penalty found"] = float(penalties[0])
    return table


def rules(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """A policy over 4 bits (valid, and three properties that crowd each other out) trained on rule rewards."""
    words = jnp.array(np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1).T, jnp.float32)  # [16, 4]
    valid, properties = words[:, 0] > 0, words[:, 1:]
    # More than two properties at once rarely come out valid.
    chance_valid = jnp.where(properties.sum(-1) > 2, 0.3, 0.95) * valid
    optimiser = optax.adam(0.05)
    arms = {f"property {i} alone": jnp.eye(3)[i] for i in range(3)}
    arms["all three"] = jnp.ones(3) / 3
    table = {}
    for name, gates in arms.items():
        floor = -1.0
        good = rl.gated_objectives(properties, gates, valid=jnp.ones(16, bool), floor=floor)
        expected = chance_valid * good + (1 - chance_valid) * floor
        start = 0.1 * jax.random.normal(jax.random.key(seed), (16,))

        def step(carry, _, expected=expected):
            logits, state = carry
            gradient = jax.grad(lambda x: -(jax.nn.softmax(x) * expected).sum())(logits)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(logits, updates), state), None

        run_all = jax.jit(lambda s, f=step: jax.lax.scan(f, (s, optimiser.init(s)), length=config.updates)[0][0])
        policy = jax.nn.softmax(run_all(start))
        table[name] = {
            "valid": float((policy * chance_valid).sum()),
            **{f"property {i}": float((policy * chance_valid * properties[:, i]).sum()) for i in range(3)},
        }
    return table


def named_features(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """Pair accuracy by number of training pairs; the raw features hold the named ones in a random mixture."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(config.raw, config.raw)) / np.sqrt(config.raw)
    theta = rng.normal(size=config.named)
    curved = rng.normal(size=(config.raw, 3)) / np.sqrt(config.raw)

    def draw(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        latent = rng.normal(size=(size, config.raw))
        named = latent[:, : config.named]
        return named, latent @ mixing, named @ theta, (named @ theta) * 0.3 + (latent @ curved).sum(-1) * 2

    def accuracy(train_x, train_gold, test_x, test_gold, pairs) -> float:
        first, second = train_x[:pairs], train_x[pairs : 2 * pairs]
        better = np.sign(train_gold[:pairs] - train_gold[pairs : 2 * pairs])
        fit = FIT(jnp.array(first - second), jnp.array(better), jnp.ones(pairs))
        half = len(test_x) // 2
        guess = (test_x[:half] - test_x[half:]) @ np.array(fit.coefficients)
        return float((np.sign(guess) == np.sign(test_gold[:half] - test_gold[half:])).mean())

    most = 2 * max(config.pairs)
    train_named, train_raw, train_linear, train_other = draw(most)
    test_named, test_raw, test_linear, test_other = draw(2000)
    table = {}
    for pairs in config.pairs:
        table[f"{pairs} pairs"] = {
            "named, gold linear in them": accuracy(train_named, train_linear, test_named, test_linear, pairs),
            "raw, same gold": accuracy(train_raw, train_linear, test_raw, test_linear, pairs),
            "named, gold mostly elsewhere": accuracy(train_named, train_other, test_named, test_other, pairs),
            "raw, that gold": accuracy(train_raw, train_other, test_raw, test_other, pairs),
        }
    return table


FIT = jax.jit(lambda x, y, w: stats.weighted_ridge(x, y, w, l2=1.0))


def run(config: Config) -> report.Tables:
    """Means over seeds."""
    parts = {
        "best-of-n by a length-biased reward": length_bias,
        "rule rewards": rules,
        "pair accuracy of a ridge reward model": named_features,
    }
    return {
        title: report.average([part(config, seed) for seed in range(config.seeds)]) for title, part in parts.items()
    }


PANELS = (
    report.Panel("best-of-n by a length-biased reward", ("longer than the median", "merit of the pick")),
    report.Panel("rule rewards"),
    report.Panel("pair accuracy of a ridge reward model"),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
