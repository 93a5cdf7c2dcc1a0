"""Step rewards from outcome labels, and how far an implicit reward carries beside a linear head.

Sums modulo ten, digit by digit: a response states running totals, each wrong with a small chance; the outcome is right
if the last total is. A small recurrent language model of the responses is the reference. Implicit: its fine-tuned copy,
score = beta * sum of log-ratios; explicit: the same backbone with a linear head. Both are trained on the same
responses (cross-entropy with outcomes) and pairs (Bradley-Terry). Judged: are wrong steps found though no step was ever
labelled (arXiv 2412.01981), and pair accuracy under shifts (arXiv 2409.03650 reports that implicit rewards carry less
far).

    python -m experiments.implicit_rewards.main
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from prm_jax import rl, stats

Params = dict[str, Any]
VOCABULARY = 12  # digits, start, plus


@dataclasses.dataclass(frozen=True)
class Config:
    """Task, model and training."""

    steps: int = 4
    slip: float = 0.15
    sizes: tuple[int, ...] = (500, 4000)
    reference_rows: int = 4000
    test_rows: int = 1000
    width: int = 32
    beta: float = 0.5
    reference_updates: int = 1000
    updates: int = 300
    batch: int = 64
    seeds: int = 8


SMOKE = Config(
    steps=2,
    sizes=(100,),
    reference_rows=200,
    test_rows=100,
    width=8,
    reference_updates=10,
    updates=10,
    batch=16,
    seeds=1,
)


def draw(rng: np.random.Generator, rows: int, steps: int, slip: float, digits: tuple[int, int] = (0, 10)):
    """(tokens [rows, 3 * steps + 2], right [rows, steps]): "S a b t1 c t2 ..." with running totals t modulo ten.

    A wrong total is carried on, so the outcome is right only if every step is, or errors cancel.
    """
    addends = rng.integers(*digits, size=(rows, steps + 1))
    tokens, total, truth = [np.full(rows, 10), addends[:, 0]], addends[:, 0], addends[:, 0]
    right = []
    for k in range(steps):
        slips = (rng.uniform(size=rows) < slip) * rng.integers(1, 10, size=rows)
        good = slips == 0
        total = (total + addends[:, k + 1] + slips) % 10
        truth = (truth + addends[:, k + 1]) % 10
        tokens += [np.full(rows, 11), addends[:, k + 1], total]
        right.append(good)
    outcome = total == truth
    return np.stack(tokens, -1), np.stack(right, -1), outcome


def init(config: Config, key: jax.Array) -> Params:
    """A gated recurrent network with embeddings."""
    keys = jax.random.split(key, 4)
    w = config.width
    return {
        "embed": jax.random.normal(keys[0], (VOCABULARY, w)) * 0.5,
        "gates": jax.random.normal(keys[1], (2 * w, 3 * w)) / np.sqrt(2 * w),
        "out": jax.random.normal(keys[2], (w, VOCABULARY)) / np.sqrt(w),
        "head": jnp.zeros(w),
    }


def states(params: Params, tokens: jax.Array) -> jax.Array:
    """[B, T, width] states after reading each token."""

    def cell(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        both = jnp.concatenate([h, x], -1) @ params["gates"]
        update, reset, new = jnp.split(both, 3, -1)
        candidate = jnp.tanh(new * jax.nn.sigmoid(reset))
        z = jax.nn.sigmoid(update)
        h = (1 - z) * h + z * candidate
        return h, h

    x = params["embed"][tokens].swapaxes(0, 1)
    return jax.lax.scan(cell, jnp.zeros(x.shape[1:]), x)[1].swapaxes(0, 1)


def logp(params: Params, tokens: jax.Array) -> jax.Array:
    """[B, T] log-probability of each token given those before; 0 for the first."""
    each = jax.nn.log_softmax(states(params, tokens)[:, :-1] @ params["out"])
    taken = jnp.take_along_axis(each, tokens[:, 1:, None], -1)[..., 0]
    return jnp.pad(taken, ((0, 0), (1, 0)))


def totals_mask(tokens: jax.Array) -> jax.Array:
    """True on the running totals, the tokens the policy answers for: positions 4, 7, ..."""
    position = jnp.arange(tokens.shape[1])
    return jnp.broadcast_to((position >= 4) & (position % 3 == 1), tokens.shape)


def fit(loss, params: Params, rows: int, updates: int, batch: int, seed: int) -> Params:
    """Adam on `loss(params, row indices)`."""
    optimiser = optax.adam(2e-3)

    def step(carry, key):
        params, state = carry
        gradient = jax.grad(loss)(params, jax.random.randint(key, (batch,), 0, rows))
        change, state = optimiser.update(gradient, state)
        return (optax.apply_updates(params, change), state), None

    keys = jax.random.split(jax.random.key(seed), updates)
    return jax.jit(lambda p: jax.lax.scan(step, (p, optimiser.init(p)), keys)[0][0])(params)


def score(config: Config, kind: str, params: Params, reference: Params, tokens: jax.Array) -> jax.Array:
    """[B, T] token rewards: implicit ones, or the linear head on the last token."""
    if kind == "implicit":
        return rl.implicit_token_rewards(
            logp(params, tokens), logp(reference, tokens), totals_mask(tokens), beta=config.beta
        )
    return rl.outcome_token_rewards(states(params, tokens)[:, -1] @ params["head"], totals_mask(tokens))


def one(config: Config, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    rng = np.random.default_rng(seed)
    text = jnp.array(draw(rng, config.reference_rows, config.steps, config.slip)[0])
    everything = jnp.ones((config.batch, text.shape[1]), bool).at[:, 0].set(False)

    def language(params, rows):
        return rl.weighted_nll(logp(params, text[rows]), jnp.ones(config.batch), everything).mean()

    start = init(config, jax.random.key(seed))
    reference = fit(language, start, config.reference_rows, config.reference_updates, config.batch, seed)
    shifts = {
        "as in training": (config.steps, config.slip, (0, 10)),
        "small addends only": (config.steps, config.slip, (0, 4)),
        "longer chains": (config.steps + 2, config.slip, (0, 10)),
        "a worse policy": (config.steps, 2 * config.slip, (0, 10)),
    }
    tests = {
        name: draw(np.random.default_rng([seed, 7]), config.test_rows, *setting) for name, setting in shifts.items()
    }
    tables: dict[str, dict[str, dict[str, float]]] = {"AUROC of step rewards, no step labels": {}, "pair accuracy": {}}
    for size in config.sizes:
        tokens, _, outcome = (jnp.array(x) for x in draw(rng, size, config.steps, config.slip))
        wrong, good = jnp.flatnonzero(~outcome), jnp.flatnonzero(outcome)
        for kind in ("implicit", "explicit"):

            def outcome_loss(params, rows, kind=kind, tokens=tokens, outcome=outcome):
                rewards = score(config, kind, params, reference, tokens[rows])
                return rl.outcome_ce_loss(rewards, outcome[rows], totals_mask(tokens[rows])).mean()

            def pair_loss(params, rows, kind=kind, tokens=tokens, good=good, wrong=wrong):
                sides = [tokens[side[rows % side.size]] for side in (good, wrong)]
                sums = [score(config, kind, params, reference, s).sum(-1) for s in sides]
                return rl.pairwise_loss(*sums).mean()

            if kind == "implicit":
                params = fit(outcome_loss, reference, size, config.updates, config.batch, seed)
                test, right, _ = tests["as in training"]
                rewards = score(config, kind, params, reference, jnp.array(test))[0:, 4::3]
                # Up to and including the first wrong total: what follows builds on it.
                so_far = np.cumsum(~right, -1) - ~right == 0
                tables["AUROC of step rewards, no step labels"][f"{size} responses"] = {
                    "all steps": float(stats.roc_auc(rewards, jnp.array(right), jnp.array(so_far)))
                }
            params = fit(pair_loss, reference, 10**6, config.updates, config.batch, seed)
            row = {}
            for name, (test, _, label) in tests.items():
                total = score(config, kind, params, reference, jnp.array(test)).sum(-1)
                row[name] = float(stats.roc_auc(total, jnp.array(label)))
            tables["pair accuracy"][f"{kind}, {size} responses"] = row
    return tables


def run(config: Config) -> report.Tables:
    """Means over seeds."""
    found = [one(config, seed) for seed in range(config.seeds)]
    return {title: report.average([f[title] for f in found]) for title in found[0]}


PANELS = (
    report.Panel("AUROC of step rewards, no step labels"),
    report.Panel("pair accuracy"),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
