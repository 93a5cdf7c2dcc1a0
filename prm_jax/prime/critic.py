"""A value head on a copy of the policy's initial weights: PPO's critic, and a source of step values."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from prm_jax import rl
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
    ) -> tuple[Params, Any, Metrics]:
        """Moves the values towards `targets` [B, T]: (trainable, optimiser state, metrics)."""
        clip = self.options.clip

        def loss_fn(trainable: Params, piece: dict[str, Any]) -> tuple[rl.Loss, None]:
            rows = piece["batch"]
            values = self.before(trainable, reference, rows)
            old = None if clip is None else piece["old"]
            mask = rows.mask & rows.keep[:, None]
            return rl.value_loss(values, piece["targets"], mask, old_values=old, clip=clip), None

        def update(carry: tuple[Params, Any], piece: dict[str, Any]) -> tuple[tuple[Params, Any], Metrics]:
            trainable, state = carry
            grads, loss, _ = accumulate_gradients(
                loss_fn, trainable, piece, pieces=microbatches(self.pieces, piece["batch"], self.ways), ways=self.ways
            )
            trainable, state, health = guarded_update(self.learner.optimizer, grads, state, trainable)
            return (trainable, state), {"loss": loss.mean(), **health}

        data = {"batch": batch, "old": jax.lax.stop_gradient(old_values), "targets": targets}
        (critic, opt), outs = run_epochs(update, (critic, opt), data, self.pieces, self.ways)
        return critic, opt, summarize("critic", outs)
