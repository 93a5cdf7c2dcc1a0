"""Log-probs of given tokens straight from hidden states, without the array of logits."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from prm_jax.pallas.linear_logprob import checks, parallel
from prm_jax.pallas.linear_logprob.dispatch import IMPLEMENTATIONS, choose, make_spec, statistics
from prm_jax.pallas.linear_logprob.logprob_options import LogprobOptions
from prm_jax.pallas.linear_logprob.problem import Inputs, Outputs, Spec, vocab_size
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
    options: LogprobOptions = LogprobOptions(),
) -> tuple[jax.Array, ...]:
    """Log-sum-exp of each row of logits, and the logit of each row's token, without the array of logits.

    ``l = cap(hidden head^T + bias) / temperature`` with ``cap(z) = softcap tanh(z / softcap)``;
    ``lse[t] = logsumexp_v l[t, v]``, ``target[t] = l[t, tokens[t]]``, ``entropy[t] = H(softmax(l[t]))``.
    One custom VJP with a cotangent for every output. Gradients reach ``hidden``, ``head`` and ``bias``; those that
    nothing differentiates (a frozen head) are not computed. Works under jit, vmap, checkpoint, scan and
    ``shard_map``, with or without its check of varying axes.

    Args:
      hidden: [T, D] float32, bfloat16 or float16; products run in this dtype, statistics and sums in float32.
      head: [V, D], or [D, V] for ``head_layout="dv"``; one of the same dtypes.
      tokens: [T] int in [0, V). Outside jit other ids are refused; inside, their target is NaN.
      mask: [T] bool; a row where it is False is 0 in all outputs, and its values (NaN included) reach no output and
        no gradient. All False gives zeros.
      temperature: a positive scalar or [T]; no gradient.
      softcap: positive, or None.
      bias: [V], or None.
      options: how it is computed, and whether the entropy is wanted; see ``LogprobOptions``.

    Returns:
      ``(lse [T], target [T])``, or ``(lse, target, entropy [T])`` for ``options.entropy``, all float32.

    Raises:
      ValueError: naming the argument, for shapes, dtypes, token ids or an implementation that do not fit.
    """
    checks.check_scalars(temperature, softcap)
    parallel.check_axes(head, options.vocab_axis, options.gather_axes)
    parts = math.prod(jax.lax.axis_size(axis) for axis in options.gather_axes)
    checks.check_arrays(hidden, head, tokens, mask, temperature, bias, options.head_layout, head_parts=parts)
    spec = make_spec(options, softcap)
    size = vocab_size(spec, head)
    checks.check_token_range(tokens, mask, size)
    tokens = tokens.astype(jnp.int32)
    own, inside = tokens, None
    if options.vocab_axis is not None:
        own, inside = parallel.local_tokens(tokens, options.vocab_axis, size)
    if mask is not None:
        hidden, own = jnp.where(mask[:, None], hidden, 0), jnp.where(mask, own, 0)
    inputs = Inputs(hidden, head, bias, inverse_temperatures(temperature, mask, tokens.shape), own)
    out = _row_statistics(spec, options, inputs, mask)
    if options.vocab_axis is not None and inside is not None:
        out = _masked(parallel.join(out, inside, tokens, options.vocab_axis, size), mask)
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
    options: LogprobOptions = LogprobOptions(),
) -> tuple[jax.Array, ...]:
    """``log softmax(l)[t, tokens[t]]`` and the log-sum-exp, with ``l`` as in ``linear_lse_and_target``.

    Args:
      hidden: [T, D] float32, bfloat16 or float16; receives gradients.
      head: [V, D], or [D, V] for ``head_layout="dv"``; receives gradients.
      tokens: [T] int in [0, V).
      mask: [T] bool; rows where it is False are 0 and have no gradient.
      temperature: a positive scalar or [T]; no gradient.
      softcap: positive, or None.
      bias: [V], or None; receives gradients.
      implementation: short for ``LogprobOptions(implementation=...)``.
      options: how it is computed; see ``LogprobOptions``.

    Returns:
      ``(logp [T], lse [T])`` float32, 0 where ``mask`` is False, followed by the entropy for ``options.entropy``.
      Gradients flow through all of them, so that a z-loss is ``sum(lse ** 2)``.

    Raises:
      ValueError: as ``linear_lse_and_target``.
    """
    if implementation is not None:
        options = dataclasses.replace(options, implementation=implementation)
    lse, target, *entropy = linear_lse_and_target(
        hidden, head, tokens, mask=mask, temperature=temperature, softcap=softcap, bias=bias, options=options
    )
    return target - lse, lse, *entropy


def _row_statistics(spec: Spec, options: LogprobOptions, inputs: Inputs, mask: jax.Array | None) -> Outputs:
    """The statistics of masked rows over this device's part of the vocabulary, 0 where the mask is False."""
    name = choose(options.implementation, spec, inputs)
    if not inputs.tokens.size:
        empty = jnp.zeros((0,), jnp.float32)
        return Outputs(empty, empty, empty if spec.entropy else None)
    place = None
    if options.compact and mask is not None:
        inputs, place = valid_first(inputs, mask)
    out = statistics((name, spec), *align(inputs))
    if place is not None:
        out = jax.tree.map(lambda x: permuted(x, place), out)
    return _masked(out, mask)


def _masked(out: Outputs, mask: jax.Array | None) -> Outputs:
    return out if mask is None else jax.tree.map(lambda x: jnp.where(mask, x, 0.0), out)
