"""A critic as the source of rewards: the value of the prefix after each step, learned online from outcomes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.models import init_value_head
from prm_jax.prime.batch import Metrics
from prm_jax.prime.critic import Critic
from prm_jax.prime.sources.base import Judged, Source, SourceBatch
from prm_jax.runs.learner import Params


class CriticSource(Source):
    """Values after each step, on the step's last token; the value of the prompt is the initial value.

    Every prefix of a response is regressed on the response's outcome, so that a value estimates the chance of a right
    answer from there. Use it with ``--advantage.credit value`` or ``--reward.shaping progress``.

    Args:
      critic: model, optimiser, pieces.
      base: the policy's initial parameters.
    """

    learns = True

    def __init__(self, critic: Critic, base: Params) -> None:
        self.critic, self.base = critic, base

    def init(self, key: jax.Array) -> Any:
        """(trainable, optimiser state)."""
        first, second = jax.random.split(key)
        return self.critic.init(self.base, init_value_head(self.critic.learner.config, first), second)

    def score(self, state: Any, batch: SourceBatch) -> jax.Array:
        """[B, T] float32: values at the last token of each step."""
        values = jnp.where(batch.mask, self.critic.after(state[0], batch.reference, batch.rows), 0.0)
        per_step, _ = rl.step_rewards(values, batch.step_ids, num_steps=batch.mask.shape[1], how="last")
        return rl.token_rewards_from_steps(per_step, batch.step_ids)

    def update(self, state: Any, batch: SourceBatch) -> tuple[Any, Metrics]:
        """One pass over the rows whose outcome is known."""
        critic, opt = state
        rows = dataclasses.replace(batch.rows, keep=batch.judged)
        old = self.critic.old_values(critic, batch.reference, rows)
        targets = jnp.where(rows.mask, batch.outcome[:, None], 0.0)
        critic, opt, metrics = self.critic.update(critic, opt, batch.reference, rows, old, targets)
        return (critic, opt), {name.replace("critic/", "prm/"): value for name, value in metrics.items()}

    def judge(self, state: Any, batch: SourceBatch) -> Judged:
        """Scores before learning; the response score is the value before its last token."""
        rewards = jax.lax.stop_gradient(self.score(state, batch))
        before = self.critic.old_values(state[0], batch.reference, batch.rows)
        first = jnp.argmax(batch.mask, axis=1)
        initial = jnp.take_along_axis(before, first[:, None], axis=1)[:, 0]
        last = batch.mask.shape[1] - 1 - jnp.argmax(batch.mask[:, ::-1], axis=1)
        response = jnp.take_along_axis(before, last[:, None], axis=1)[:, 0]
        state, metrics = self.update(state, batch)
        return Judged(state, rewards, response, metrics, initial)
