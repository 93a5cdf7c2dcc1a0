"""The online implicit PRM: rewards are beta times the log-ratio to a reference, learned from outcomes alone.

Process Reinforcement through Implicit Rewards (arXiv 2502.01456, algorithm 1, lines 6 to 9).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.models import ModelConfig
from prm_jax.prime.batch import Batch, Metrics
from prm_jax.prime.options import PRMOptions
from prm_jax.prime.pieces import batch_logprobs, masked_mean, microbatches, run_epochs, score_in_pieces, summarize
from prm_jax.prime.sources.base import Judged, Source, SourceBatch
from prm_jax.runs.learner import Learner, Params, accumulate_gradients, guarded_update, merge_rows

_WEIGHTINGS: dict[str, Literal["none", "bon_rm", "bon_acc"]] = {
    "detached": "none",
    "detached_bon_rm": "bon_rm",
    "detached_bon_acc": "bon_acc",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PRMState:
    """The PRM's trainable arrays and its optimiser's state."""

    trainable: Params
    opt: Any


class ImplicitPRM(Source):
    """A language model whose log-ratio to its reference is the reward of each token.

    Args:
      learner: the PRM's architecture, optimiser and adapters.
      base: its initial parameters: the reference, and the base of its adapters.
      options: loss, beta, when it learns, from which rows.
      policy_config: the policy's architecture, for ``reference="policy"``.
      ways: number of devices that hold the rows, see ``learner.split_rows``.
    """

    learns = True

    def __init__(
        self, learner: Learner, base: Params, options: PRMOptions, *, policy_config: ModelConfig, ways: int = 1
    ) -> None:
        self.learner, self.options, self.policy_config, self.ways = learner, options, policy_config, ways
        self.constants = base

    def init(self, key: jax.Array) -> PRMState:
        """Equal to the reference, so that all rewards are exactly 0."""
        return PRMState(*self.learner.init(self.constants, key))

    def params(self, state: PRMState, constants: Params | None = None) -> Params:
        """The PRM's whole parameters."""
        return self.learner.params(state.trainable, self.constants if constants is None else constants)

    @property
    def microbatches(self) -> int:
        """Pieces of one optimiser step."""
        return self.options.microbatches

    def for_warm_up(self, ways: int) -> "ImplicitPRM":
        """The same PRM, learning in one pass and one optimiser step per batch."""
        options = dataclasses.replace(self.options, update="after", minibatches=1, epochs=1)
        return ImplicitPRM(self.learner, self.constants, options, policy_config=self.policy_config, ways=ways)

    def score(self, state: PRMState, batch: SourceBatch) -> jax.Array:
        """Beta * (log p_prm - log p_ref) at every response token; [B, T] float32."""
        return self._rewards(self._score(state.trainable, batch), self._reference_logp(batch), batch)

    def update(self, state: PRMState, batch: SourceBatch) -> tuple[PRMState, Metrics]:
        """One pass over the batch."""
        judged = self.judge(state, batch)
        return judged.state, judged.metrics

    def judge(self, state: PRMState, batch: SourceBatch) -> Judged:
        """Learns from the batch and scores it; with ``update="after"`` in one forward pass.

        The response scores, which measure the PRM (pairwise accuracy, trust gate), are those of each row before the
        PRM learned from it.
        """
        how = self.options.update
        ref_logp = self._reference_logp(batch)
        metrics: Metrics = {}
        new = state
        if how in ("none", "reverse"):
            fresh = self._score(state.trainable, batch)
        if how != "none":
            opponents = self._response_scores(fresh, ref_logp, batch.rows) if how == "reverse" else None
            new, harvested, metrics = self._learn(state, batch, ref_logp, opponents)
            if how != "reverse":
                fresh = harvested
        scored = {
            "none": lambda: fresh,
            "after": lambda: fresh,
            "reverse": lambda: harvested,
            "before": lambda: self._score(new.trainable, batch),
        }[how]()
        rewards = jax.lax.stop_gradient(self._rewards(scored, ref_logp, batch))
        counted = batch.mask & batch.rows.keep[:, None]
        metrics = metrics | {"prm/log_ratio": masked_mean(jnp.where(counted, scored - ref_logp, 0.0), counted)}
        response = self._response_scores(fresh, ref_logp, batch.rows)
        return Judged(new, rewards, response, metrics, batch.rows.initial_value)

    # ------------------------------------------------------------------------------------- scoring

    def _logp(self, trainable: Params, constants: Params, rows: Batch) -> jax.Array:
        return batch_logprobs(self.learner.config, self.learner.params(trainable, constants), rows)

    def _score(self, trainable: Params, batch: SourceBatch) -> jax.Array:
        return score_in_pieces(
            lambda rows: self._logp(trainable, batch.constants, rows), batch.rows, self.options, self.ways
        )

    def _reference_logp(self, batch: SourceBatch) -> jax.Array:
        if self.options.reference == "frozen":
            config, params = self.learner.config, batch.constants
        else:
            # Without the sampling temperature: the PRM has none, and the ratio must compare like with like.
            config, params = self.policy_config, batch.policy
        return score_in_pieces(
            lambda rows: batch_logprobs(config, params, rows), batch.rows, self.options, self.ways
        )  # fmt: skip

    def _rewards(self, logp: jax.Array, ref_logp: jax.Array, batch: SourceBatch) -> jax.Array:
        options = self.options
        return rl.implicit_token_rewards(
            logp, ref_logp, batch.mask, beta=options.beta, include_last=options.include_last
        )

    def _response_scores(self, logp: jax.Array, ref_logp: jax.Array, rows: Batch) -> jax.Array:
        return self.options.beta * jnp.where(rows.mask, logp - ref_logp, 0.0).sum(axis=-1)

    # ------------------------------------------------------------------------------------ learning

    def loss(
        self, logp: jax.Array, ref_logp: jax.Array, rows: Batch, opponents: jax.Array | None, num_groups: int
    ) -> rl.Loss:
        """The loss of `options.loss` on log-probs [B, T]; gradients flow into `logp` alone."""
        options = self.options
        learned = rows.keep if options.rows == "kept" or rows.judged is None else rows.judged
        mask = rows.mask & learned[:, None]
        if options.loss == "ce":
            rewards = rl.implicit_token_rewards(logp, ref_logp, mask, beta=options.beta)
            return rl.outcome_ce_loss(rewards, rows.outcome, mask)
        scores = self._response_scores(logp, ref_logp, rows)
        if options.loss == "dpo":
            return rl.all_pairs_loss(scores, rows.outcome, rows.group_ids, num_groups=num_groups, mask=learned)
        return rl.detached_pairwise_loss(
            scores, rows.outcome, rows.group_ids, num_groups=num_groups, weighting=_WEIGHTINGS[options.loss],
            mask=learned, opponent_scores=opponents,
        )  # fmt: skip

    def _learn(
        self, state: PRMState, batch: SourceBatch, ref_logp: jax.Array, opponents: jax.Array | None
    ) -> tuple[PRMState, jax.Array, Metrics]:
        """Epochs of minibatches: (state, log-probs harvested in the first epoch, metrics)."""
        options, num_groups = self.options, batch.mask.shape[0]

        def loss_fn(trainable: Params, piece: dict[str, Any]) -> tuple[rl.Loss, jax.Array]:
            logp = self._logp(trainable, batch.constants, piece["batch"])
            loss = self.loss(logp, piece["ref_logp"], piece["batch"], piece.get("opponents"), num_groups)
            return rl.Loss(loss.total, loss.weight, {}), jax.lax.stop_gradient(logp)

        def update(carry: tuple[Params, Any], piece: dict[str, Any]) -> tuple[tuple[Params, Any], Any]:
            trainable, opt = carry
            grads, loss, logp = accumulate_gradients(
                loss_fn, trainable, piece, pieces=microbatches(options, piece["batch"], self.ways), ways=self.ways
            )
            trainable, opt, health = guarded_update(self.learner.optimizer, grads, opt, trainable)
            return (trainable, opt), (logp, {"loss": loss.mean(), **loss.summary(), **health})

        data = {"batch": batch.rows, "ref_logp": ref_logp}
        if opponents is not None:
            data["opponents"] = opponents
        carry = (state.trainable, state.opt)
        (trainable, opt), outs = run_epochs(update, carry, data, options, self.ways)
        logp = merge_rows(outs[0][0], self.ways)  # of the first epoch: before the PRM has seen the row
        return PRMState(trainable, opt), logp, summarize("prm", outs[1])
