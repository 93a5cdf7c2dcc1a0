"""Whose progress should a step reward measure?  Best-of-K provers on a tabular problem (arXiv 2410.08146).

A policy chooses among `actions` next steps in each of `depth` rounds; actions lead to states with different chances of
success. The process reward of a step is its advantage under a prover, Best-of-K of the policy. Shown for each K: how
far actions are told apart, and how fast policy gradient with that reward (and exact expectations) solves the problem.

    python -m experiments.provers.main
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from prm_jax import rl


@dataclasses.dataclass(frozen=True)
class Config:
    """The tree and the training."""

    depth: int = 5
    actions: int = 3
    concentration: float = 0.15
    alpha: float = 3.0
    updates: int = 300
    learning_rate: float = 0.3
    goal: float = 0.8
    seeds: int = 20


SMOKE = Config(depth=3, updates=20, seeds=1)


def leaves(config: Config, seed: int) -> jax.Array:
    """[actions ** depth] chances of success: few leaves are good."""
    size = config.actions**config.depth
    return jnp.array(np.random.default_rng(seed).beta(config.concentration, 3 * config.concentration, size=size))


def values(config: Config, logits: list[jax.Array], outcome: jax.Array) -> list[jax.Array]:
    """Values of the policy at every level, [actions ** d] for d = 0..depth."""
    found = [outcome]
    for level in logits[::-1]:
        found.append((jax.nn.softmax(level) * found[-1].reshape(level.shape)).sum(-1))
    return found[::-1]


def progress(config: Config, found: list[jax.Array], k: int) -> list[jax.Array]:
    """Advantage of every action under Best-of-K, [actions ** d, actions] for each level d."""
    prover = [rl.best_of_k_value(v, k) for v in found]
    out = []
    for d in range(config.depth):
        children = prover[d + 1].reshape(-1, config.actions)
        mask = jnp.ones((children.shape[0], 1), bool)
        rewards = jax.vmap(lambda q, v0, m=mask: rl.progress_rewards(q[:, None], v0, m), (1, None), 1)(
            children, prover[d]
        )
        out.append(rewards[..., 0])
    return out


@functools.partial(jax.jit, static_argnames=("config", "k"))
@functools.partial(jax.vmap, in_axes=(None, 0, None))
def train(config: Config, outcome: jax.Array, k: int | None) -> jax.Array:
    """[updates] success before each update under exact policy gradient; k None is outcome reward alone.

    The gradient is that of the expected outcome plus alpha times the expected progress of the steps taken, with the
    prover frozen within an update, as in training with process rewards.
    """
    logits = [jnp.zeros((config.actions**d, config.actions)) for d in range(config.depth)]
    optimiser = optax.sgd(config.learning_rate)

    def objective(params, rewards):
        reach = jnp.ones(1)
        total = 0.0
        for level, reward in zip(params, rewards, strict=True):
            policy = jax.nn.softmax(level) * reach[:, None]
            total = total + config.alpha * (policy * reward).sum()
            reach = policy.reshape(-1)
        return total + (reach * outcome).sum()

    def update(carry, _):
        params, state = carry
        found = values(config, params, outcome)
        rewards = [jnp.zeros_like(p) for p in params] if k is None else progress(config, found, k)
        gradient = jax.grad(lambda p: -objective(p, jax.lax.stop_gradient(rewards)))(params)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(params, updates), state), found[0][0]

    return jax.lax.scan(update, (logits, optimiser.init(logits)), length=config.updates)[1]


def run(config: Config) -> report.Tables:
    """Telling actions apart, and speed of learning, over seeds."""
    apart = {}
    p = jnp.array([0.02, 0.1, 0.3])
    for k in (1, 4, 16, 256):
        q = rl.best_of_k_value(p, k)
        apart[f"K = {k}"] = {
            "std of the advantage, p = .02 .1 .3": float(jnp.std(q)),
            "same for p = .9 .95 .99": float(jnp.std(rl.best_of_k_value(jnp.array([0.9, 0.95, 0.99]), k))),
        }
    outcomes = jnp.stack([leaves(config, seed) for seed in range(config.seeds)])
    best = np.array(outcomes.max(-1, keepdims=True))
    table = {}
    # Progress under the policy itself has the outcome's gradient, 1 + alpha times as large: the arm to compare with.
    faster = dataclasses.replace(config, learning_rate=config.learning_rate * (1 + config.alpha))
    arms = {"outcome only": (config, None), "outcome only, step x (1 + alpha)": (faster, None)}
    arms |= {f"progress under Best-of-{k}": (config, k) for k in (1, 4, 16, 256)}
    for name, (settings, k) in arms.items():
        curves = np.array(train(settings, outcomes, k)) / best
        done = curves >= config.goal
        updates = np.where(done.any(-1), done.argmax(-1), config.updates)
        table[name] = {
            "final success / best": report.estimate(curves[:, -1]),
            "updates to the goal": report.estimate(updates),
        }
    return {"how a prover tells actions apart": apart, "exact policy gradient with progress rewards": table}


PANELS = (
    report.Panel("exact policy gradient with progress rewards", ("final success / best",)),
    report.Panel("exact policy gradient with progress rewards", ("updates to the goal",)),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
