"""Does a process reward pay for filler steps?  Exact decision process, raw reward against Clip and Delta.

A solution needs `work` steps of score `work_score`. Before each of them the policy may write filler: steps of the
higher score `filler_score` that solve nothing and each lose the thread with probability `slip`. The horizon cuts
the filler off. The objective is success + alpha * sum of shaped step rewards (arXiv 2410.15115); a plan is the number
of filler steps, so the optimum and the exact policy gradient come from enumeration.

    python -m experiments.reward_hacking.main
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from experiments import report
from prm_jax import rl


@dataclasses.dataclass(frozen=True)
class Config:
    """Scores, horizon and the policy's training."""

    horizon: int = 20
    work: int = 4
    work_score: float = 0.6
    filler_score: float = 0.9
    slip: float = 0.1
    skill: float = 0.8  # chance that the work itself is right
    alpha: float = 0.5
    threshold: float = 0.7
    updates: int = 2000
    learning_rate: float = 0.05


SMOKE = Config(horizon=8, updates=100)
SHAPINGS = ("outcome only", "raw", "clip", "delta", "clip + delta")


def shaped(config: Config, name: str) -> jax.Array:
    """[plans] sum of shaped rewards; plan n writes n filler steps and then works."""
    plans = config.horizon - config.work + 1
    steps, filler = jnp.arange(config.horizon), jnp.arange(plans)[:, None]
    mask = steps < filler + config.work
    scores = jnp.where(steps < filler, config.filler_score, config.work_score)
    if name == "outcome only":
        return jnp.zeros(plans)
    rewards = scores
    if "clip" in name:
        rewards = rl.clip_rewards(rewards, mask, threshold=config.threshold)
    if "delta" in name:
        rewards = rl.delta_rewards(rewards, mask)
    return jnp.where(mask, rewards, 0.0).sum(-1)


def run(config: Config) -> report.Tables:
    """Totals, optimal plans, and what policy gradient learns under each shaping."""
    filler = jnp.arange(config.horizon - config.work + 1)
    success = config.skill * (1 - config.slip) ** filler
    totals, outcomes = {}, {}
    for name in SHAPINGS:
        reward = config.alpha * shaped(config, name)
        objective = success + reward
        best = int(objective.argmax())
        # At each step the policy works or writes one more filler; the chance of each plan is a halting distribution.
        optimiser = optax.adam(config.learning_rate)

        def step(carry, _, objective=objective, optimiser=optimiser):
            logits, state = carry
            gradient = jax.grad(lambda x: -(rl.halting_distribution(x) * objective).sum())(logits)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(logits, updates), state), None

        start = jnp.full(filler.shape, 2.0)  # starts by working: 88 % at every step
        (logits, _), _ = jax.jit(lambda s, f=step, o=optimiser: jax.lax.scan(f, (s, o.init(s)), length=config.updates))(
            start
        )
        plan = rl.halting_distribution(logits)
        totals[name] = {
            "no filler": float(reward[0]),
            "1 filler": float(reward[1] - reward[0]),
            "2 fillers": float(reward[2] - reward[0]),
            "all filler": float(reward[-1] - reward[0]),
        }
        outcomes[name] = {
            "best plan": best,
            "its success": float(success[best]),
            "learnt filler": float((plan * filler).sum()),
            "learnt success": float((plan * success).sum()),
        }
    return {"reward of the plain solution, and gain from filler": totals, "policies": outcomes}


PANELS = (
    report.Panel("policies", ("learnt filler",)),
    report.Panel("policies", ("learnt success",)),
)


if __name__ == "__main__":
    report.main(run, Config(), SMOKE, PANELS)
