"""Leaving a step scorer early: how much depth Q-exit saves and what it costs (arXiv 2204.03276, 2107.05407).

Steps have labels that some see at once and others only by combining the features layer by layer. A residual network
of `layers` layers with a score and a halting head at each is trained with the halting loss, then read by Q-exit at
several quantiles, by sampled exits, and at fixed depths.

    python -m experiments.early_exit.main
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from prm_jax import rl, stats


@dataclasses.dataclass(frozen=True)
class Config:
    """Data, network and training."""

    rows: int = 4000
    layers: int = 6
    width: int = 32
    easy: float = 0.6
    prior: float = 0.3
    kl_coef: float = 0.05
    updates: int = 1500
    batch: int = 256
    seeds: int = 5


SMOKE = Config(rows=300, width=8, updates=20, batch=64, seeds=1)


def data(config: Config, rng: np.random.Generator) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(features [rows, 9], labels [rows], easy [rows]): easy labels are one feature's sign, hard ones that of three."""
    x = rng.normal(size=(config.rows, 8))
    easy = rng.uniform(size=config.rows) < config.easy
    label = np.where(easy, x[:, 0] > 0, x[:, 1] * x[:, 2] * x[:, 3] > 0)
    x[:, 0] *= 1 + 2 * easy
    return jnp.array(np.concatenate([x, easy[:, None]], -1), jnp.float32), jnp.array(label), jnp.array(easy)


def forward(params: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(scores, halting logits), both [rows, layers]; the halting head sees a layer's state and the one before it."""
    state = x @ params["in"]
    scores, halts = [], []
    for layer in range(params["layer"].shape[0]):
        before = state
        state = state + jax.nn.gelu(state @ params["layer"][layer]) @ params["out"][layer]
        scores.append(state @ params["score"][layer])
        halts.append(jnp.concatenate([before, state], -1) @ params["halt"][layer])
    return jnp.stack(scores, -1), jnp.stack(halts, -1)


def init(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    keys = jax.random.split(key, 5)
    n, w = config.layers, config.width
    scale = 1 / jnp.sqrt(w)
    return {
        "in": jax.random.normal(keys[0], (9, w)) / 3,
        "layer": jax.random.normal(keys[1], (n, w, 2 * w)) * scale,
        "out": jax.random.normal(keys[2], (n, 2 * w, w)) * scale * 0.5,
        "score": jax.random.normal(keys[3], (n, w)) * scale,
        "halt": jax.random.normal(keys[4], (n, 2 * w)) * scale * 0.1,
    }


def one(config: Config, seed: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(seed)
    x, y, _ = data(config, rng)
    test_x, test_y, test_easy = data(config, rng)
    scores, halts = fit(config, jax.random.key(seed), x, y, test_x)
    p = rl.halting_distribution(halts)
    exits = {f"Q-exit, q = {q:g}": rl.quantile_exit(p, quantile=q) for q in (0.3, 0.5, 0.8)}
    exits["sampled exit"] = jax.random.categorical(jax.random.key(9), jnp.log(p + 1e-9))
    exits |= {f"layer {d + 1} always": jnp.full(test_y.shape, d) for d in range(config.layers)}
    table = {}
    for name, depth in exits.items():
        read = jnp.take_along_axis(scores, depth[:, None], -1)[:, 0]
        table[name] = {
            "AUROC": float(stats.roc_auc(read, test_y)),
            "mean depth": float(depth.mean() + 1),
            "depth, easy": float((depth * test_easy).sum() / test_easy.sum() + 1),
            "depth, hard": float((depth * ~test_easy).sum() / (~test_easy).sum() + 1),
        }
    return table


@functools.partial(jax.jit, static_argnames="config")
def fit(config: Config, key: jax.Array, x: jax.Array, y: jax.Array, test: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Trains on (x, y); (scores, halting logits) of the test rows, both [rows, layers]."""
    optimiser = optax.adam(3e-3)

    def loss(params, rows):
        scores, halts = forward(params, x[rows])
        label = y[rows][:, None]
        losses = jax.nn.softplus(scores) - label * scores
        mask = jnp.ones(rows.shape, bool)
        return rl.halting_loss(losses, halts, mask, prior=config.prior, kl_coef=config.kl_coef).mean()

    def step(carry, key):
        params, state = carry
        gradient = jax.grad(loss)(params, jax.random.randint(key, (config.batch,), 0, config.rows))
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    params = init(config, key)
    start = (params, optimiser.init(params))
    return forward(jax.lax.scan(step, start, jax.random.split(key, config.updates))[0][0], test)


def run(config: Config) -> report.Tables:
    """Means over seeds."""
    return {"exits of a step scorer": report.average([one(config, seed) for seed in range(config.seeds)])}


PANELS = (
    report.Panel("exits of a step scorer", ("AUROC",)),
    report.Panel("exits of a step scorer", ("depth, easy", "depth, hard")),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
