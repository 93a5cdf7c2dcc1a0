"""Losses that close inside a chunk of rows: three matrix products where recomputing the logits takes four.

Some losses have derivatives by each log-prob that depend on the chunk's own log-probs alone: the cross-entropy of an
implicit reward within a sequence, a clipped surrogate within a token. They need no second pass over the head: the
gradients are computed while the chunk's logits still exist.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from prm_jax.pallas.linear_logprob import checks, tiles
from prm_jax.pallas.linear_logprob.blocking import TokenBlocks, loop
from prm_jax.pallas.linear_logprob.dispatch import make_spec
from prm_jax.pallas.linear_logprob.logprob_options import LogprobOptions
from prm_jax.pallas.linear_logprob.problem import (
    Gradients,
    Inputs,
    Outputs,
    Spec,
    Wanted,
    vocab_size,
)
from prm_jax.pallas.linear_logprob.rows import inverse_temperatures, permuted, valid_first
from prm_jax.varying import align, mark, varying_axes

_TOKENS = 256  # of a chunk on a CPU
_TOKENS_ACCELERATOR = 1024
_LOGITS = 1 << 22  # with a small vocabulary, chunks grow to this many logits
_COMPACT_TOKENS = 256  # what a chunk is cut into where work follows the valid tokens


class TokenStatistics(NamedTuple):
    """What a loss reads, float32, 0 where the mask is False.

    Attributes:
      logp: [N, ...] log-probs of the tokens.
      lse: [N, ...] log-sum-exp of the logits.
      entropy: [N, ...], or None where it was not asked for.
    """

    logp: jax.Array
    lse: jax.Array
    entropy: jax.Array | None


LossFn = Callable[[TokenStatistics, Any], jax.Array]


def linear_logprob_loss(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    loss_fn: LossFn,
    aux: Any = None,
    *,
    mask: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    softcap: float | None = None,
    bias: jax.Array | None = None,
    options: LogprobOptions = LogprobOptions(),
) -> tuple[jax.Array, TokenStatistics]:
    """``loss_fn`` of the log-probs, with its gradient made in the same pass over the head.

    ``loss_fn(statistics, aux)`` must be a sum over rows: it is called with chunks for the gradient and once with
    everything for the value. For hidden states [B, T, D] the rows are sequences, whose tokens it may combine in any
    way; for [T, D] each token is a row. Gradients reach ``hidden``, ``head`` and ``bias``, through the loss alone; a
    frozen one costs nothing. One chunk's logits exist at a time, float32; the head's gradient is summed in float32.

    Args:
      hidden: [N, ..., D] float32, bfloat16 or float16.
      head: [V, D], or [D, V] for ``head_layout="dv"``.
      tokens: [N, ...] int in [0, V); see ``linear_lse_and_target``.
      loss_fn: (TokenStatistics of [n, ...], aux of n rows) -> scalar. Jittable; arrays that it reads come in ``aux``.
      aux: pytree of arrays [N, ...] (advantages, labels, the mask); no gradient.
      mask: [N, ...] bool; tokens where it is False have statistics 0 and no gradient. May be False everywhere.
      temperature: a positive scalar or [N, ...]; no gradient.
      softcap: positive, or None.
      bias: [V], or None.
      options: see ``LogprobOptions``. ``token_block`` is the size of a chunk in tokens, rounded down to whole rows but
        at least one; None: 256 on a CPU, 1,024 elsewhere. Those that choose or split a kernel do not apply.

    Returns:
      ``(loss [] float32, statistics [N, ...])``; no gradient flows through the statistics.

    Raises:
      ValueError: naming the argument, for shapes, dtypes, token ids and options that do not fit.
    """
    _check_rows(hidden, tokens, mask, aux)
    _check_options(options)
    checks.check_scalars(temperature, softcap)
    shape = hidden.shape[:-1]
    _check_flat(hidden, head, tokens, mask, temperature, bias, options.head_layout)
    spec = make_spec(dataclasses.replace(options, residual="logits", token_block=None), softcap)
    checks.check_token_range(tokens, mask, vocab_size(spec, head))
    valid = jnp.ones(shape, bool) if mask is None else mask
    compact = options.compact and mask is not None
    # Flat tokens are sorted here, once; the tokens of sequences inside their chunk, which must stay whole.
    order = jnp.argsort(~valid, stable=True) if compact and len(shape) == 1 else None
    clean = jnp.where(valid[..., None], hidden, 0), jnp.where(valid, tokens.astype(jnp.int32), 0)
    inverse = inverse_temperatures(temperature, valid, shape)
    arrays = _Arrays(clean[0], head, bias, inverse, clean[1], valid, jax.tree.map(jnp.asarray, aux))
    if order is not None:
        arrays = arrays.rows(lambda x: permuted(x, order))
    static = _Static(loss_fn, spec, compact, _rows(spec, arrays, options.token_block))
    total, statistics = _closed(static, *align(arrays))
    if order is not None:
        statistics = jax.tree.map(lambda x: permuted(x, jnp.argsort(order)), statistics)
    return total, jax.lax.stop_gradient(statistics)


def _check_rows(hidden: jax.Array, tokens: jax.Array, mask: jax.Array | None, aux: Any) -> None:
    """All arrays have the same rows."""
    if hidden.ndim < 2:
        raise ValueError(f"hidden must be [N, ..., D], found {hidden.shape}")
    shape = hidden.shape[:-1]
    for name, array in (("tokens", tokens), ("mask", mask)):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must be {list(shape)} like hidden, found {list(array.shape)}")
    for leaf in jax.tree.leaves(aux):
        if jnp.shape(leaf)[:1] != shape[:1]:
            raise ValueError(f"aux must hold arrays with {shape[0]} rows, found one of shape {jnp.shape(leaf)}")


def _check_flat(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    mask: jax.Array | None,
    temperature: float | jax.Array,
    bias: jax.Array | None,
    head_layout: str,
) -> None:
    """The checks of flat rows."""
    shape = hidden.shape[:-1]
    each = temperature if jnp.ndim(temperature) == 0 else jnp.broadcast_to(temperature, shape).reshape(-1)
    flat_mask = None if mask is None else mask.reshape(-1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    checks.check_arrays(flat, head, tokens.reshape(-1), flat_mask, each, bias, head_layout)


def _check_options(options: LogprobOptions) -> None:
    """No option is set that a closed loss ignores."""
    options.refuse(
        "linear_logprob_loss",
        implementation="a closed loss always runs as XLA's products",
        residual="its gradient is made while a chunk's logits exist",
        vocab_block="a chunk has the whole vocabulary",
        vocab_axis="the head must be whole",
        gather_axes="the head must be whole",
    )


class _Arrays(NamedTuple):
    """Everything that a call reads; rows [N, ...], and the head."""

    hidden: jax.Array
    head: jax.Array
    bias: jax.Array | None
    inverse_temperature: jax.Array | None
    tokens: jax.Array
    mask: jax.Array
    aux: Any

    def rows(self, f: Callable[[jax.Array], jax.Array]) -> "_Arrays":
        """With ``f`` of every array that has rows."""
        one = functools.partial(jax.tree.map, f)
        return _Arrays(one(self.hidden), self.head, self.bias, *(one(x) for x in self[3:]))


@dataclasses.dataclass(frozen=True)
class _Static:
    loss_fn: LossFn
    spec: Spec
    compact: bool
    rows: int


def _rows(spec: Spec, arrays: _Arrays, tokens: int | None) -> int:
    """Rows of a chunk of about so many tokens."""
    if tokens is None:
        tokens = _TOKENS if spec.target.platform == "cpu" else _TOKENS_ACCELERATOR
        tokens = max(tokens, _LOGITS // vocab_size(spec, arrays.head))
    return max(1, tokens // max(1, math.prod(arrays.hidden.shape[1:-1])))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _closed(static: _Static, *arrays: Any) -> tuple[jax.Array, TokenStatistics]:
    statistics, _ = _sweep(static, _Arrays(*arrays), (False, False, False))
    return static.loss_fn(statistics, _Arrays(*arrays).aux).astype(jnp.float32), statistics


def _closed_fwd(static: _Static, *primals: Any) -> tuple[tuple[jax.Array, TokenStatistics], Any]:
    is_primal = functools.partial(jax.tree.map, lambda p: p.value, is_leaf=lambda p: hasattr(p, "perturbed"))
    arrays = _Arrays(*(is_primal(p) for p in primals))
    wanted = cast(Wanted, tuple(p is not None and p.perturbed for p in primals[:3]))
    statistics, gradients = _sweep(static, arrays, wanted)
    return (static.loss_fn(statistics, arrays.aux).astype(jnp.float32), statistics), gradients


def _closed_bwd(static: _Static, gradients: Gradients, cotangents: Any) -> tuple[Any, ...]:
    del static
    factor, _ = cotangents
    if isinstance(factor, SymbolicZero):
        return (None,) * 7
    scaled = jax.tree.map(lambda g: (g.astype(jnp.float32) * factor).astype(g.dtype), gradients)
    return *scaled, None, None, None, None


_closed.defvjp(_closed_fwd, _closed_bwd, symbolic_zeros=True)


def _sweep(static: _Static, arrays: _Arrays, wanted: Wanted) -> tuple[TokenStatistics, Gradients]:
    """Statistics of all rows, and the wanted gradients of the loss, in their arrays' dtypes."""
    hidden, head, bias = arrays[:3]
    blocks = TokenBlocks(hidden.shape[0], static.rows, contiguous=static.compact and hidden.ndim == 2)
    rows = arrays.rows(blocks.split)
    varying = mark(varying_axes(arrays))

    def one_block(i: Any, carry: Any) -> Any:
        statistics, d_hidden, sums = carry
        chunk = rows.rows(functools.partial(blocks.take, i=i))
        new, gradients = _chunk(static, chunk, wanted, sums)
        statistics = blocks.put(statistics, i, new)
        if wanted[0]:
            d_hidden = blocks.put(d_hidden, i, gradients.hidden)
        return statistics, d_hidden, gradients._replace(hidden=None)

    shape = blocks.shape(*hidden.shape[1:-1])
    zeros = varying(jnp.zeros(shape, jnp.float32))
    start = (
        TokenStatistics(zeros, zeros, zeros if static.spec.entropy else None),
        varying(jnp.zeros((*shape, hidden.shape[-1]), hidden.dtype)) if wanted[0] else None,
        Gradients(
            None,
            varying(jnp.zeros(head.shape, jnp.float32)) if wanted[1] else None,
            varying(jnp.zeros(cast(Any, bias).shape, jnp.float32)) if wanted[2] else None,
        ),
    )
    statistics, d_hidden, sums = loop(blocks.count, one_block, start)
    return blocks.join(statistics), Gradients(
        blocks.join(d_hidden) if wanted[0] else None,
        sums.head.astype(head.dtype) if wanted[1] else None,
        sums.bias.astype(cast(Any, bias).dtype) if wanted[2] else None,
    )


def _chunk(static: _Static, chunk: _Arrays, wanted: Wanted, sums: Gradients) -> tuple[TokenStatistics, Gradients]:
    """A chunk's statistics; its gradient of hidden, and the sums with its gradients of head and bias added."""
    shape = chunk.tokens.shape
    flat = chunk.rows(lambda x: x.reshape(-1, *x.shape[len(shape) :]))._replace(aux=None)
    inputs = Inputs(*flat[:5])
    spec, place = static.spec, None
    if static.compact:
        inputs, place = valid_first(inputs, flat.mask)
        spec = dataclasses.replace(spec, token_block=_COMPACT_TOKENS)
    size = {"token_block": spec.token_block or flat.tokens.size, "vocab_block": vocab_size(spec, flat.head)}
    keep = jnp.float32 if any(wanted) else None
    outputs, kept = tiles.forward(spec, inputs, keep=keep, **size)

    def loss(out: Outputs) -> tuple[jax.Array, TokenStatistics]:
        if place is not None:
            out = jax.tree.map(lambda x: permuted(x, place), out)
        out = jax.tree.map(lambda x: jnp.where(flat.mask, x, 0.0).reshape(shape), out)
        statistics = TokenStatistics(out.target - out.lse, out.lse, out.entropy)
        return static.loss_fn(statistics, chunk.aux), statistics

    if not any(wanted):
        return loss(outputs)[1], sums
    cotangents, statistics = jax.grad(loss, has_aux=True)(outputs)
    gradients = tiles.backward(spec, inputs, outputs, kept, cotangents, wanted, sums=sums, **size)
    d_hidden = gradients.hidden
    if d_hidden is not None:
        d_hidden = d_hidden if place is None else permuted(d_hidden, place)
        d_hidden = d_hidden.reshape(*shape, -1)
    return statistics, gradients._replace(hidden=d_hidden)
