"""One quality metric of unit tests as a reward, or all of them?  (RLSQM, arXiv 2310.02368)

A policy writes unit tests of a function `add` from parts: a name, an opening and three statements, each chosen given
the one before. It begins with sloppy habits and is trained by GRPO on the verdicts of the verifier `unit_test`: on one
metric, on all of them, with and without the gates that a valid test must pass.

    python -m experiments.unit_test_quality.main --out experiments/unit_test_quality
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from prm_jax import rl
from prm_jax.verifiers import UnitTestVerifier
from prm_jax.verifiers.unit_test_quality import GATES, METRICS, read_properties

STATEMENTS = (
    "assert add(1, 2) == 3",
    "assert add(2, 2) == 4, 'two and two'",
    "print(add(1, 2))",
    "if add(1, 2):\n        assert add(1, 2) == 3",
    "try:\n        assert add(0, 1) == 1\n    except Exception:\n        pass",
    "assert True",
    "",
)
PARTS = (
    ("def test_add():", "def test_add_returns_the_sum():", "def check_add():"),
    ("", '"""Adds two numbers."""', "print('add')"),
    STATEMENTS,
    STATEMENTS,
    STATEMENTS,
)
HABITS = ((0.7, 0.1, 0.2), (0.4, 0.1, 0.5), *[(0.2, 0.05, 0.25, 0.2, 0.1, 0.1, 0.1)] * 3)
"""Probability of each part before training."""
WIDTH = len(STATEMENTS)
SINGLE = tuple(name for name in METRICS if name not in GATES)


@dataclasses.dataclass(frozen=True)
class Config:
    """The training."""

    prompts: int = 8
    samples: int = 8
    updates: int = 60
    learning_rate: float = 0.1
    tested: int = 512
    seeds: int = 10


SMOKE = Config(prompts=2, updates=3, tested=16, seeds=1)


@functools.cache
def text(choices: tuple[int, ...]) -> str:
    """The unit test of a choice of parts."""
    head, *body = (part[index] for part, index in zip(PARTS, choices, strict=True))
    return "\n    ".join([head, *(line for line in body if line)]) + "\n    pass\n"


@functools.cache
def properties(choices: tuple[int, ...]) -> dict[str, bool]:
    """The metrics of that test."""
    found = read_properties(text(choices), "add")
    assert found is not None
    return found


def habits() -> jax.Array:
    """[T, K, K] logits of a part given the part before."""
    table = np.full((len(PARTS), WIDTH), -np.inf)
    for row, shares in enumerate(HABITS):
        table[row, : len(shares)] = np.log(shares)
    return jnp.asarray(np.repeat(table[:, None], WIDTH, 1), jnp.float32)


@functools.partial(jax.jit, static_argnames="rows")
def draw(logits: jax.Array, key: jax.Array, rows: int) -> jax.Array:
    """[B, T] choices; `key` is consumed."""

    def one(before: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        table, step_key = inputs
        chosen = jax.random.categorical(step_key, table[before])
        return chosen, chosen

    keys = jax.random.split(key, len(PARTS))
    _, chosen = jax.lax.scan(one, jnp.zeros(rows, jnp.int32), (logits, keys))
    return chosen.T


def logp_of(logits: jax.Array, choices: jax.Array) -> jax.Array:
    """[B, T] log-probability of each choice."""
    before = jnp.pad(choices, ((0, 0), (1, 0)))[:, :-1]
    table = jax.nn.log_softmax(logits, -1)
    return table[jnp.arange(len(PARTS)), before, choices]


@functools.partial(jax.jit, static_argnames="config")
def update(config: Config, logits: jax.Array, state: optax.OptState, choices: jax.Array, scores: jax.Array):
    """One step of GRPO on judged tests."""
    mask = jnp.ones(choices.shape, bool)
    groups = jnp.repeat(jnp.arange(config.prompts), config.samples)
    zeros = jnp.zeros(choices.shape)
    advantages = rl.grpo_advantages(zeros, scores, mask, groups, num_groups=config.prompts)
    old = logp_of(logits, choices)
    loss = lambda x: rl.clipped_surrogate(logp_of(x, choices), old, advantages, mask).mean()  # noqa: E731
    changes, state = optax.adam(config.learning_rate).update(jax.grad(loss)(logits), state)
    return optax.apply_updates(logits, changes), state


def train(config: Config, seed: int, verifier: UnitTestVerifier | None) -> dict[str, float]:
    """The share of tests with each metric, in percent, after training on a verifier; None: before."""
    key, last = jax.random.split(jax.random.key(seed))
    logits = habits()
    state = optax.adam(config.learning_rate).init(logits)
    judge = functools.cache(lambda choices: verifier.verify(text(choices), "add").score if verifier else 0.0)
    for number in range(config.updates if verifier else 0):
        choices = draw(logits, jax.random.fold_in(key, number), config.prompts * config.samples)
        scores = jnp.array([judge(tuple(row)) for row in np.asarray(choices).tolist()])
        logits, state = update(config, logits, state, choices, scores)
    rows = [properties(tuple(row)) for row in np.asarray(draw(logits, last, config.tested)).tolist()]
    return shares(rows)


def shares(rows: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    """The shares of tests with each property, with those of the gates, and with all, in percent."""
    found = {name: 100 * float(np.mean([row[name] for row in rows])) for name in METRICS}
    found["valid"] = 100 * float(np.mean([all(row[name] for name in GATES) for row in rows]))
    found["all of them"] = 100 * float(np.mean([all(row.values()) for row in rows]))
    return found


def run(config: Config) -> report.Tables:
    """One row per reward."""
    rewards: dict[str, UnitTestVerifier | None] = {"before training": None}
    rewards |= {f"{name} alone": UnitTestVerifier(metrics=(name,)) for name in SINGLE}
    rewards["all metrics"] = UnitTestVerifier()
    rewards["no_print alone, no gates"] = UnitTestVerifier(metrics=("no_print",), gates=())
    rewards["all metrics, no gates"] = UnitTestVerifier(gates=())
    found = [{name: train(config, seed, one) for name, one in rewards.items()} for seed in range(config.seeds)]
    return tables(found)


def tables(found: Sequence[Mapping[str, Mapping[str, float]]]) -> report.Tables:
    """Means over seeds of what is learned from each reward."""
    table = report.average(found)
    kept = ("valid", "all of them")
    return {
        "share of tests, in percent": {name: {k: row[k] for k in kept} for name, row in table.items()},
        "share of tests with each property, in percent": {
            name: {k: row[k] for k in METRICS} for name, row in table.items()
        },
    }


PANELS = (report.Panel("share of tests, in percent"),)

if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
