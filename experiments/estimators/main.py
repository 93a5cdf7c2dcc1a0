"""Variance of estimators: BRAIn's gradient, several expectations from one sample, and where to spend samples.

BRAIn (arXiv 2402.02479) on a one-dimensional Gaussian; shared importance sampling with control variates (arXiv
2212.00568) on a discrete outcome; labels for step values where a ridge regression knows least (arXiv 2303.10165);
Neyman's allocation of rollouts over prompts.

    python -m experiments.estimators.main
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from prm_jax import rl, stats


@dataclasses.dataclass(frozen=True)
class Config:
    """Repeats of each estimator."""

    repeats: int = 20_000
    samples: int = 8
    outcomes: int = 30
    draws: int = 100
    prefixes: int = 20
    labels: int = 400
    seeds: int = 10


SMOKE = Config(repeats=200, draws=20, labels=60, seeds=1)


def brain(config: Config) -> dict[str, dict[str, float]]:
    """Variance of the gradient for the mean of a unit Gaussian policy; posterior N(0, 1), policy N(1, 1).

    DPG weighs samples by the posterior's importance weight, GDC++ subtracts the policy's own; BRAIn self-normalises
    both over the samples of a prompt.
    """
    theta = 1.0

    def logpdf(x, mean):
        return -0.5 * (x - mean) ** 2 - 0.5 * jnp.log(2 * jnp.pi)

    def gradients(key, proposal):
        x = proposal + jax.random.normal(key, (config.samples,))
        score = x - theta  # d log pi / d theta
        target = jnp.exp(logpdf(x, 0.0) - logpdf(x, proposal))
        own = jnp.exp(logpdf(x, theta) - logpdf(x, proposal))

        def loss(t):
            # Prior = policy at t = theta; the reward is the log-ratio of posterior and prior.
            reward = logpdf(x, 0.0) - logpdf(x, theta)
            ids = jnp.zeros(config.samples, jnp.int32)
            return rl.brain_loss(logpdf(x, t), logpdf(x, theta), logpdf(x, proposal), reward, ids, num_groups=1).mean()

        return jnp.stack([-(target * score).mean(), -((target - own) * score).mean(), jax.grad(loss)(theta)])

    table = {}
    for proposal in (0.0, 0.5, 1.0):
        keys = jax.random.split(jax.random.key(0), config.repeats)
        out = jax.jit(jax.vmap(lambda k, p=proposal: gradients(k, p)))(keys)
        batches = np.array(out).reshape(10, -1, 3)
        for i, name in enumerate(("DPG", "GDC++", "BRAIn")):
            table[f"{name}, samples from N({proposal:g}, 1)"] = {
                "mean": report.estimate(batches.mean(1)[:, i]),
                "variance": report.estimate(batches.var(1)[:, i]),
            }
    return table


def shared_sample(config: Config) -> dict[str, dict[str, float]]:
    """Mean squared error of three expectations from one sample of `draws` outcomes, times 1000."""
    rng = np.random.default_rng(0)
    logp = jnp.log(jnp.array(rng.dirichlet(np.ones(config.outcomes))))
    phi = jnp.array(rng.normal(size=(config.outcomes, 3)) + np.array([0.0, 1.0, 3.0]))
    truth = jnp.exp(logp) @ phi
    proposals = {
        "Monte Carlo": (logp, jnp.zeros(3)),
        "tuned to the first": (stats.shared_proposal_logits(logp, phi, truth, jnp.array([1.0, 0, 0])), truth),
        "shared, with control variates": (stats.shared_proposal_logits(logp, phi, truth), truth),
    }

    def estimates(key, logits, baseline):
        logq = jax.nn.log_softmax(logits)
        x = jax.random.categorical(key, logq, shape=(config.draws,))
        weights, _ = rl.importance_weights(logp[x], logq[x])
        return stats.control_variate_mean(phi[x], weights, baseline)

    table = {}
    for name, (logits, baseline) in proposals.items():
        keys = jax.random.split(jax.random.key(1), config.repeats // 4)
        out = jax.jit(jax.vmap(estimates, (0, None, None)))(keys, logits, baseline)
        table[name] = errors(out, truth)
    return table


def errors(out: jax.Array, truth: jax.Array) -> dict[str, float]:
    """Mean squared errors x 1000 of estimates [repeats, 3], over ten batches of repeats, and the largest bias."""
    squares = 1000 * np.square(np.array(out - truth)).reshape(10, -1, 3).mean(1)
    bias = float(jnp.abs(out.mean(0) - truth).max())
    return {**{f"phi {j}": report.estimate(squares[:, j]) for j in range(3)}, "largest bias": bias}


def pilot(config: Config) -> dict[str, dict[str, float]]:
    """The same with baselines and proposal estimated on an earlier batch of the same size: unbiased, nearly as good."""
    rng = np.random.default_rng(0)
    logp = jnp.log(jnp.array(rng.dirichlet(np.ones(config.outcomes))))
    phi = jnp.array(rng.normal(size=(config.outcomes, 3)) + np.array([0.0, 1.0, 3.0]))
    truth = jnp.exp(logp) @ phi

    def estimate(key):
        first, second = jax.random.split(key)
        x = jax.random.categorical(first, logp, shape=(config.draws,))
        baseline = phi[x].mean(0)
        # A tenth of the plain distribution keeps every weight bounded by ten.
        tuned = jax.nn.log_softmax(stats.shared_proposal_logits(logp, phi, baseline))
        logq = jnp.logaddexp(jnp.log(0.9) + tuned, jnp.log(0.1) + logp)
        x = jax.random.categorical(second, logq, shape=(config.draws,))
        weights, ess = rl.importance_weights(logp[x], logq[x])
        return stats.control_variate_mean(phi[x], weights, baseline), ess

    out, ess = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(2), config.repeats // 4))
    return {"adapted on a first batch": {**errors(out, truth), "mean ess": float(ess.mean())}}


def labelling(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """Labels until every prefix's value is known to a target error: uniform choice against the largest bonus.

    Prefixes come with features of which a few directions are rare; values are linear in them.
    """
    rng = np.random.default_rng([1, seed])
    features = rng.normal(size=(config.prefixes, 6)) * np.array([1, 1, 1, 0.3, 0.3, 0.1])
    theta = rng.normal(size=6) * np.array([1, 1, 1, 3, 3, 10])
    values = features @ theta
    phi = jnp.array(features)
    table = {}
    for name in ("uniform", "largest bonus"):
        curve, chosen = [], np.random.default_rng([2, seed])
        rows, labels = np.zeros((config.labels, 6)), np.zeros(config.labels)
        for i in range(config.labels):
            ridge = FIT(jnp.array(rows), jnp.array(labels), jnp.arange(config.labels) < i)
            pick = int(BONUS(ridge, phi).argmax()) if name == "largest bonus" else int(chosen.integers(config.prefixes))
            rows[i], labels[i] = features[pick], values[pick] + chosen.normal()
            curve.append(float(np.abs(features @ np.array(ridge.coefficients) - values).max()))
        smooth = np.convolve(curve, np.ones(10) / 10, mode="valid")
        reached = [int(np.argmax(smooth < goal)) if (smooth < goal).any() else config.labels for goal in (1.0, 0.5)]
        table[name] = {"labels to error 1": reached[0], "labels to error 0.5": reached[1], "final error": curve[-1]}
    return table


FIT = jax.jit(lambda f, y, w: stats.weighted_ridge(f, y, w, l2=1e-2))
BONUS = jax.jit(lambda r, phi: stats.elliptical_bonus(r, phi, maximum=np.inf))


def allocation(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """Variance of the summed solve-rate estimates with a budget of 16 rollouts a prompt."""
    rates = np.random.default_rng([3, seed]).beta(0.5, 0.5, size=64)
    pilot_rates = np.random.default_rng([4, seed]).binomial(8, rates) / 8
    smoothed = (pilot_rates * 8 + 0.5) / 9
    variance = lambda n: float((rates * (1 - rates) / np.maximum(n, 1)).sum())  # noqa: E731
    return {
        "equal": {"variance": variance(np.full(64, 16))},
        "Neyman, true rates": {
            "variance": variance(np.array(rl.budget_allocation(jnp.array(rates), total=1024, minimum=1)))
        },
        "Neyman, rates from 8 rollouts": {
            "variance": variance(np.array(rl.budget_allocation(jnp.array(smoothed), total=1024, minimum=1)))
        },
    }


def confidence(config: Config, seed: int) -> dict[str, dict[str, float]]:
    """How well the share of the most frequent answer tells hard prompts from easy ones, no label seen.

    A prompt's right answer comes with its solve rate; wrong answers spread over nine others, or, where the policy is
    of one mind about a mistake, pile up on one.
    """
    rng = np.random.default_rng([5, seed])
    prompts, samples = 400, 16
    rates = rng.beta(1.0, 1.0, size=prompts)
    table = {}
    for name, stuck in (("mistakes that differ", 0.0), ("a third of prompts with one common mistake", 1 / 3)):
        common = rng.uniform(size=prompts) < stuck
        wrong = np.where(common[:, None], 1, rng.integers(1, 10, size=(prompts, samples)))
        answers = np.where(rng.uniform(size=wrong.shape) < rates[:, None], 0, wrong)
        ids = jnp.repeat(jnp.arange(prompts), samples)
        share = CONFIDENCE(jnp.array(answers.ravel()), ids, num_groups=prompts)
        solved = (answers == 0).mean(-1)
        table[name] = {
            "AUROC for solve rate > 1/2": float(stats.roc_auc(share, jnp.array(rates > 0.5))),
            "Spearman with the observed solve rate": float(stats.spearman(share, jnp.array(solved))),
        }
    return table


CONFIDENCE = jax.jit(rl.answer_confidence, static_argnames="num_groups")


def run(config: Config) -> report.Tables:
    """All five."""
    seeds = range(config.seeds)
    return {
        "gradient for the mean of a Gaussian policy (posterior mean 0, policy mean 1)": brain(config),
        "three expectations from one sample: mean squared error x 1000": {**shared_sample(config), **pilot(config)},
        "choosing which prefix to label": report.average([labelling(config, seed) for seed in seeds]),
        "rollouts over prompts": report.average([allocation(config, seed) for seed in seeds]),
        "confidence of the majority answer as a solve rate": report.average([confidence(config, s) for s in seeds]),
    }


PANELS = (
    report.Panel(
        "gradient for the mean of a Gaussian policy (posterior mean 0, policy mean 1)", ("variance",), log=True
    ),
    report.Panel(
        "three expectations from one sample: mean squared error x 1000", ("phi 0", "phi 1", "phi 2"), log=True
    ),
    report.Panel("choosing which prefix to label", ("labels to error 1", "labels to error 0.5")),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
