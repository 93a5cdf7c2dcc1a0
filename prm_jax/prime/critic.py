"""A value head on a copy of the policy's initial weights: PPO's critic, and a source of step values."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.models import hidden_states
from prm_jax.prime.batch import Batch, Metrics
from prm_jax.prime.options import CriticOptions
from prm_jax.prime.pieces import Pieces, batch_values, microbatches, run_epochs, score_in_pieces, summarize
from prm_jax.runs.learner import Learner, Params, accumulate_gradients, guarded_update


@dataclasses.dataclass(frozen=True)
class Critic:
    """What stays the same about a critic; its arrays are ``{"trunk", "head"}``.

    Attributes:
      learner: architecture, optimiser, adapters.
      options: clipping.
      pieces: minibatches and epochs of its update.
      ways: number of devices that hold the rows.
    """

    learner: Learner
    options: CriticOptions
    pieces: Pieces
    ways: int

    def init(self, reference: Params, head: Params, key: jax.Array) -> tuple[Params, Any]:
        """(trainable, optimiser state); `key` is consumed."""
        critic = {"trunk": self.learner.init_trainable(reference, key), "head": head}
        return critic, self.learner.init_optimizer(critic)

    def after(self, critic: Params, reference: Params, batch: Batch) -> jax.Array:
        """Values [B, T] float32 after each token, prompt and padding included."""
        params = self.learner.params(critic["trunk"], reference)
        return batch_values(self.learner.config, params, critic["head"], batch)

    def before(self, critic: Params, reference: Params, batch: Batch) -> jax.Array:
        """Values [B, T]: entry t values the prefix before token t, 0 outside the response."""
        values = self.after(critic, reference, batch)
        return jnp.where(batch.mask, jnp.pad(values[:, :-1], ((0, 0), (1, 0))), 0.0)

    def old_values(self, critic: Params, reference: Params, batch: Batch) -> jax.Array:
        """`before` without gradient, in the pieces of the update."""
        return score_in_pieces(lambda rows: self.before(critic, reference, rows), batch, self.pieces, self.ways)

    def update(
        self,
        critic: Params,
        opt: Any,
        reference: Params,
        batch: Batch,
        old_values: jax.Array,
        targets: jax.Array,
        rewards: jax.Array | None = None,
        discount: float = 1.0,
    ) -> tuple[Params, Any, Metrics]:
        """Moves the values towards `targets` [B, T]: (trainable, optimiser state, metrics).

        `rewards` [B, T] and their discount are read by the penalty on similar features.
        """
        clip, penalty = self.options.clip, self.options.rank_penalty

        def loss_fn(trainable: Params, piece: dict[str, Any]) -> tuple[rl.Loss, None]:
            rows = piece["batch"]
            values = self.before(trainable, reference, rows)
            old = None if clip is None else piece["old"]
            mask = rows.mask & rows.keep[:, None]
            loss = rl.value_loss(values, piece["targets"], mask, old_values=old, clip=clip)
            if not penalty:
                return loss, None
            similar = self._similarity(trainable, reference, rows, piece["rewards"], mask, max(discount, 1e-3))
            found = {**loss.metrics, "rank_active": similar.metrics["active"]}
            return rl.Loss(loss.total + penalty * similar.mean() * loss.weight, loss.weight, found), None

        def update(carry: tuple[Params, Any], piece: dict[str, Any]) -> tuple[tuple[Params, Any], Metrics]:
            trainable, state = carry
            grads, loss, _ = accumulate_gradients(
                loss_fn, trainable, piece, pieces=microbatches(self.pieces, piece["batch"], self.ways), ways=self.ways
            )
            trainable, state, health = guarded_update(self.learner.optimizer, grads, state, trainable)
            return (trainable, state), {"loss": loss.mean(), **(loss.summary() if penalty else {}), **health}

        data = {"batch": batch, "old": jax.lax.stop_gradient(old_values), "targets": targets}
        if penalty:
            assert rewards is not None
            data["rewards"] = rewards
        (critic, opt), outs = run_epochs(update, (critic, opt), data, self.pieces, self.ways)
        return critic, opt, summarize("critic", outs)

    def _similarity(
        self, critic: Params, reference: Params, batch: Batch, rewards: jax.Array, mask: jax.Array, discount: float
    ) -> rl.Loss:
        """BEER's penalty on the features of the states before consecutive tokens of a response (arXiv 2404.12754)."""
        params = self.learner.params(critic["trunk"], reference)
        hidden = hidden_states(self.learner.config, params, batch.tokens).astype(jnp.float32)
        before = jnp.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
        follows = mask & jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))  # the last token has no next state
        width = hidden.shape[-1]
        return rl.bellman_rank_penalty(
            before.reshape(-1, width), hidden.reshape(-1, width), rewards.reshape(-1),
            critic["head"]["layer_0"]["kernel"][:, 0], follows.reshape(-1), discount=discount,
        )  # fmt: skip
