"""Step labels with lucky answers: Monte-Carlo labels, best-of-K labels, judges and their consensus.

A policy works through `steps` steps; a wrong step can still end in the right answer by luck. A label of a step is the
outcome of K rollouts from it (`mc_targets`). A process reward model of one feature a step (how right the step looks,
with noise) is trained on each kind of label and judged by its first-error F1 (arXiv 2501.07301: a sample is kept only
where judge and rollouts name the same first error; arXiv 2402.10963: labels "some rollout succeeds"; arXiv 2502.11520:
several judges; mutated correct solutions, as PRLCoder has them, arXiv 2502.01715).

    python -m experiments.step_labels.main
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
    """The process, the labels and the model."""

    rows: int = 3000
    steps: int = 6
    slip: float = 0.15  # chance of a wrong step
    finish: float = 0.75  # chance that a weak policy finishes a step rightly
    luck: float = 0.10  # chance of a right answer in spite of a wrong step
    rollouts: int = 8
    judge: float = 0.9  # a judge is right about a step this often
    judges: int = 5
    feature_noise: float = 0.8
    mutation_gap: float = 0.5  # how much worse a mutated step looks than a mistake of the policy
    candidates: int = 8  # of best-of-n
    updates: int = 400
    seeds: int = 10


SMOKE = Config(rows=200, updates=30, seeds=1)


def make(config: Config, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(right [rows, steps] bool: all steps so far are right, features [rows, steps, 2])."""
    slips = rng.uniform(size=(rows, config.steps)) < config.slip
    right = np.cumprod(~slips, -1).astype(bool)
    looks = np.where(slips, -1.0, 1.0) + config.feature_noise * rng.normal(size=slips.shape)
    place = np.broadcast_to(np.arange(config.steps) / config.steps, slips.shape)
    return right, np.stack([looks, place], -1)


def solve_chance(config: Config, right: np.ndarray) -> np.ndarray:
    """Chance that a rollout from each prefix ends in the right answer."""
    left = config.steps - 1 - np.arange(config.steps)
    clean = config.finish**left
    return np.where(right, clean + (1 - clean) * config.luck, config.luck)


@functools.partial(jax.jit, static_argnames="config")
def train(config: Config, x: jax.Array, y: jax.Array, m: jax.Array) -> jax.Array:
    """Logistic model on expanded features x: weights [4]."""
    optimiser = optax.adam(0.1)

    def step(carry, _):
        w, state = carry
        gradient = jax.grad(lambda w: rl.step_ce_loss(x @ w, y, m).mean())(w)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(w, updates), state), None

    start = jnp.zeros(x.shape[-1])
    return jax.lax.scan(step, (start, optimiser.init(start)), length=config.updates)[0][0]


def expand(features: np.ndarray) -> np.ndarray:
    """Adds a constant and the worst look so far."""
    worst = np.minimum.accumulate(features[..., 0], -1)
    return np.stack([np.ones_like(worst), features[..., 0], features[..., 1], worst], -1).astype(np.float32)


def mutated(config: Config, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(features, labels, mask, truth) from right solutions with one step rewritten and then run once (PRLCoder).

    Half of the rewrites break the step. A broken step that passes by luck is labelled right. Broken steps look worse
    than the policy's own mistakes by `mutation_gap`. One call of the oracle labels one step, so these are as many
    rows as the policy's rows have steps.
    """
    rows = config.rows * config.steps
    at, broken = rng.integers(0, config.steps, size=rows), rng.uniform(size=rows) < 0.5
    here = np.arange(config.steps) == at[:, None]
    wrong = here & broken[:, None]
    looks = np.where(wrong, -1.0 - config.mutation_gap, 1.0) + config.feature_noise * rng.normal(size=here.shape)
    place = np.broadcast_to(np.arange(config.steps) / config.steps, here.shape)
    passes = ~broken | (rng.uniform(size=rows) < config.luck)
    labels = np.broadcast_to(passes[:, None], here.shape)
    return np.stack([looks, place], -1), labels, here, np.broadcast_to(~broken[:, None], here.shape)


def labels_of(config: Config, rng: np.random.Generator, right: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (labels [rows, steps], mask [rows, steps])."""
    everything = np.ones(right.shape, bool)
    successes = rng.binomial(config.rollouts, solve_chance(config, right))
    one = rng.binomial(1, solve_chance(config, right))
    targets = {
        how: np.array(rl.mc_targets(jnp.array(successes), config.rollouts, jnp.array(everything), how=how))
        for how in ("soft", "hard", "vstar")
    }
    through = np.array(rl.through_first_error(jnp.array(targets["hard"]), jnp.array(everything)))
    votes = np.where(rng.uniform(size=(config.judges, *right.shape)) < config.judge, right, ~right).astype(np.float32)
    majority = np.array(rl.judge_labels(jnp.array(votes))[0])
    first = {
        name: np.array(rl.first_error(jnp.array(x, jnp.float32), jnp.array(everything), threshold=0.5))
        for name, x in (("mc", targets["hard"]), ("judge", votes[0]))
    }
    agree = np.array(rl.agree(jnp.array(first["mc"]), jnp.array(first["judge"])))
    return {
        "outcome of one rollout": (one, everything),
        f"share of {config.rollouts} rollouts (soft)": (targets["soft"], everything),
        f"any of {config.rollouts} (hard), up to the first error": (targets["hard"], through),
        "any, back-filled (SORM)": (targets["vstar"], everything),
        "one judge": (votes[0], everything),
        f"majority of {config.judges} judges": (majority, everything),
        "consensus of rollouts and judge": (targets["hard"], through & agree[:, None]),
        "exact": (right, everything),
    }


def one_seed(config: Config, seed: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(seed)
    right, features = make(config, rng, config.rows)
    test_right, test_features = make(config, rng, config.rows)
    label = jnp.array(np.where(test_right.all(-1), -1, (~test_right).argmax(-1)))
    everything = jnp.ones(test_right.shape, bool)
    lucky = test_right[:, -1] | (rng.uniform(size=config.rows) < config.luck)
    arms = {name: (features, *found, right) for name, found in labels_of(config, rng, right).items()}
    arms["mutated solutions, one call a step"] = mutated(config, rng)
    table = {}
    for name, (inputs, labels, mask, truth) in arms.items():
        weights = train(config, jnp.array(expand(inputs)), jnp.array(labels, jnp.float32), jnp.array(mask))
        scores = jax.nn.sigmoid(jnp.array(expand(test_features)) @ weights)
        half = config.rows // 2
        threshold, _ = rl.best_threshold(scores[:half], everything[:half], label[:half])
        found = rl.first_error(scores[half:], everything[half:], threshold=threshold)
        hard = (labels > 0.5) == truth
        groups = config.rows // config.candidates
        pick = np.array(rl.aggregate_steps(scores, everything, how="min"))[: groups * config.candidates]
        pick = pick.reshape(groups, -1).argmax(-1) + np.arange(groups) * config.candidates
        table[name] = {
            "labels right": float(hard[mask].mean()),
            "samples kept": float(mask.any(-1).mean()),
            "F1": float(rl.first_error_f1(found, label[half:])["f1"]),
            "best-of-n: right answer": float(lucky[pick].mean()),
            "best-of-n: right process": float(test_right[pick, -1].mean()),
        }
    return table


def run(config: Config) -> report.Tables:
    """Means over seeds."""
    found = [one_seed(config, seed) for seed in range(config.seeds)]
    yardsticks = []
    for table in found:
        f1, answer, process = (
            jnp.array([row[c] for row in table.values()])
            for c in ("F1", "best-of-n: right answer", "best-of-n: right process")
        )
        yardsticks.append(
            {
                "F1 and best-of-n": {
                    "Spearman, right answers": float(stats.spearman(f1, answer)),
                    "Spearman, right processes": float(stats.spearman(f1, process)),
                }
            }
        )
    value = 0.05
    law = {
        f"K = {k}": {
            "chance of a positive label": float(rl.best_of_k_value(value, k)),
            "1 - (1 - v)^K": 1 - (1 - value) ** k,
        }
        for k in (1, 4, 16)
    }
    return {
        "labels for a process reward model": report.average(found),
        "do the two yardsticks rank the labels alike?": report.average(yardsticks),
        f"labels 'any of K' at a step of value {value}": law,
    }


PANELS = (
    report.Panel("labels for a process reward model", ("F1",)),
    report.Panel("labels for a process reward model", ("best-of-n: right answer", "best-of-n: right process")),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
