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
from prm_jax import rl


@dataclasses.dataclass(frozen=True)
class Config:
    """Repeats of each estimator."""

    repeats: int = 20_000
    samples: int = 8
    outcomes: int = 30
    draws: int = 100
    prefixes: int = 20
    labels: int = 400


SMOKE = Config(repeats=200, draws=20, labels=60)


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
        table[f"samples from N({proposal:g}, 1)"] = {
            f"{name}: {what}": float(v[i])
            for i, name in enumerate(("DPG", "GDC++", "BRAIn"))
            for what, v in (("mean", out.mean(0)), ("variance", out.var(0)))
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
        "tuned to the first": (rl.shared_proposal_logits(logp, phi, truth, jnp.array([1.0, 0, 0])), truth),
        "shared, with control variates": (rl.shared_proposal_logits(logp, phi, truth), truth),
    }

    def estimates(key, logits, baseline):
        logq = jax.nn.log_softmax(logits)
        x = jax.random.categorical(key, logq, shape=(config.draws,))
        weights, _ = rl.importance_weights(logp[x], logq[x])
        return rl.control_variate_mean(phi[x], weights, baseline)

    table = {}
    for name, (logits, baseline) in proposals.items():
        keys = jax.random.split(jax.random.key(1), config.repeats // 4)
        out = jax.jit(jax.vmap(estimates, (0, None, None)))(keys, logits, baseline)
        error = 1000 * ((out - truth) ** 2).mean(0)
        bias = jnp.abs(out.mean(0) - truth).max()
        table[name] = {**{f"phi {j}": float(error[j]) for j in range(3)}, "largest bias": float(bias)}
    return table


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
        tuned = jax.nn.log_softmax(rl.shared_proposal_logits(logp, phi, baseline))
        logq = jnp.logaddexp(jnp.log(0.9) + tuned, jnp.log(0.1) + logp)
        x = jax.random.categorical(second, logq, shape=(config.draws,))
        weights, ess = rl.importance_weights(logp[x], logq[x])
        return rl.control_variate_mean(phi[x], weights, baseline), ess

    out, ess = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(2), config.repeats // 4))
    error, bias = 1000 * ((out - truth) ** 2).mean(0), jnp.abs(out.mean(0) - truth).max()
    row = {
        **{f"phi {j}": float(error[j]) for j in range(3)},
        "largest bias": float(bias),
        "mean ess": float(ess.mean()),
    }
    return {"adapted on a first batch": row}


def labelling(config: Config) -> dict[str, dict[str, float]]:
    """Labels until every prefix's value is known to a target error: uniform choice against the largest bonus.

    Prefixes come with features of which a few directions are rare; values are linear in them.
    """
    rng = np.random.default_rng(1)
    features = rng.normal(size=(config.prefixes, 6)) * np.array([1, 1, 1, 0.3, 0.3, 0.1])
    theta = rng.normal(size=6) * np.array([1, 1, 1, 3, 3, 10])
    values = features @ theta
    phi = jnp.array(features)
    fit = jax.jit(lambda f, y, w: rl.weighted_ridge(f, y, w, l2=1e-2))
    bonus = jax.jit(lambda r: rl.elliptical_bonus(r, phi, maximum=np.inf))
    table = {}
    for name in ("uniform", "largest bonus"):
        curve, chosen = [], np.random.default_rng(2)
        rows, labels = np.zeros((config.labels, 6)), np.zeros(config.labels)
        for i in range(config.labels):
            ridge = fit(jnp.array(rows), jnp.array(labels), jnp.arange(config.labels) < i)
            pick = int(bonus(ridge).argmax()) if name == "largest bonus" else int(chosen.integers(config.prefixes))
            rows[i], labels[i] = features[pick], values[pick] + chosen.normal()
            curve.append(float(np.abs(features @ np.array(ridge.coefficients) - values).max()))
        smooth = np.convolve(curve, np.ones(10) / 10, mode="valid")
        reached = [int(np.argmax(smooth < goal)) if (smooth < goal).any() else config.labels for goal in (1.0, 0.5)]
        table[name] = {"labels to error 1": reached[0], "labels to error 0.5": reached[1], "final error": curve[-1]}
    return table


def allocation(config: Config) -> dict[str, dict[str, float]]:
    """Variance of the summed solve-rate estimates with a budget of 16 rollouts a prompt."""
    rates = np.random.default_rng(3).beta(0.5, 0.5, size=64)
    pilot_rates = np.random.default_rng(4).binomial(8, rates) / 8
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


def run(config: Config) -> report.Tables:
    """All four."""
    return {
        "gradient for the mean of a Gaussian policy (posterior mean 0, policy mean 1)": brain(config),
        "three expectations from one sample: mean squared error x 1000": {**shared_sample(config), **pilot(config)},
        "choosing which prefix to label": labelling(config),
        "rollouts over prompts": allocation(config),
    }


if __name__ == "__main__":
    report.main(run, Config(), SMOKE)
