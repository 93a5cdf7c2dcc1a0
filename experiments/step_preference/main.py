"""Preferences over steps or over whole trajectories?  Equal data on a tabular problem (arXiv 2406.18629, 2409.09345).

In each of `depth` rounds one of `actions` is right; all rounds right is success. Step pairs share a right prefix and
differ in one step; trajectory pairs set a successful trajectory against a failed one. Both are fitted with the same
loss from the same number of scored steps, and read as greedy policies.

    python -m experiments.step_preference.main
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
    """The problem, the data and the fit."""

    depth: int = 6
    actions: int = 8
    skill: float = 0.35
    budgets: tuple[int, ...] = (60, 180, 600, 1800, 5400)  # scored steps
    label_noise: float = 0.1
    candidates: int = 5
    beta: float = 0.4
    updates: int = 300
    seeds: int = 20


SMOKE = Config(budgets=(60,), updates=20, seeds=2)


def pairs(
    config: Config, rng: np.random.Generator, kind: str, budget: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(chosen, rejected [P, depth] actions, scored [P, depth] bool); action 0 is right."""
    depth = config.depth
    wrong = lambda *shape: rng.integers(1, config.actions, size=shape)  # noqa: E731
    if kind == "step":
        count = budget // 2
        at = rng.integers(0, depth, size=count)
        chosen = np.zeros((count, depth), int)
        rejected = chosen.copy()
        rejected[np.arange(count), at] = wrong(count)
        scored = np.arange(depth) == at[:, None]
    else:
        count = budget // (2 * depth)
        chosen = np.zeros((count, depth), int)
        slips = rng.uniform(size=(count, depth)) > config.skill
        slips[np.arange(count), rng.integers(0, depth, size=count)] = True
        rejected = np.where(slips, wrong(count, depth), 0)
        scored = np.ones((count, depth), bool)
    flip = rng.uniform(size=count) < config.label_noise
    chosen[flip], rejected[flip] = rejected[flip], chosen[flip].copy()
    return chosen, rejected, scored


def success(config: Config, rng: np.random.Generator, kind: str, budget: int) -> tuple[float, float]:
    """Chance that all rounds are right: under the sharpened policy, and taking the best-scored of the candidates."""
    fitted, reference = fit(config, *(jnp.array(x) for x in pairs(config, rng, kind, budget)))
    policy = jax.nn.softmax(fitted / config.beta)
    # As agents use a step-level Q model: candidates from the unskilled policy, the largest log-ratio is taken.
    scores = np.array(jax.nn.log_softmax(fitted) - jax.nn.log_softmax(reference))
    drawn = candidates(config, rng, 500)
    taken = np.take_along_axis(drawn, scores[np.arange(config.depth)[:, None], drawn].argmax(-1)[..., None], -1)
    return float(policy[:, 0].prod()), float((taken[..., 0] == 0).all(-1).mean())


@functools.partial(jax.jit, static_argnames="config")
def fit(config: Config, chosen: jax.Array, rejected: jax.Array, scored: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(fitted, reference) logits [depth, actions]."""
    reference = jnp.zeros((config.depth, config.actions))
    optimiser = optax.adam(0.05)
    rounds = jnp.arange(config.depth)

    def logp(params: jax.Array, actions: jax.Array) -> jax.Array:
        each = jax.nn.log_softmax(params)[rounds, actions]
        return jnp.where(scored, each, 0.0).sum(-1)

    def loss(params: jax.Array) -> jax.Array:
        terms = [logp(p, a) for p in (params, reference) for a in (chosen, rejected)]
        return rl.step_preference_loss(*terms, beta=config.beta).mean()

    def step(carry, _):
        params, state = carry
        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (reference, optimiser.init(reference)), length=config.updates)[0][0], reference


def candidates(config: Config, rng: np.random.Generator, episodes: int) -> np.ndarray:
    """[episodes, depth, candidates] actions of a policy that is right with chance `skill`."""
    shape = (episodes, config.depth, config.candidates)
    return np.where(rng.uniform(size=shape) < config.skill, 0, rng.integers(1, config.actions, size=shape))


def run(config: Config) -> report.Tables:
    """Means over seeds; "scored steps" is the size of the data."""
    policy: dict[str, dict[str, float]] = {}
    chosen: dict[str, dict[str, float]] = {}
    for budget in config.budgets:
        name = f"{budget} scored steps"
        policy[name], chosen[name] = {"scored steps": budget}, {"scored steps": budget}
        for kind in ("step", "trajectory"):
            found = np.array(
                [success(config, np.random.default_rng([seed, budget]), kind, budget) for seed in range(config.seeds)]
            )
            policy[name][f"{kind} pairs"] = report.estimate(found[:, 0])
            chosen[name][f"{kind} pairs"] = report.estimate(found[:, 1])
        chosen[name]["a random candidate"] = config.skill**config.depth
    return {"success of the fitted policy": policy, "success choosing among candidates": chosen}


PANELS = (
    report.Panel("success of the fitted policy", x="scored steps", kind="curve"),
    report.Panel("success choosing among candidates", x="scored steps", kind="curve"),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
