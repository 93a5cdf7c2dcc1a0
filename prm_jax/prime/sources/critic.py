"""A critic as the source of rewards: the value of the prefix after each step, learned online from outcomes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.models import init_value_head
from prm_jax.prime.batch import Metrics
from prm_jax.prime.critic import Critic
from prm_jax.prime.pieces import score_in_pieces
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

    @property
    def microbatches(self) -> int:
        """Pieces of one optimiser step."""
        return self.critic.pieces.microbatches

    def for_warm_up(self, ways: int) -> "CriticSource":
        """The same critic, learning in one pass and one optimiser step per batch."""
        pieces = _Once(microbatches=self.microbatches, microbatch_tokens=self.critic.pieces.microbatch_tokens)
        return CriticSource(dataclasses.replace(self.critic, pieces=pieces, ways=ways), self.base)

    def score(self, state: Any, batch: SourceBatch) -> jax.Array:
        """[B, T] float32: values at the last token of each step."""
        return self._at_steps(self._after(state, batch), batch)

    def update(self, state: Any, batch: SourceBatch) -> tuple[Any, Metrics]:
        """One pass over the rows whose outcome is known."""
        return self._learn(state, batch, self._after(state, batch))

    def judge(self, state: Any, batch: SourceBatch) -> Judged:
        """Scores before learning; the response score is the value before its last token."""
        after = self._after(state, batch)
        rewards = self._at_steps(after, batch)
        before = _before(after)
        first = jnp.argmax(batch.mask, axis=1)
        initial = jnp.take_along_axis(before, first[:, None], axis=1)[:, 0]
        last = batch.mask.shape[1] - 1 - jnp.argmax(batch.mask[:, ::-1], axis=1)
        response = jnp.take_along_axis(before, last[:, None], axis=1)[:, 0]
        state, metrics = self._learn(state, batch, after)
        return Judged(state, rewards, response, metrics, initial)

    def _after(self, state: Any, batch: SourceBatch) -> jax.Array:
        """Values [B, T] after each token, in the pieces of the update."""
        return score_in_pieces(
            lambda rows: self.critic.after(state[0], batch.reference, rows), batch.rows, self.critic.pieces,
            self.critic.ways,
        )  # fmt: skip

    def _at_steps(self, after: jax.Array, batch: SourceBatch) -> jax.Array:
        values = jnp.where(batch.mask, after, 0.0)
        per_step, _ = rl.step_rewards(values, batch.step_ids, num_steps=batch.mask.shape[1], how="last")
        return rl.token_rewards_from_steps(per_step, batch.step_ids)

    def _learn(self, state: Any, batch: SourceBatch, after: jax.Array) -> tuple[Any, Metrics]:
        """Regresses the values before each token, and that of the whole response, on the outcome."""
        critic, opt = state
        # The value after the last token is the one before the column that follows.
        mask = batch.mask | jnp.pad(batch.mask[:, :-1], ((0, 0), (1, 0)))
        rows = dataclasses.replace(batch.rows, mask=mask, keep=batch.judged)
        old = jnp.where(mask, _before(after), 0.0)
        targets = jnp.where(mask, batch.outcome[:, None], 0.0)
        critic, opt, metrics = self.critic.update(critic, opt, batch.reference, rows, old, targets)
        return (critic, opt), {name.replace("critic/", "prm/"): value for name, value in metrics.items()}


def _before(after: jax.Array) -> jax.Array:
    return jnp.pad(after[:, :-1], ((0, 0), (1, 0)))


@dataclasses.dataclass(frozen=True)
class _Once:
    """One optimiser step per batch."""

    microbatches: int
    microbatch_tokens: int
    minibatches: int = 1
    epochs: int = 1
