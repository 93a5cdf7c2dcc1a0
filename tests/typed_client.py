"""A program of a user, for the type checker: public names have types, not Any. `make lint` reads it; it is not run."""

from typing import assert_type

import jax
import jax.numpy as jnp

from prm_jax import data, models, prime, prm, rl, runs, search, stats


def loss(logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, outcome: jax.Array, group_ids: jax.Array) -> jax.Array:
    """A loss of one's own from public functions."""
    rewards = assert_type(rl.implicit_token_rewards(logp, ref_logp, mask, beta=0.05), jax.Array)
    advantages = rl.rloo_advantages(rewards, outcome, mask, group_ids, num_groups=2)
    found = assert_type(rl.clipped_surrogate(logp, logp, advantages, mask), rl.Loss)
    return assert_type(found.mean(), jax.Array)


def train(run_dir: str) -> prime.Result:
    """A run with a shaping function of one's own."""

    def reward(inputs: prime.RewardInputs) -> jax.Array:
        return jnp.where(inputs.mask, assert_type(inputs.process, jax.Array), 0.0)

    options = assert_type(prime.PRESETS["tiny"], prime.Options)
    return assert_type(prime.train(options, run_dir, reward=reward), prime.Result)


def rest(path: str, task: data.Task) -> float:
    """Models, reward models, trees and statistics."""
    config, params = models.load_weights(path)
    assert_type(config, models.ModelConfig)
    assert_type(prm.load(path), prm.PRM)
    assert_type(search.init_tree(2, 8), search.Tree)
    assert_type(runs.read_metrics(path), list[dict[str, float]])
    return assert_type(stats.interval([1.0, 2.0]), stats.Interval).low
