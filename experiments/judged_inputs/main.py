"""What should a reward model look at?  Natural language masked out, and a calculator's result put in.

Steps have a mathematical part and a verbal part, as vectors; only one of them carries the signal. A step scorer is
trained on both parts or with one masked (arXiv 2412.15904 masks the natural language). Then pairs of sums, one right
and one wrong, are judged by a model that sees the digits alone or also what a calculator observed, with the joint loss
of the tool's trace and the preference (arXiv 2310.01045).

    python -m experiments.judged_inputs.main
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import report
from prm_jax import rl, stats


@dataclasses.dataclass(frozen=True)
class Config:
    """Data and training."""

    rows: int = 2000
    part: int = 20
    digits: int = 4
    pairs: int = 4000
    width: int = 64
    updates: int = 1000
    batch: int = 256
    ranking_weight: float = 0.5
    seeds: int = 5


SMOKE = Config(rows=200, pairs=200, width=8, updates=20, batch=32, seeds=1)


def fit(loss, params, updates: int, rate: float = 3e-3, seed: int = 0):
    """Adam on `loss(params, key)`."""
    optimiser = optax.adam(rate)

    def step(carry, key):
        params, state = carry
        changes, state = optimiser.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, changes), state), None

    keys = jax.random.split(jax.random.key(seed), updates)
    return jax.jit(lambda p: jax.lax.scan(step, (p, optimiser.init(p)), keys)[0][0])(params)


def ablation(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """AUROC of a linear step scorer by what it sees, when mathematics (or language) carries the signal."""
    rng = np.random.default_rng(seed)
    table = {}
    for carrier in ("mathematics", "language"):
        x = rng.normal(size=(2 * config.rows, 2 * config.part))
        theta = rng.normal(size=config.part)
        block = slice(0, config.part) if carrier == "mathematics" else slice(config.part, None)
        y = rng.uniform(size=len(x)) < 1 / (1 + np.exp(-2 * x[:, block] @ theta / np.sqrt(config.part)))
        for seen, mask in (
            ("both parts", np.ones(2 * config.part)),
            ("mathematics only", np.arange(2 * config.part) < config.part),
            ("language only", np.arange(2 * config.part) >= config.part),
        ):
            inputs, labels = jnp.array(x * mask, jnp.float32), jnp.array(y, jnp.float32)
            train, everything = slice(None, config.rows), jnp.ones((config.rows, 1), bool)

            def loss(w, _, inputs=inputs, labels=labels, train=train, everything=everything):
                return rl.step_ce_loss((inputs[train] @ w)[:, None], labels[train][:, None], everything).mean()

            w = fit(loss, jnp.zeros(2 * config.part), config.updates // 4, 3e-2)
            auc = stats.roc_auc(inputs[config.rows :] @ w, labels[config.rows :])
            table.setdefault(f"{carrier} carries the signal", {})[seen] = float(auc)
    return table


def sums(config: Config, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits [rows, 3 * digits + 1] of a + b = claim for right and wrong claims, and the digits of the true sum."""
    top = 10**config.digits
    a, b = rng.integers(0, top, size=(2, config.pairs))
    wrong = a + b + rng.choice([-1, 1], config.pairs) * 10 ** rng.integers(0, config.digits, config.pairs)
    spell = lambda n, k: np.stack([(np.abs(n) // 10**i) % 10 for i in range(k)], -1)  # noqa: E731
    question = np.concatenate([spell(a, config.digits), spell(b, config.digits)], -1)
    right_claim, wrong_claim, observed = (spell(n, config.digits + 1) for n in (a + b, wrong, a + b))
    rows = [np.concatenate([question, c], -1) for c in (right_claim, wrong_claim)]
    return rows[0], rows[1], observed


def tools(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """Pair accuracy of a small network, with and without the calculator's digits among its inputs."""
    rng = np.random.default_rng(seed)
    right, wrong, observed = (jnp.array(x) for x in sums(config, rng))
    train = config.pairs * 3 // 4
    claim = slice(-(config.digits + 1), None)
    table = {}
    for name, tool in (("digits alone", False), ("with the calculator's observation", True)):
        see = jnp.where(tool, observed, 0)
        size = (right.shape[1] + observed.shape[1]) * 10
        keys = jax.random.split(jax.random.key(seed), 3)
        params = {
            "in": jax.random.normal(keys[0], (size, config.width)) / jnp.sqrt(right.shape[1]),
            "out": jax.random.normal(keys[1], (config.width,)) / jnp.sqrt(config.width),
            "match": jnp.zeros(()),
            "say": jax.random.normal(keys[2], (config.width, observed.shape[1] * 10)) * 0.01,
        }

        def hidden(params, rows, see):
            encoded = jax.nn.one_hot(jnp.concatenate([rows, see], -1), 10).reshape(rows.shape[0], -1)
            return jax.nn.gelu(encoded @ params["in"])

        def score(params, rows, see, tool=tool):
            # Digits that agree with the observation, the comparison that attention would make.
            agree = (rows[:, claim] == see).mean(-1) * tool
            return hidden(params, rows, see) @ params["out"] + params["match"] * agree

        def loss(params, key, see=see, score=score):
            rows = jax.random.randint(key, (config.batch,), 0, train)
            ranking = rl.pairwise_loss(score(params, right[rows], see[rows]), score(params, wrong[rows], see[rows]))
            said = hidden(params, right[rows], see[rows]) @ params["say"]
            logp = jax.nn.log_softmax(said.reshape(config.batch, -1, 10))
            trace = jnp.take_along_axis(logp, see[rows][..., None], -1)[..., 0]
            language = rl.weighted_nll(trace, jnp.ones(config.batch), jnp.ones(trace.shape, bool))
            return language.mean() + config.ranking_weight * ranking.mean()

        params = fit(loss, params, config.updates, seed=seed)
        test = slice(train, None)
        margin = score(params, right[test], see[test]) - score(params, wrong[test], see[test])
        table[name] = {"pair accuracy on new sums": float((margin > 0).mean())}
    return table


def run(config: Config) -> report.Tables:
    """Means over seeds."""
    parts = {"AUROC of a step scorer by what it sees": ablation, "judging sums": tools}
    return {
        title: report.average([part(config, seed) for seed in range(config.seeds)]) for title, part in parts.items()
    }


PANELS = (
    report.Panel("AUROC of a step scorer by what it sees"),
    report.Panel("judging sums"),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
