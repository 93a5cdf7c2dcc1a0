"""Does a penalty on similar consecutive features keep value features apart, and are the values better for it?

Temporal-difference learning with a network of two layers on transitions of a walk round a ring of states, whose inputs
are smooth in their place, with and without BEER's penalty (arXiv 2404.12754). The exact values are known. The rank of
the features is the number of singular values that hold 99 % of their sum.

    python -m experiments.feature_rank.main --out experiments/feature_rank
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from prm_jax import rl


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes."""

    states: int = 60
    inputs: int = 12
    width: int = 32
    transitions: int = 600
    batch: int = 64
    updates: int = 6000
    sync: int = 50  # updates between copies to the target network
    learning_rate: float = 1e-3
    discount: float = 0.95
    penalties: tuple[float, ...] = (0.0, 1e-3, 1e-2, 1e-1)
    seeds: int = 10


SMOKE = Config(states=10, width=8, transitions=40, batch=8, updates=20, penalties=(0.0, 0.1), seeds=2)


def features(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """[..., width]: what the head is linear in."""
    return jax.nn.relu(jax.nn.relu(x @ params["first"]) @ params["second"])


def chain(config: Config, key: jax.Array) -> tuple[jax.Array, ...]:
    """Inputs [N, D] of the states, transition matrix [N, N], rewards [N], exact values [N]."""
    phase_key, next_key, reward_key = jax.random.split(key, 3)
    place = 2 * jnp.pi * jnp.arange(config.states) / config.states
    waves = 1 + jnp.arange(config.inputs) // 2
    inputs = jnp.cos(place[:, None] * waves + jax.random.uniform(phase_key, (config.inputs,), maxval=2 * jnp.pi))
    forward = jax.random.uniform(next_key, (config.states, 1), minval=0.5, maxval=0.9)
    states = jnp.eye(config.states)
    matrix = forward * jnp.roll(states, 1, 1) + (1 - forward) * jnp.roll(states, -1, 1)
    rewards = jax.random.normal(reward_key, (config.states,))
    values = jnp.linalg.solve(jnp.eye(config.states) - config.discount * matrix, rewards)
    return inputs, matrix, rewards, values


def learn(config: Config, penalty: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """Error of the values, rank of the features, share of transitions above the bound at the end."""
    chain_key, state_key, next_key, start_key, batch_key = jax.random.split(key, 5)
    inputs, matrix, rewards, values = chain(config, chain_key)
    states = jax.random.randint(state_key, (config.transitions,), 0, config.states)
    following = jax.random.categorical(next_key, jnp.log(matrix[states]))
    keys = jax.random.split(start_key, 3)
    shapes = {"first": (config.inputs, config.width), "second": (config.width, config.width), "head": (config.width,)}
    params = {
        name: jax.random.normal(k, shape) * jnp.sqrt(2.0 / shape[0])
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    optimiser = optax.adam(config.learning_rate)

    def loss(params: Any, target: Any, rows: jax.Array) -> jax.Array:
        here, there = inputs[states[rows]], inputs[following[rows]]
        phi, next_phi = features(params, here), features(target, there)
        goal = rewards[states[rows]] + config.discount * next_phi @ target["head"]
        error = 0.5 * jnp.mean((phi @ params["head"] - goal) ** 2)
        beer = rl.bellman_rank_penalty(phi, next_phi, rewards[states[rows]], params["head"], discount=config.discount)
        return error + penalty * beer.mean()

    def update(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
        params, target, state = carry
        rows = jax.random.randint(jax.random.fold_in(batch_key, number), (config.batch,), 0, config.transitions)
        gradient = jax.grad(loss)(params, jax.lax.stop_gradient(target), rows)
        change, state = optimiser.update(gradient, state)
        params = optax.apply_updates(params, change)
        copy = number % config.sync == 0
        target = jax.tree.map(lambda new, old: jnp.where(copy, new, old), params, target)
        return (params, target, state), None

    start = (params, params, optimiser.init(params))
    (params, _, _), _ = jax.lax.scan(update, start, jnp.arange(config.updates))
    phi = features(params, inputs)
    spectrum = jnp.linalg.svd(phi, compute_uv=False)
    held = jnp.cumsum(spectrum) / jnp.maximum(spectrum.sum(), 1e-9)
    beer = rl.bellman_rank_penalty(
        features(params, inputs[states]), features(params, inputs[following]), rewards[states], params["head"],
        discount=config.discount,
    )  # fmt: skip
    wrong = phi @ params["head"] - values
    return {
        "error of the values": jnp.sqrt(jnp.mean(wrong**2)) / jnp.std(values),
        "rank of the features": 1.0 + (held < 0.99).sum(),
        "share above the bound": beer.metrics["active"].total / beer.metrics["active"].weight,
    }


def run(config: Config) -> report.Tables:
    """A row for every strength of the penalty, and differences to none by seed."""
    keys = jax.random.split(jax.random.key(0), config.seeds)
    step = jax.jit(jax.vmap(lambda penalty, key: learn(config, penalty, key), in_axes=(None, 0)))
    found = {f"penalty {p:g}": jax.tree.map(np.asarray, step(jnp.float32(p), keys)) for p in config.penalties}
    base = found[f"penalty {config.penalties[0]:g}"]
    table = {name: {column: report.estimate(x) for column, x in columns.items()} for name, columns in found.items()}
    less = {
        name: {column: report.estimate(x - base[column]) for column, x in columns.items()}
        for name, columns in found.items()
        if columns is not base
    }
    return {"values and features": table, "less what training without the penalty gives": less}


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, [report.Panel("values and features", ("rank of the features",))])
