"""Progress under weak, equal and strong provers, in policy gradient from samples and in beam search (arXiv 2410.08146).

A simulation on trees of steps, without a language model. Policies are tables, so that the value of every prefix under
every prover is known; a training step sees a few sampled solutions, and values of their prefixes either from a few
completions by the prover (Monte Carlo) or exactly, as a perfectly learned model would give them.

    python -m experiments.pav.main --out experiments/pav
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from prm_jax import rl

Logits = list[jax.Array]
"""A policy: [actions ** d, actions] for every level d."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The trees, training and its budget, the search."""

    depth: int = 6
    actions: int = 3
    success: float = 0.05  # mean chance of a leaf
    concentration: float = 0.1  # the smaller, the nearer are chances to 0 and 1
    batch: int = 8
    completions: int = 4
    alpha: float = 3.0
    updates: int = 80
    rates: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6)
    searched_updates: int = 6  # exact updates that make the policy of the search
    middling_updates: int = 20  # the middling prover
    strong_updates: int = 100  # and the strong prover
    beams: int = 2
    proposals: int = 3
    searches: int = 100
    search_alpha: float = 0.5
    tuning: int = 1000  # first of the seeds on which learning rates are chosen
    seeds: int = 20


SMOKE = Config(
    depth=2, updates=3, rates=(0.1, 0.3), searched_updates=1, middling_updates=2, strong_updates=3, searches=2, seeds=1
)  # fmt: skip
PROVERS = {"weak": (0, 1), "equal": (1, 1), "best of 4": (1, 4), "best of 16": (1, 16), "best of 256": (1, 256),
           "middling": (2, 1), "strong": (3, 1)}  # fmt: skip
"""Prover -> its policy (see `Arm`) and the completions of which its best counts."""


class Problem(NamedTuple):
    """A tree of each seed.

    Attributes:
      outcome: [seeds, leaves] chances of success.
      searched: logits of the policy of the search.
      middling: logits of the middling prover.
      strong: logits of the strong prover.
      key: [seeds].
    """

    outcome: jax.Array
    searched: Logits
    middling: Logits
    strong: Logits
    key: jax.Array


class Arm(NamedTuple):
    """How a step is rewarded or ranked: numbers, so that all arms are one compiled program.

    Attributes:
      value: weight of the policy's own value.
      progress: weight of the progress under the prover.
      prover: 0 the untrained policy, 1 the policy itself, 2 the middling prover, 3 the strong one.
      best_of: completions of which the prover's best counts.
      sampled: 1 if values are shares of right completions, 0 if they are exact.
    """

    value: float
    progress: float
    prover: int
    best_of: int
    sampled: int


def arms(value: float, own: float, progress: float) -> dict[str, Arm]:
    """Value alone, and progress under every prover, with sampled and with exact values.

    Args:
      value: weight of the value where it is alone.
      own: its weight beside progress.
      progress: weight of progress.
    """
    found = {}
    for word, sampled in (("sampled", 1), ("exact", 0)):
        found[f"value, {word}"] = Arm(value, 0.0, 1, 1, sampled)
        for name, (prover, best_of) in PROVERS.items():
            found[f"progress, {name}, {word}"] = Arm(own, progress, prover, best_of, sampled)
    return found


def leaves(config: Config, seed: int) -> jax.Array:
    """[actions ** depth] chances of success, most of them near 0."""
    a = config.concentration
    size = config.actions**config.depth
    return jnp.array(np.random.default_rng(seed).beta(a, a * (1 / config.success - 1), size=size), jnp.float32)


def untrained(config: Config) -> Logits:
    """The policy that chooses among all steps alike."""
    return [jnp.zeros((config.actions**d, config.actions)) for d in range(config.depth)]


def values(params: Logits, outcome: jax.Array) -> list[jax.Array]:
    """Exact values of all states under a policy, [actions ** d] for d = 0..depth."""
    found = [outcome]
    for level in params[::-1]:
        found.append((jax.nn.softmax(level) * found[-1].reshape(level.shape)).sum(-1))
    return found[::-1]


def prover_values(params: Logits, problem: Problem, arm: Arm) -> list[jax.Array]:
    """Exact values of one completion of the prover, by level; `params` is the policy."""
    chosen = [
        jnp.where(arm.prover > 2, s, jnp.where(arm.prover > 1, m, jnp.where(arm.prover > 0, p, 0.0)))
        for p, m, s in zip(params, problem.middling, problem.strong, strict=True)
    ]
    return values(chosen, problem.outcome)


def estimated(config: Config, value: jax.Array, arm: Arm, best_of: int, key: jax.Array) -> jax.Array:
    """Values as a few completions estimate them, or exact; of the best of `best_of` completions."""
    draws = jax.random.uniform(key, (config.completions, *value.shape))
    return rl.best_of_k_value(jnp.where(arm.sampled > 0, (draws < value).mean(0), value), best_of)


@functools.partial(jax.jit, static_argnames="config")
@functools.partial(jax.vmap, in_axes=(None, 0))
def trained_exactly(config: Config, outcome: jax.Array) -> list[Logits]:
    """Policies that exact gradients have trained: that of the search, the middling and the strong prover."""
    optimiser = optax.adam(0.1)

    def update(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: -values(p, outcome)[0][0])(params)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    found: list[Logits] = []
    carry, done = (untrained(config), optimiser.init(untrained(config))), 0
    for total in (config.searched_updates, config.middling_updates, config.strong_updates):
        carry, _ = jax.lax.scan(update, carry, length=total - done)
        done = total
        found.append(carry[0])
    return found


def rollouts(params: Logits, actions: int, batch: int, key: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """(states of levels 0..depth, steps of levels 0..depth - 1), [batch] each."""
    states, steps = [jnp.zeros(batch, jnp.int32)], []
    for level, logits in enumerate(params):
        steps.append(jax.random.categorical(jax.random.fold_in(key, level), logits[states[-1]]))
        states.append(states[-1] * actions + steps[-1])
    return states, steps


def leave_one_out(x: jax.Array) -> jax.Array:
    """[batch, ...] differences from the mean of the others."""
    return x - (x.sum(0) - x) / (len(x) - 1)


def credits(
    config: Config,
    params: Logits,
    states: list[jax.Array],
    right: jax.Array,
    arm: Arm,
    problem: Problem,
    key: jax.Array,
) -> jax.Array:
    """[batch, depth] advantages: the outcome for all steps, and for each step its own value and progress."""
    keys = jax.random.split(key, 2)

    def seen(found: list[jax.Array], best_of: int, key: jax.Array) -> jax.Array:  # [batch, depth], of states 0..depth-1
        exact = jnp.stack([v[s] for v, s in zip(found[:-1], states[:-1], strict=True)], 1)
        return estimated(config, exact, arm, best_of, key)

    own = seen(values(params, problem.outcome), 1, keys[0])
    prover = seen(prover_values(params, problem, arm), arm.best_of, keys[1])
    # A finished solution cannot be completed again: its value is its outcome.
    after = [jnp.concatenate([v[:, 1:], right[:, None]], 1) for v in (own, prover)]
    progress = rl.progress_rewards(after[1], prover[:, 0], jnp.ones(prover.shape, bool))
    local = rl.effective_rewards(arm.value * leave_one_out(after[0]), progress, alpha=arm.progress)
    return leave_one_out(right)[:, None] + local


@functools.partial(jax.jit, static_argnames=("config", "batch"))
def train(config: Config, batch: int, arm: Arm, problem: Problem, rates: jax.Array) -> jax.Array:
    """[arms, rates, seeds, updates] exact success of the policy before each update."""
    optimiser = optax.scale_by_adam()

    def one(arm: Arm, rate: jax.Array, problem: Problem) -> jax.Array:
        def update(carry, key):
            params, state = carry
            keys = jax.random.split(key, 3)
            states, steps = rollouts(params, config.actions, batch, keys[0])
            right = (jax.random.uniform(keys[1], (batch,)) < problem.outcome[states[-1]]).astype(jnp.float32)
            credit = credits(config, params, states, right, arm, problem, keys[2])

            def loss(params):
                taken = [
                    jnp.take_along_axis(jax.nn.log_softmax(p[s]), a[:, None], 1)
                    for p, s, a in zip(params, states, steps, strict=False)
                ]
                return -(jnp.concatenate(taken, 1) * credit).mean(0).sum()

            updates, state = optimiser.update(jax.grad(loss)(params), state)
            params_next = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            return (params_next, state), values(params, problem.outcome)[0][0]

        start = untrained(config)
        return jax.lax.scan(update, (start, optimiser.init(start)), jax.random.split(problem.key, config.updates))[1]

    over_seeds = jax.vmap(one, (None, None, 0))
    return jax.vmap(jax.vmap(over_seeds, (None, 0, None)), (0, None, None))(arm, rates, problem)


@functools.partial(jax.jit, static_argnames="config")
def search(config: Config, arm: Arm, problem: Problem) -> jax.Array:
    """[arms, seeds] mean success of the leaf that a beam over steps ends with."""

    def one(arm: Arm, problem: Problem) -> jax.Array:
        policy = problem.searched
        found = list(zip(values(policy, problem.outcome), prover_values(policy, problem, arm), strict=True))

        def beam(key):
            beams, before = jnp.zeros(1, jnp.int32), jnp.zeros(1)  # the same `before` for all first steps
            for level in range(config.depth):
                keys = jax.random.split(jax.random.fold_in(key, level), 2)
                logits = jnp.repeat(policy[level][beams], config.proposals, 0)
                children = jnp.repeat(beams, config.proposals) * config.actions
                children += jax.random.categorical(keys[0], logits)
                own, prover = (v[children] for v in found[level + 1])
                if level < config.depth - 1:
                    # The same draws: where the prover is the policy, its completions serve both terms.
                    own = estimated(config, own, arm, 1, keys[1])
                    prover = estimated(config, prover, arm, arm.best_of, keys[1])
                    progress = prover - jnp.repeat(before, config.proposals)
                    own = rl.effective_rewards(own, progress, alpha=arm.progress)
                earlier = jnp.arange(len(children))[:, None] > jnp.arange(len(children))
                again = ((children[:, None] == children) & earlier).any(1)  # proposed twice, it counts once
                best = jax.lax.top_k(jnp.where(again, -jnp.inf, own), config.beams)[1]
                beams, before = children[best], prover[best]
            return problem.outcome[beams[0]]

        return jax.vmap(beam)(jax.random.split(problem.key, config.searches)).mean()

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(arm, problem)


def problems(config: Config, first: int) -> Problem:
    """The trees of all seeds from `first` on."""
    outcome = jnp.stack([leaves(config, seed) for seed in range(first, first + config.seeds)])
    return Problem(outcome, *trained_exactly(config, outcome), jax.random.split(jax.random.key(first), config.seeds))


def together(found: dict[str, Arm]) -> Arm:
    """The arms as one, each field [arms]."""
    return Arm(*(jnp.array(column) for column in zip(*found.values(), strict=True)))


def trained(config: Config, tuned: Problem, tested: Problem) -> report.Table:
    """Policy gradient: each arm at the learning rate that is best for it on the tuning seeds."""
    plain = {"outcome only": Arm(0.0, 0.0, 1, 1, 0)}
    more = 1 + config.completions * (config.depth - 1)  # what completions of every prefix cost at most, in solutions
    budgets = (
        (plain | arms(config.alpha, 0.0, config.alpha), config.batch),
        ({f"outcome only, {more} x the samples": plain["outcome only"]}, more * config.batch),
    )
    rates = jnp.array(config.rates)
    chosen: dict[str, float] = {}
    curves: dict[str, np.ndarray] = {}
    for own, batch in budgets:
        scores = np.asarray(train(config, batch, together(own), tuned, rates) / tuned.outcome.max(-1)[:, None])
        measured = np.asarray(train(config, batch, together(own), tested, rates) / tested.outcome.max(-1)[:, None])
        for name, score, curve in zip(own, scores, measured, strict=True):
            best = int(score.mean((1, 2)).argmax())
            chosen[name], curves[name] = config.rates[best], curve[best]
    table: dict[str, dict[str, float]] = {}
    for name, curve in curves.items():
        speed = curve.mean(-1)
        table[name] = {
            "learning rate": chosen[name],
            "mean over the updates": report.estimate(speed),
            "final": report.estimate(curve[:, -1]),
            "mean, minus outcome only": report.estimate(speed - curves["outcome only"].mean(-1)),
        }
        if name.startswith("progress"):
            value = curves[f"value, {name.rpartition(', ')[2]}"]
            table[name]["mean, minus value"] = report.estimate(speed - value.mean(-1))
    return table


def searched(config: Config, tested: Problem) -> report.Table:
    """Beam search: success of each arm, and its difference from ranking by value alone."""
    ranked = arms(1.0, 1.0, config.search_alpha)
    best = np.asarray(tested.outcome.max(-1))
    success = dict(zip(ranked, np.asarray(search(config, together(ranked), tested)) / best, strict=True))
    table: dict[str, dict[str, float]] = {}
    for name, share in success.items():
        table[name] = {"success": report.estimate(share)}
        if name.startswith("progress"):
            value = success[f"value, {name.rpartition(', ')[2]}"]
            table[name]["minus value"] = report.estimate(share - value)
    return table


def run(config: Config) -> report.Tables:
    """Training and search, over seeds; successes are shares of the best leaf's, and differences are paired."""
    tuned, tested = problems(config, config.tuning), problems(config, 0)
    policies = {
        "untrained: start of training, weak prover": [jnp.zeros_like(level) for level in tested.strong],
        "policy of the search": tested.searched,
        "middling prover": tested.middling,
        "strong prover": tested.strong,
    }
    alone = {
        name: {"success": report.estimate(np.asarray(_alone(policy, tested.outcome)))}
        for name, policy in policies.items()
    }
    return {
        "policies alone": alone,
        "policy gradient from samples": trained(config, tuned, tested),
        "beam search": searched(config, tested),
    }


@jax.vmap
def _alone(policy: Logits, outcome: jax.Array) -> jax.Array:
    return values(policy, outcome)[0][0] / outcome.max()


PANELS = (
    report.Panel("policy gradient from samples", ("mean, minus outcome only",)),
    report.Panel("policy gradient from samples", ("mean, minus value",)),
    report.Panel("beam search", ("minus value",)),
)

if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
