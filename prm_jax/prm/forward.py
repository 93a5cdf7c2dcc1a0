"""The forward passes of process reward models: hidden states where steps end, log-ratios summed over steps."""

from typing import Any

import jax
import jax.numpy as jnp

from prm_jax import rl
from prm_jax.models import finished_logits, head_matrix, hidden_states, init_value_head, token_logprobs, value_head
from prm_jax.models.logprobs import token_statistics
from prm_jax.models.transformer import hidden_states_and_load
from prm_jax.prm.rows import Batch
from prm_jax.prm.spec import HeadedKind, Spec, Weights
from prm_jax.runs.learner import Params


def read_hidden(spec: Spec, weights: Weights, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Hidden states where steps and prompts end.

    Returns:
      ([R, S, D] at ``reads``, 0 where there is no step; [R, D] at ``starts``, 0 where there is no prompt), float32.
      Gradients flow to ``weights.model``.
    """
    hidden = text_hidden(spec, weights, batch)
    starts = jnp.maximum(batch.starts, 0)
    if batch.segment_ids is None:  # one solution per row: reading within rows keeps them on their devices
        width = batch.tokens.shape[1]
        at_reads = jnp.take_along_axis(hidden, (batch.reads % width)[..., None], axis=1)
        at_starts = jnp.take_along_axis(hidden, (starts % width)[:, None, None], axis=1)[:, 0]
    else:
        flat = hidden.reshape(-1, hidden.shape[-1])
        at_reads, at_starts = flat[batch.reads], flat[starts]
    steps = jnp.where(batch.step_mask[..., None], at_reads, 0).astype(jnp.float32)
    starts = jnp.where((batch.starts >= 0)[:, None], at_starts, 0).astype(jnp.float32)
    return steps, starts


def text_hidden(spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
    """[N, T, D] hidden states of the language model; with ``weights.loads``, the load of the steps' tokens is noted."""
    given = spec.config, weights.model, batch.tokens
    if weights.loads is None:
        return hidden_states(*given, segment_ids=batch.segment_ids)
    hidden, load = hidden_states_and_load(*given, batch.slots >= 0, segment_ids=batch.segment_ids)
    weights.loads.append(load)
    return hidden


def text_logprobs(spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
    """[N, T] float32 log-probabilities of the steps' tokens under the language model, 0 elsewhere.

    With ``weights.loads``, the load of these tokens is noted.
    """
    found = token_statistics(
        spec.config, weights.model, batch.tokens, batch.slots >= 0, segment_ids=batch.segment_ids,
        load=weights.loads is not None,
    )  # fmt: skip
    if weights.loads is not None and found.load is not None:
        weights.loads.append(found.load)
    return found.logp


def step_sums(values: jax.Array, batch: Batch) -> jax.Array:
    """Sums of token values [N, T] over the tokens of each step: [R, S] float32."""
    count, steps = batch.step_mask.shape
    inside = batch.slots >= 0
    slots = jnp.where(inside, batch.slots, count * steps)  # out of range: left out
    sums = jax.ops.segment_sum(jnp.where(inside, values, 0.0).reshape(-1), slots.reshape(-1), count * steps)
    return sums.reshape(count, steps)


def token_log_ratios(spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
    """Log model - log reference of each token of a step, without beta; 0 elsewhere: [N, T] float32.

    Without a reference it is the log-probability.  Model and reference go through one function, so that equal
    parameters give exactly 0.  Gradients flow to ``weights.model`` alone.
    """
    mask = batch.slots >= 0
    logp = text_logprobs(spec, weights, batch)
    ref_logp = jnp.zeros_like(logp)
    if weights.reference is not None:
        config = spec.reference_config or spec.config
        ref_logp = token_logprobs(config, weights.reference, batch.tokens, mask, segment_ids=batch.segment_ids)
    return rl.implicit_token_rewards(logp, ref_logp, mask, beta=1.0)


def step_log_ratios(spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
    """`token_log_ratios` summed over each step: [R, S] float32."""
    return step_sums(token_log_ratios(spec, weights, batch), batch)


def init_head(
    spec: Spec, key: jax.Array, *, num_outputs: int, layers: int | None = None, random: bool = False
) -> Params:
    """A head as ``models.init_value_head``; with `random` its last layer is small noise instead of zero.

    Heads that enter a product with themselves, and twins, would never leave zero, or each other.  `key` is consumed.
    """
    layers = _headed(spec).head_layers if layers is None else layers
    head = init_value_head(spec.config, key, num_outputs=num_outputs, layers=layers)
    if random:
        last = head[f"layer_{layers - 1}"]
        noise = jax.random.normal(jax.random.fold_in(key, 1), last["kernel"].shape, jnp.float32)
        last["kernel"] = noise / jnp.sqrt(jnp.float32(last["kernel"].shape[0]))
    return head


def apply_head(spec: Spec, head: Params, hidden: jax.Array) -> jax.Array:
    """[..., D] -> [..., outputs] float32, with the activation of the options between layers."""
    if _headed(spec).head_activation == "silu":
        return value_head(head, hidden)
    x = hidden.astype(jnp.float32)
    for index in range(len(head)):
        layer = head[f"layer_{index}"]
        x = x @ layer["kernel"].astype(jnp.float32) + layer["bias"].astype(jnp.float32)
        x = jax.nn.relu(x) if index < len(head) - 1 else x
    return x


def class_logits(spec: Spec, weights: Weights, batch: Batch) -> jax.Array:
    """[R, S, 2] float32: logits of (wrong, right) at each step's end, from the head or from two vocabulary entries."""
    hidden, _ = read_hidden(spec, weights, batch)
    if spec.label_ids is None:
        return apply_head(spec, weights.head, hidden)
    right, wrong = spec.label_ids
    rows = head_matrix(spec.config, weights.model)[jnp.asarray([wrong, right])].astype(jnp.float32)
    return finished_logits(spec.config, hidden @ rows.T)


def at_last(values: jax.Array, batch: Batch) -> jax.Array:
    """Entry of each solution's last step: [R, S, ...] -> [R, ...]; that of step 0 where there is no step."""
    last = jnp.maximum(batch.step_mask.sum(-1) - 1, 0)
    index: Any = last.reshape(-1, *([1] * (values.ndim - 1)))
    return jnp.take_along_axis(values, index, axis=1)[:, 0]


def judged(batch: Batch) -> jax.Array:
    """[R] bool, True on solutions with an outcome."""
    return batch.group_ids >= 0


def better_pairs(batch: Batch) -> jax.Array:
    """[R, R] bool: row and column belong to one problem and the row's outcome is greater."""
    known = judged(batch)
    same = (batch.group_ids[:, None] == batch.group_ids[None]) & known[:, None] & known[None]
    return same & (batch.outcome[:, None] > batch.outcome[None])


def _headed(spec: Spec) -> HeadedKind:
    assert isinstance(spec.kind, HeadedKind)
    return spec.kind
