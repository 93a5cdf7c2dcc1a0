"""Implicit process rewards: the log-ratio to a reference, learned from outcomes or from pairs of steps.

Free Process Rewards without Process Labels, arXiv 2412.01981; Step-DPO, arXiv 2406.18629; step-level Q values of
agents, arXiv 2409.09345.
"""

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.prm.forward import Spec, Weights, judged, step_log_ratios
from prm_jax.prm.rows import Batch


def forward(spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
    """[R, S] float32: log-ratios summed over each step, without beta."""
    return step_log_ratios(spec, weights, batch)


def loss(spec: Spec, ratios: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
    """The loss on outcomes; `constant` is KTO's reference point."""
    options, known = spec.options, judged(batch)
    if options.loss == "ce":
        return rl.outcome_ce_loss(options.beta * ratios, batch.outcome, batch.step_mask & known[:, None])
    total = ratios.sum(-1)
    if options.loss in ("kto", "kto_vanilla"):
        variant = "paper" if options.loss == "kto" else "vanilla"
        return rl.kto_loss(
            total, batch.outcome > 0.5, constant, beta=options.beta, variant=variant, mask=known  # type: ignore[arg-type]
        )  # fmt: skip
    scores, count = options.beta * total, batch.outcome.shape[0]
    if options.loss == "dpo":
        return rl.all_pairs_loss(
            scores, batch.outcome, batch.group_ids, num_groups=count, label_smoothing=options.label_smoothing
        )
    better = better_pairs(batch)
    return rl.nca_loss(
        jnp.broadcast_to(scores[:, None], better.shape), jnp.broadcast_to(scores[None], better.shape), mask=better
    )


def pair_loss(spec: Spec, ratios: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
    """DPO on single steps: a group is a pair of rows that differ in their last step, which alone has tokens."""
    del constant
    count = batch.outcome.shape[0]
    return rl.all_pairs_loss(
        spec.options.beta * ratios.sum(-1), batch.outcome, batch.group_ids, num_groups=count,
        label_smoothing=spec.options.label_smoothing,
    )  # fmt: skip


def scores(spec: Spec, ratios: jax.Array, batch: Batch) -> jax.Array:
    """[R, S]: beta times the log-ratio of each step."""
    return jnp.where(batch.step_mask, spec.options.beta * ratios, 0.0)


def better_pairs(batch: Batch) -> jax.Array:
    """[R, R] bool: row and column belong to one problem and the row's outcome is greater."""
    known = judged(batch)
    same = (batch.group_ids[:, None] == batch.group_ids[None]) & known[:, None] & known[None]
    return same & (batch.outcome[:, None] > batch.outcome[None])
