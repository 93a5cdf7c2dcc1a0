"""Scores from a head at the end of every step: right or wrong, or the value of the state.

Token classification: arXiv 2211.14275, 2312.08935, and TRL's stepwise supervision; tanh values: AlphaMath, arXiv
2405.03553; quantiles: arXiv 2103.00083.
"""

import jax
import jax.numpy as jnp

from prm_jax import rl, stats
from prm_jax.prm.forward import Spec, Weights, apply_head, class_logits, init_head, judged, read_hidden
from prm_jax.prm.rows import Batch
from prm_jax.runs.learner import Params


def init_token(spec: Spec, key: jax.Array) -> tuple[Params, Params]:
    """A head with two classes, (wrong, right); none where two vocabulary entries are the classes."""
    return ({} if spec.label_ids else init_head(spec, key, num_outputs=2)), {}


def forward_token(spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
    """[R, S, 2] float32 logits of (wrong, right)."""
    return class_logits(spec, weights, batch)


def token_loss(spec: Spec, logits: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
    """Cross-entropy over labelled steps, a mean over all of them (as TRL's, which cuts soft labels to integers)."""
    del constant
    threshold = spec.options.label_threshold if spec.options.labels == "hard" else None
    return rl.step_ce_loss(logits, batch.labels, batch.label_mask, threshold=threshold)


def token_scores(spec: Spec, logits: jax.Array, batch: Batch) -> jax.Array:
    """[R, S] in [0, 1]: the probability that the step is right."""
    return jnp.where(batch.step_mask, jax.nn.sigmoid(logits[..., 1] - logits[..., 0]), 0.0)


def init_value(spec: Spec, key: jax.Array) -> tuple[Params, Params]:
    """A head with one output, one a quantile, or several that start apart."""
    several = {"quantile": spec.options.quantiles, "twin": 2, "ensemble": spec.options.members}
    apart = spec.options.value in ("twin", "ensemble")
    return init_head(spec, key, num_outputs=several.get(spec.options.value, 1), random=apart), {}


def forward_value(spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
    """[R, S, outputs] float32, unbounded."""
    return apply_head(spec, weights.head, read_hidden(spec, weights, batch)[0])


def value_loss(spec: Spec, values: jax.Array, batch: Batch, constant: jax.Array) -> rl.Loss:
    """Regression of every step's value on its label, or on the outcome where the step has none.

    The outcome of the rollout is an unbiased target of the value under the policy that sampled it.
    """
    del constant
    known = judged(batch)
    target = jnp.where(batch.label_mask, batch.labels, batch.outcome[:, None])
    mask = batch.step_mask & (batch.label_mask | known[:, None])
    if spec.options.value == "quantile":
        return stats.pinball_loss(values, target, mask, levels=levels(spec))
    if spec.options.value == "tanh":
        return rl.value_loss(values[..., 0], 2 * target - 1, mask, kind="tanh_mse")
    outputs = [rl.value_loss(values[..., k], target, mask, kind="bce") for k in range(values.shape[-1])]
    return rl.Loss(sum((x.total for x in outputs), jnp.float32(0)), outputs[0].weight)


def value_scores(spec: Spec, values: jax.Array, batch: Batch) -> jax.Array:
    """[R, S]: the estimated chance of success (tanh values moved to [0, 1]; quantiles averaged; the lower twin; an
    ensemble's lower confidence bound, at least 0).
    """
    if spec.options.value == "quantile":
        found = values.mean(-1)
    elif spec.options.value == "tanh":
        found = 0.5 * (jnp.tanh(values[..., 0]) + 1)
    elif spec.options.value == "twin":
        found = jax.nn.sigmoid(rl.twin(values[..., 0], values[..., 1], how="min"))
    elif spec.options.value == "ensemble":
        members = jax.nn.sigmoid(jnp.moveaxis(values, -1, 0))
        found = jnp.maximum(rl.pessimistic_rewards(members, coefficient=spec.options.pessimism)[0], 0.0)
    else:
        found = jax.nn.sigmoid(values[..., 0])
    return jnp.where(batch.step_mask, found, 0.0)


def levels(spec: Spec) -> jax.Array:
    """The quantiles' levels, (k + 1/2) / n."""
    count = spec.options.quantiles
    return (jnp.arange(count, dtype=jnp.float32) + 0.5) / count
