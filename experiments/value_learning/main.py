"""Learning token values offline: which backup survives missing data, and which extraction makes the better policy.

Chains: at each of `length` tokens one of `vocabulary` actions is right; a chain of right tokens earns 1, any wrong
token ends in -0.3 (B-Coder's rewards, arXiv 2310.03173). Data come from a language model that is right with a
probability below 1; actions it never took keep the random values they started with. "greedy" targets take the maximum
over them, "conservative" ones the frozen model's own choice. Then Digi-Q's best-of-N extraction against
advantage-weighted regression and filtered cloning on values with errors (arXiv 2502.15760).

    python -m experiments.value_learning.main
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
    """Chain, data and training."""

    length: int = 8
    vocabulary: int = 16
    skill: float = 0.8
    episodes: int = 300
    sweeps: int = 3000
    step: float = 0.05
    noise: float = 0.5  # of the initial values
    critic_noise: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5)
    discount: float = 0.999
    candidates: int = 8
    seeds: int = 10


SMOKE = Config(length=4, vocabulary=6, episodes=40, sweeps=50, critic_noise=(0.25,), seeds=1)


def policy_logits(config: Config) -> jax.Array:
    """The language model: the right token (0) with probability `skill`, the others alike."""
    wrong = jnp.log((1 - config.skill) / (config.vocabulary - 1))
    return jnp.full((config.length, config.vocabulary), wrong).at[:, 0].set(jnp.log(config.skill))


def backups(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """Tabular Q from logged episodes by each backup; the chain is followed until the first wrong token."""
    rng = np.random.default_rng(seed)
    logits = policy_logits(config)
    tokens = np.array(jax.random.categorical(jax.random.key(seed), logits, shape=(config.episodes, config.length)))
    good = np.cumprod(tokens == 0, -1).astype(bool)
    visited = np.concatenate([np.ones((config.episodes, 1), bool), good[:, :-1]], -1)
    rewards = np.where(~good, -0.3, 0.0)
    rewards[:, -1] = np.where(good[:, -1], 1.0, -0.3)
    last = ~good | (np.arange(config.length) == config.length - 1)
    discounts = np.where(last, 0.0, config.discount)
    start = jnp.array(config.noise * rng.normal(size=(config.length + 1, config.vocabulary)), jnp.float32)
    at, act = (jnp.array(x[visited]) for x in (np.broadcast_to(np.arange(config.length), tokens.shape), tokens))
    r, d = jnp.array(rewards[visited], jnp.float32), jnp.array(discounts[visited], jnp.float32)
    frozen = jnp.concatenate([logits, logits[:1]])
    greedy_value = 1.0  # following the right tokens earns 1, discounted below

    def sweep(q, kind):
        targets = rl.bellman_targets(r, d, q[at + 1], frozen[at + 1], kind=kind)
        count = jnp.zeros_like(q).at[at, act].add(1.0)
        error = jnp.zeros_like(q).at[at, act].add(targets - q[at, act]) / jnp.maximum(count, 1.0)
        return q + config.step * error

    table = {}
    for kind in ("greedy", "expected", "conservative"):
        q = jax.jit(lambda s, k=kind: jax.lax.fori_loop(0, config.sweeps, lambda _, x: sweep(x, k), s))(start)
        truth = greedy_value * config.discount ** jnp.arange(config.length - 1, -1, -1)
        table[kind] = {
            "largest Q (truth <= 1)": float(q[: config.length].max()),
            "error of Q(right token)": float(jnp.abs(q[: config.length, 0] - truth).mean()),
            "states where argmax Q is right": float((q[: config.length].argmax(-1) == 0).mean()),
        }
    return table


EXTRACTORS = ("best of N, max of twins", "best of N, min of twins", "advantage weighting", "filtered cloning")


@functools.partial(jax.jit, static_argnames=("config", "name"))
def extract(config: Config, name: str, noise: jax.Array, key: jax.Array) -> jax.Array:
    """Chance of a right chain under the policy extracted from critics that err by `noise`."""
    logits = policy_logits(config)
    after = config.skill ** jnp.arange(config.length - 1, -1, -1.0)  # chance that the rest is right
    exact = jnp.full((config.length, config.vocabulary), -0.3).at[:, 0].set(after * 1.3 - 0.3)
    value = (jax.nn.softmax(logits) * exact).sum(-1)
    noise_key, token_key = jax.random.split(key)
    twins = exact + noise * jax.random.normal(noise_key, (2, *exact.shape))
    rows = 256
    state = jnp.tile(jnp.arange(config.length), rows // config.length + 1)[:rows]
    tokens = jax.random.categorical(token_key, logits[state][:, None], shape=(rows, config.candidates))
    valid = jnp.ones(tokens.shape, bool)
    q = rl.twin(*(t[state[:, None], tokens] for t in twins), how="max" if "max" in name else "min")

    def objective(params: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(params)[state[:, None], tokens]
        if name.startswith("best of"):
            advantages = rl.candidate_advantages(q, value[state], valid)
            return rl.best_of_n_policy_loss(logp, advantages, valid, threshold=0.05).mean()
        advantages = (q - value[state][:, None])[:, :1]
        if name == "filtered cloning":
            return rl.weighted_nll(logp[:, :1], advantages > 0.05, valid[:, :1]).mean()
        weights = rl.advantage_weights(advantages, temperature=0.05)
        return rl.weighted_nll(logp[:, :1], weights, valid[:, :1], normalize="tokens").mean()

    optimiser = optax.adam(0.05)

    def step(carry, _):
        params, state = carry
        updates, state = optimiser.update(jax.grad(objective)(params), state)
        return (optax.apply_updates(params, updates), state), None

    fitted = jax.lax.scan(step, (logits, optimiser.init(logits)), length=200)[0][0]
    return jax.nn.softmax(fitted)[:, 0].prod()


def extraction(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """One round of policy extraction, by how far the critic is off."""
    table = {"policy before": {f"critic off by {n:g}": config.skill**config.length for n in config.critic_noise}}
    for name in EXTRACTORS:
        table[name] = {
            f"critic off by {n:g}": float(extract(config, name, jnp.float32(n), jax.random.key(seed)))
            for n in config.critic_noise
        }
    return table


def run(config: Config) -> report.Tables:
    """Means over seeds."""
    titles = {"offline values by backup": backups, "policy extraction: chance of a right chain": extraction}
    return {
        title: report.average([part(config, seed) for seed in range(config.seeds)]) for title, part in titles.items()
    }


PANELS = (
    report.Panel("offline values by backup", ("error of Q(right token)",), log=True),
    report.Panel("offline values by backup", ("states where argmax Q is right",)),
    report.Panel("policy extraction: chance of a right chain"),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
