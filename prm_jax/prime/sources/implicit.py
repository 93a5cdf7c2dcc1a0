"""The online implicit PRM: rewards are beta times the log-ratio to a reference, learned from outcomes alone.

Process Reinforcement through Implicit Rewards (arXiv 2502.01456, algorithm 1, lines 6 to 9).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.models import ModelConfig
from prm_jax.prime.batch import Batch, Metrics
from prm_jax.prime.options import LABEL_READINGS, PRMOptions
from prm_jax.prime.pieces import (
    batch_logprobs,
    batch_statistics,
    masked_mean,
    microbatches,
    mixed_groups,
    run_epochs,
    score_in_pieces,
    summarize,
)
from prm_jax.prime.sources.base import Judged, Source, SourceBatch
from prm_jax.prime.sources.readings import REWARDS, label_trust, step_label_rewards
from prm_jax.prime.sources.replay import Replay, draw, empty_replay, keep, remember
from prm_jax.runs.expert_balance import expert_metrics, with_balance
from prm_jax.runs.learner import Learner, Params, accumulate_gradients, guarded_update, merge_rows

_WEIGHTINGS: dict[str, Literal["none", "bon_rm", "bon_acc"]] = {
    "detached": "none",
    "detached_bon_rm": "bon_rm",
    "detached_bon_acc": "bon_acc",
}
_MEMORY = 0.9
"""Decay of the running average of label thresholds, per update."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PRMState:
    """What an online PRM changes.

    Attributes:
      trainable, opt: its trainable arrays and its optimiser's state.
      replay: past rollouts; None without replay.
      threshold: [2] float32, running sum and weight of the thresholds of step labels; None where none is learned.
      agreement: [2, 2] float32, running counts of (failed, other) responses, of those with a label and of all; None
        unless labels are scaled by it.
    """

    trainable: Params
    opt: Any
    replay: Replay | None = None
    threshold: jax.Array | None = None
    agreement: jax.Array | None = None


class ImplicitPRM(Source):
    """A language model whose log-ratio to its reference is the reward of each token.

    Args:
      learner: the PRM's architecture, optimiser and adapters.
      base: its initial parameters: the reference, and the base of its adapters.
      options: loss, beta, when it learns, from which rows.
      policy_config: the policy's architecture, for ``reference="policy"``.
      ways: number of devices that hold the rows, see ``learner.split_rows``.
      columns: longest prompt and response together, in tokens; read with ``options.replay`` only.
      kept: rollouts of the warm-up that are replayed.
      trained: parameters with which it starts instead of `base`, of a PRM that has learned already.
    """

    learns = True

    def __init__(
        self, learner: Learner, base: Params, options: PRMOptions, *, policy_config: ModelConfig, ways: int = 1,
        columns: int = 0, kept: int = 0, trained: Params | None = None,
    ) -> None:  # fmt: skip
        self.trained = trained
        self.learner, self.options, self.policy_config, self.ways = learner, options, policy_config, ways
        self.columns, self.kept = columns, kept
        self.constants = base

    def init(self, key: jax.Array) -> PRMState:
        """Equal to the reference, so that all rewards are exactly 0, unless it is trained already."""
        options, replay = self.options, None
        if options.replay:
            replay = empty_replay(options.replay, self.kept, self.columns, jax.random.fold_in(key, 1))
        finds = options.reading in LABEL_READINGS and options.label_threshold is None
        first = self.constants if self.trained is None else self.trained
        return PRMState(
            *self.learner.init(first, key), replay, jnp.zeros(2) if finds else None,
            jnp.zeros((2, 2)) if options.label_trust is not None else None,
        )  # fmt: skip

    def params(self, state: PRMState, constants: Params | None = None) -> Params:
        """The PRM's whole parameters."""
        return self.learner.params(state.trainable, self.constants if constants is None else constants)

    @property
    def microbatches(self) -> int:
        """Pieces of one optimiser step."""
        return self.options.microbatches

    def for_warm_up(self, ways: int) -> "ImplicitPRM":
        """The same PRM, learning in one pass and one optimiser step per batch."""
        options = dataclasses.replace(self.options, update="after", minibatches=1, epochs=1, replay=0)
        return ImplicitPRM(self.learner, self.constants, options, policy_config=self.policy_config, ways=ways)

    def keep(self, state: PRMState, batch: SourceBatch, first: jax.Array) -> PRMState:
        """Stores rollouts of the warm-up for replay, from place `first` of the buffer on."""
        assert state.replay is not None
        rows = batch.rows
        kept = keep(state.replay, rows, self._reference_logp(batch), self._learned(rows), first)
        return dataclasses.replace(state, replay=kept)

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
            if self.options.replay:
                new, replayed = self._learn_again(new, batch, ref_logp)
                metrics = metrics | replayed
            if how != "reverse":
                fresh = harvested
        scored = {
            "none": lambda: fresh,
            "after": lambda: fresh,
            "reverse": lambda: harvested,
            "before": lambda: self._score(new.trainable, batch),
        }[how]()
        raw = jax.lax.stop_gradient(self._rewards(scored, ref_logp, batch))
        rewards, agreement, flagged = self._read(raw, batch, state)
        new = dataclasses.replace(new, agreement=agreement)
        counted = batch.mask & batch.rows.keep[:, None]
        metrics = (
            metrics | {"prm/log_ratio": masked_mean(jnp.where(counted, scored - ref_logp, 0.0), counted)} | flagged
        )
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

    def _read(
        self, raw: jax.Array, batch: SourceBatch, state: PRMState
    ) -> tuple[jax.Array, jax.Array | None, Metrics]:  # fmt: skip
        """(process rewards [B, T] as `options.reading` takes them from the raw ones, new `agreement`, metrics)."""
        options, average, counts = self.options, state.threshold, state.agreement
        if options.reading not in LABEL_READINGS:
            return REWARDS[options.reading](raw, batch.step_ids, batch.mask, batch.judged), None, {}
        if average is None:
            threshold = jnp.asarray(options.label_threshold, jnp.float32)
        else:
            threshold = jnp.where(average[1] > 0, average[0] / jnp.where(average[1] > 0, average[1], 1.0), -jnp.inf)
        labels, found = step_label_rewards(raw, batch.step_ids, batch.mask, threshold)
        failed, rows = batch.outcome < 0.5, batch.judged
        flagged = jnp.where(rows, found, False).sum() / jnp.maximum(rows.sum(), 1)
        metrics = {"prm/label_threshold": jnp.where(jnp.isfinite(threshold), threshold, 0.0), "prm/flagged": flagged}
        if options.reading == "failed_labels":
            labels = jnp.where(failed[:, None], labels, 0.0)
        if counts is not None and options.label_trust is not None:
            trust = label_trust(counts)
            labels = jnp.where(trust >= options.label_trust, trust, 0.0) * labels
            metrics["prm/label_trust"] = trust
            members = jnp.stack([failed, ~failed]) & rows
            fresh = jnp.stack([(members & found).sum(-1), members.sum(-1)]).astype(jnp.float32)
            counts = _MEMORY * counts + fresh
        return labels, counts, metrics

    # ------------------------------------------------------------------------------------ learning

    def _learned(self, rows: Batch) -> jax.Array:
        """[B] bool, the rows of a step that the PRM learns from."""
        judged = rows.keep if rows.judged is None else rows.judged
        if self.options.rows == "mixed":
            return judged & mixed_groups(rows, judged)[rows.group_ids]
        return rows.keep if self.options.rows == "kept" else judged

    def loss(
        self, logp: jax.Array, ref_logp: jax.Array, rows: Batch, opponents: jax.Array | None, num_groups: int,
        *, learned: jax.Array | None = None, weights: jax.Array | None = None,
    ) -> rl.Loss:  # fmt: skip
        """The loss of `options.loss` on log-probs [B, T]; gradients flow into `logp` alone.

        `opponents` are the scores of the detached losses, `learned` [B] the rows that count (None: as `options.rows`
        says) and `weights` [B] their factors in the cross-entropy.
        """
        options = self.options
        learned = self._learned(rows) if learned is None else learned
        mask = rows.mask & learned[:, None]
        if options.loss == "ce":
            rewards = rl.implicit_token_rewards(logp, ref_logp, mask, beta=options.beta)
            return rl.outcome_ce_loss(
                rewards, rows.outcome, mask, weights=weights, label_smoothing=options.label_smoothing
            )
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
        data = self._data(batch.rows, ref_logp, self._learned(batch.rows))
        if opponents is not None:
            data["opponents"] = opponents
        carry = (state.trainable, state.opt)
        update = self._update(batch.constants, batch.mask.shape[0])
        (trainable, opt), outs = run_epochs(update, carry, data, self.options, self.ways)
        logp = merge_rows(outs[0][0], self.ways)  # of the first epoch: before the PRM has seen the row
        threshold = state.threshold
        if not self.options.replay:  # otherwise it follows the replayed rollouts, which have more of both outcomes
            threshold = self._followed(threshold, logp, data)
        new = dataclasses.replace(state, trainable=trainable, opt=opt, threshold=threshold)
        return new, logp, summarize("prm", outs[1])

    def _learn_again(self, state: PRMState, batch: SourceBatch, ref_logp: jax.Array) -> tuple[PRMState, Metrics]:
        """Stores the batch and learns from rollouts of the buffer, in `options.replay_batches` optimiser steps."""
        assert state.replay is not None
        options, rows = self.options, batch.mask.shape[0]
        replay = remember(state.replay, batch.rows, ref_logp, self._learned(batch.rows))
        update = self._update(batch.constants, rows)

        def again(carry: tuple[Any, Any], number: jax.Array) -> tuple[tuple[Any, Any], Any]:
            learner, threshold = carry
            drawn, reference = draw(
                replay, rows, age=options.replay_age, share_kept=options.replay_warm_up, number=number
            )
            data = self._data(drawn, reference, drawn.keep)
            new, (logp, found) = update(learner, data)
            there = drawn.keep.any()  # an optimiser step without a gradient would still move the weights
            new = jax.tree.map(lambda x, y: jnp.where(there, x, y), new, learner)
            return (new, self._followed(threshold, logp, data)), found

        carry = ((state.trainable, state.opt), state.threshold)
        ((trainable, opt), threshold), outs = jax.lax.scan(again, carry, jnp.arange(options.replay_batches))
        found = summarize("prm/replayed", {name: outs[name] for name in ("loss", "skipped")})
        new = dataclasses.replace(state, trainable=trainable, opt=opt, replay=replay, threshold=threshold)
        return new, found

    def _data(self, rows: Batch, ref_logp: jax.Array, learned: jax.Array) -> dict[str, Any]:
        """What an update is given; factors of classes are those of the whole batch."""
        data: dict[str, Any] = {"batch": rows, "ref_logp": ref_logp, "learned": learned}
        if self.options.class_weights == "balanced":
            data["weights"] = rl.class_weights(rows.outcome, learned)
        return data

    def _update(self, constants: Params, num_groups: int) -> Callable[[Any, dict[str, Any]], tuple[Any, Any]]:
        """``((trainable, opt), piece) -> ((trainable, opt), (log-probs, metrics))``: one optimiser step."""
        options = self.options

        def loss_fn(trainable: Params, piece: dict[str, Any]) -> tuple[rl.Loss, jax.Array]:
            params, rows = self.learner.params(trainable, constants), piece["batch"]
            found = batch_statistics(self.learner.config, params, rows, load=True)
            loss = self.loss(
                found.logp, piece["ref_logp"], rows, piece.get("opponents"), num_groups, learned=piece["learned"],
                weights=piece.get("weights"),
            )  # fmt: skip
            loss = rl.Loss(loss.total, loss.weight, {})
            return with_balance(loss, found.load, options.balance_coef), jax.lax.stop_gradient(found.logp)

        def update(carry: tuple[Params, Any], piece: dict[str, Any]) -> tuple[tuple[Params, Any], Any]:
            trainable, opt = carry
            grads, loss, logp = accumulate_gradients(
                loss_fn, trainable, piece, pieces=microbatches(options, piece["batch"], self.ways), ways=self.ways
            )
            trainable, opt, health = guarded_update(self.learner.optimizer, grads, opt, trainable)
            return (trainable, opt), (logp, {"loss": loss.mean(), **expert_metrics(loss.summary()), **health})

        return update

    def _followed(
        self, average: jax.Array | None, logp: jax.Array, data: dict[str, Any]
    ) -> jax.Array | None:  # fmt: skip
        """The running average of thresholds, moved by the learned rows if they have both outcomes."""
        if average is None:
            return None
        rows = data["batch"]
        mask = rows.mask & data["learned"][:, None]
        rewards = rl.implicit_token_rewards(logp, data["ref_logp"], mask, beta=self.options.beta)
        steps, present = rl.step_rewards(rewards, jnp.where(mask, rows.step_ids, -1), num_steps=mask.shape[1])
        found, known = rl.outcome_threshold(steps, present, rows.outcome)
        moved = _MEMORY * average + (1 - _MEMORY) * jnp.stack([found, jnp.ones(())])
        return jnp.where(known, moved, average)
