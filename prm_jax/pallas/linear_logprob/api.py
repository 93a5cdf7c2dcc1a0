"""Log-probs of given tokens straight from hidden states, without the array of logits."""

import math

import jax
import jax.numpy as jnp

from prm_jax.pallas.linear_logprob import checks, parallel
from prm_jax.pallas.linear_logprob.dispatch import IMPLEMENTATIONS, choose, statistics, this_machine
from prm_jax.pallas.linear_logprob.problem import Inputs, Layout, Outputs, Residual, Spec, Target, vocab_size
from prm_jax.pallas.linear_logprob.rows import inverse_temperatures, permuted, valid_first
from prm_jax.varying import align

__all__ = ["IMPLEMENTATIONS", "linear_logprob", "linear_lse_and_target"]


def linear_lse_and_target(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    *,
    mask: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    softcap: float | None = None,
    bias: jax.Array | None = None,
    implementation: str | None = None,
    entropy: bool = False,
    head_layout: Layout = "vd",
    residual: Residual = "recompute",
    compact: bool = False,
    vocab_axis: str | None = None,
    gather_axes: tuple[str, ...] = (),
    target: Target | None = None,
    token_block: int | None = None,
    vocab_block: int | None = None,
) -> tuple[jax.Array, ...]:
    """Log-sum-exp of each row of logits, and the logit of each row's token, without the array of logits.

    ``l = cap(hidden head^T + bias) / temperature`` with ``cap(z) = softcap tanh(z / softcap)``;
    ``lse[t] = logsumexp_v l[t, v]``, ``target[t] = l[t, tokens[t]]``, ``entropy[t] = H(softmax(l[t]))``.
    One custom VJP with a cotangent for every output.  Gradients reach ``hidden``, ``head`` and ``bias``; those that
    nobody differentiates (a frozen head) are not computed.  Works under jit, vmap, checkpoint, scan and
    ``shard_map``, with its check of varying axes or without.

    Args:
      hidden: [T, D] float32, bfloat16 or float16; products run in this dtype, statistics and sums in float32.
      head: [V, D], or [D, V] for ``head_layout="dv"``; one of the same dtypes.
      tokens: [T] int in [0, V).  Outside jit others are refused; inside, their target is NaN.
      mask: [T] bool; a row where it is False is 0 in all outputs, and whatever stands in it (NaN included)
        reaches no output and no gradient.  All False gives zeros.
      temperature: a positive scalar or [T]; no gradient.
      softcap: positive, or None.
      bias: [V], or None.
      implementation: "xla_vocab", "xla_token", "mosaic_tpu" or "mosaic_gpu"; None chooses by platform.
      entropy: also returns the entropy.
      head_layout: "vd" or "dv".
      residual: "recompute" makes the logits again in the backward pass; "logits" keeps all T x V log-probs in
        hidden's dtype for it, a quarter less work where that much memory is at hand (XLA implementations).
      compact: sorts rows with a True mask to the front and computes those alone: work in proportion to their number,
        the same results.  Rows should be one device's (no mesh, or under ``shard_map``): sorting moves rows
        between devices.
      vocab_axis: under ``shard_map``: the mesh axis over which V of the head (and of the bias) is split.  ``tokens``
        are ids of the whole vocabulary, results are equal on all devices of the axis.
      gather_axes: under ``shard_map``: the axes over which D of the head is split.  It is gathered one block of the
        vocabulary at a time, forward and backward (XLA implementations).
      target: the device to compile for; None is this machine's.
      token_block: rows of logits at a time, where the backend's own choice does not fit.
      vocab_block: columns of logits at a time.

    Returns:
      ``(lse [T], target [T])``, or ``(lse, target, entropy [T])``, all float32.

    Raises:
      ValueError: for shapes, dtypes, token ids, or an implementation that do not fit, by name.
    """
    checks.check_options(temperature, softcap, residual, token_block, vocab_block)
    parallel.check_axes(head, vocab_axis, gather_axes)
    parts = math.prod(jax.lax.axis_size(axis) for axis in gather_axes)
    checks.check_arrays(hidden, head, tokens, mask, temperature, bias, head_layout, head_parts=parts)
    spec = Spec(
        softcap=softcap, entropy=entropy, head_layout=head_layout, residual=residual, gather_axes=gather_axes,
        target=target or this_machine(), token_block=token_block, vocab_block=vocab_block,
    )  # fmt: skip
    size = vocab_size(spec, head)
    checks.check_token_range(tokens, mask, size)
    tokens = tokens.astype(jnp.int32)
    own, inside = tokens, None
    if vocab_axis is not None:
        own, inside = parallel.local_tokens(tokens, vocab_axis, size)
    out = _row_statistics(spec, implementation, hidden, head, own, mask, temperature, bias, compact=compact)
    if vocab_axis is not None and inside is not None:
        out = _masked(parallel.join(out, inside, tokens, vocab_axis, size), mask)
    return tuple(x for x in out if x is not None)


def linear_logprob(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    *,
    mask: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    softcap: float | None = None,
    bias: jax.Array | None = None,
    implementation: str | None = None,
    head_layout: Layout = "vd",
    residual: Residual = "recompute",
    compact: bool = False,
    vocab_axis: str | None = None,
    gather_axes: tuple[str, ...] = (),
    target: Target | None = None,
    token_block: int | None = None,
    vocab_block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``log softmax(l)[t, tokens[t]]`` and the log-sum-exp; arguments as in ``linear_lse_and_target``.

    Returns:
      ``(logp [T], lse [T])`` float32, 0 where ``mask`` is False; gradients flow through both, so that a z-loss is
      ``sum(lse ** 2)``.
    """
    lse, chosen = linear_lse_and_target(
        hidden, head, tokens, mask=mask, temperature=temperature, softcap=softcap, bias=bias,
        implementation=implementation, head_layout=head_layout, residual=residual, compact=compact,
        vocab_axis=vocab_axis, gather_axes=gather_axes, target=target,
        token_block=token_block, vocab_block=vocab_block,
    )  # fmt: skip
    return chosen - lse, lse


def _row_statistics(
    spec: Spec,
    implementation: str | None,
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    mask: jax.Array | None,
    temperature: float | jax.Array,
    bias: jax.Array | None,
    *,
    compact: bool,
) -> Outputs:
    """The statistics of checked arrays over this device's part of the vocabulary, 0 where the mask is False."""
    if mask is not None:
        hidden = jnp.where(mask[:, None], hidden, 0)
        tokens = jnp.where(mask, tokens, 0)
    inverse = inverse_temperatures(temperature, mask, tokens.shape)
    inputs = Inputs(hidden, head, bias, inverse, tokens)
    name = choose(implementation, spec, inputs)
    if not tokens.size:
        empty = jnp.zeros((0,), jnp.float32)
        return Outputs(empty, empty, empty if spec.entropy else None)
    place = None
    if compact and mask is not None:
        inputs, place = valid_first(inputs, mask)
    out = statistics((name, spec), *align(inputs))
    if place is not None:
        out = jax.tree.map(lambda x: permuted(x, place), out)
    return _masked(out, mask)


def _masked(out: Outputs, mask: jax.Array | None) -> Outputs:
    return out if mask is None else jax.tree.map(lambda x: jnp.where(mask, x, 0.0), out)
